"""aiohttp's own log without strangers' words: it prints each malformed request with the line that broke it, which may
hold a key, and at a level that lets anyone fill the disk."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError

from proxy.faults import frames


class _WithoutWords(logging.Filter):
    """Drops what malformed requests raise; of other errors it keeps where they come from."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            return False
        if error is not None:
            record.msg, record.args, record.exc_info = f"{record.getMessage()}: {frames(error)}", (), None
        return True


def http_logger() -> logging.Logger:
    """The logger for aiohttp's server."""
    logger = logging.getLogger("proxy.http")
    if not logger.filters:
        logger.addFilter(_WithoutWords())
    return logger
