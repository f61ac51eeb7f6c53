"""Reading a segment while its owner may still append to it."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from storage.journal import is_locked, mark_of
from storage.journal_format import Scanner

_READ_BYTES = 1 << 20


class SegmentTail:
    """One segment's records, in order. Raises FileNotFoundError or ValueError when it cannot be opened.

    `ended` says that the owner has let go of it and that all records were taken; `damaged` counts bytes of records
    that could not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scanner = Scanner(mark_of(path))
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
            abandoned = not is_locked(self._file)
            data = os.read(self._file, _READ_BYTES)
            self._found += self._scanner.feed(data)
            if not data and abandoned:
                self._found += self._scanner.finish()
                self._complete = True
            elif not data:
                break
        return [self._found.popleft() for _ in range(min(limit, len(self._found)))]

    def remove(self) -> None:
        """Delete the segment: all its records are committed."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        os.close(self._file)
