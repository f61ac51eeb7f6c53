"""The copy of an answer that nobody audits: its size, and its JSON where that is small. Pure."""

from __future__ import annotations

from typing import Any

import orjson

MAX_KEPT_BYTES = 64 * 2**10
"""Embeddings, files and images pass through here: worth a line in the record, not their weight."""


class Excerpt:
    """Counts bytes and keeps the first few; the interface of `Transcript`."""

    malformed = False
    truncated = False
    empty = True
    error: dict[str, Any] | None = None

    def __init__(self, *, content_type: str) -> None:
        self._content_type = content_type
        self._kept: list[bytes] = []
        self._bytes = 0
        self.done = self.ended = False

    @property
    def keeping(self) -> bool:
        return self._bytes <= MAX_KEPT_BYTES

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the answer."""
        if self._content_type == "text/event-stream" and b"data: [DONE]" in chunk:
            self.done = self.ended = True
        self._bytes += len(chunk)
        if self._bytes <= MAX_KEPT_BYTES:
            self._kept.append(chunk)

    def end(self) -> None:
        """All bytes have come."""
        self.ended = True

    def finish(self) -> dict[str, Any]:
        """`content_type`, `bytes` and, if it is small and JSON, `body`."""
        record: dict[str, Any] = {"content_type": self._content_type, "bytes": self._bytes}
        if self._bytes <= MAX_KEPT_BYTES:
            body = json_object(b"".join(self._kept))
            if body is not None:
                record["body"] = body
        return record


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body; None if it is no object or nested beyond what can be written again."""
    try:
        value = orjson.loads(body)
        orjson.dumps(value)
    except (orjson.JSONDecodeError, TypeError):
        return None
    return value if isinstance(value, dict) else None
