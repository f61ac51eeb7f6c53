"""Reading a segment while its owner may still append to it."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from storage.journal import is_locked, mark_of
from storage.journal_format import MAX_RECORD, Scanner, leading

_READ_BYTES = 1 << 20


class SegmentTail:
    """One segment's records, in order. Raises FileNotFoundError or ValueError when it cannot be opened.

    `ended` says that the owner has let go of it and that all records were taken; `damaged` counts bytes of records
    that could not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = mark_of(path)
        self._scanner = Scanner(self._mark)
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._position = 0
        self._found: deque[bytes] = deque()
        self._complete = False

    @property
    def ended(self) -> bool:
        return self._complete and not self._found

    @property
    def damaged(self) -> int:
        return self._scanner.damaged

    def take(self, limit: int) -> list[bytes]:
        """Up to `limit` records that were not taken yet."""
        while len(self._found) < limit and not self._complete:
            # in this order: what the owner wrote before it let go is then seen
            if not is_locked(self._file):
                self._scan()
            elif not self._follow():
                break
        return [self._found.popleft() for _ in range(min(limit, len(self._found)))]

    def _follow(self) -> bool:
        """Take the whole records behind the last one. What comes after them is left for later: room that the owner
        has made, or a write of which some pages can be seen and others cannot yet."""
        for size in (_READ_BYTES, MAX_RECORD):
            data = os.pread(self._file, size, self._position)
            payloads, length = leading(data, self._mark)
            if payloads or len(data) < size:
                break
        self._found += payloads
        self._position += length
        return bool(payloads)

    def _scan(self) -> None:
        """Nobody writes any more: take what can be read, whatever lies between."""
        data = os.pread(self._file, _READ_BYTES, self._position)
        self._position += len(data)
        self._found += self._scanner.feed(data) if data else self._scanner.finish()
        self._complete = not data

    def remove(self) -> None:
        """Delete the segment: all its records are committed."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        os.close(self._file)
