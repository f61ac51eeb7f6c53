"""Server-sent events out of bytes in any chunking: bounded, linear, pure (WHATWG HTML §9.2.6).

Lines end in LF, CRLF or CR and nowhere else; a byte order mark may open the stream; comments are skipped.
Only `data` matters to the OpenAI protocol. An event that its blank line never closed is dropped, as the
standard says.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 16 * 2**20
"""Providers do send a whole reasoning text as one event; aiohttp's own line reader stops at 512 KiB."""

_BOM = b"\xef\xbb\xbf"


class SSEFramer:
    """Feed bytes, get the `data` of each event that they complete.

    After an event larger than `max_event_bytes`, `overflowed` is true and nothing more comes out.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._partial: list[bytes] = []
        self._data: list[bytes] = []
        self._partial_size = 0
        self._data_size = 0
        self._at_start = True
        self._after_cr = False
        self.overflowed = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that this chunk completes, in order."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if self.overflowed or not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        events: list[bytes] = []
        for line in chunk.splitlines(keepends=True):
            self._line(line, events)
            if self._partial_size + self._data_size > self._max:
                self._overflow()
                break
        return events

    def _line(self, line: bytes, events: list[bytes]) -> None:
        self._partial_size += len(line)
        self._partial.append(line)
        if not line.endswith((b"\n", b"\r")):
            return
        whole = (b"".join(self._partial) if len(self._partial) > 1 else line).rstrip(b"\r\n")
        size, self._partial_size = self._partial_size, 0
        self._partial.clear()
        if self._at_start:
            self._at_start = False
            whole = whole.removeprefix(_BOM)
        if whole:
            self._field(whole, size)
        else:
            self._dispatch(events)

    def _field(self, line: bytes, size: int) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            # the whole line counts, so that empty ones cannot pile up; heartbeat comments, of which nothing
            # is held, may go on for hours without a blank line
            self._data_size += size
            self._data.append(value.removeprefix(b" "))

    def _dispatch(self, events: list[bytes]) -> None:
        if self._data:
            events.append(b"\n".join(self._data))
        self._data.clear()
        self._data_size = 0

    def _overflow(self) -> None:
        self.overflowed = True
        self._partial.clear()
        self._data.clear()
