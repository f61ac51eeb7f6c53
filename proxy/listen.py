"""Listening on a configured address, with a sentence for what goes wrong."""

from __future__ import annotations

import errno

from aiohttp import web

from proxy.errors import ListenError


async def bind(runner: web.AppRunner, host: str, port: int, key: str, *, share_port: bool = False) -> None:
    """Start the app on an address that the configuration's `key` names; with `share_port` others may listen there too.
    Raises ListenError."""
    try:
        await web.TCPSite(runner, host, port, reuse_port=share_port or None).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"it is in use; stop the other program or change '{key}'"
        else:
            reason = f"{error.strerror or error}; change '{key}'"
        raise ListenError(f"cannot listen on {host}:{port}: {reason}") from error
