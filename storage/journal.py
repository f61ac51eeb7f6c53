"""The journal: finished exchanges on disk before anybody is told that they are done.

Each process appends to segments of its own in a directory that all of this machine's processes share. One thread
writes what has come and syncs it (`fdatasync`), a group at a time: while one group is on its way, the next gathers,
and one that finds the thread idle waits for nothing. A segment has room ahead of its end, written as zeros: a sync
then writes the records alone, not also the file's new size through the file system's journal.
A segment is locked as long as its owner lives; `storage.writer` moves records into the database, from the segments of
the living and of the dead, and deletes a segment when its last record is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from storage.engines import is_sqlite, parse_url
from storage.errors import JournalFull
from storage.journal_format import MARK_BYTES, MAX_PAYLOAD, frame

logger = logging.getLogger(__name__)

MAX_BYTES = 2 * 2**30
SEGMENT_BYTES = 8 * 2**20
SEGMENT_SECONDS = 10.0
"""A segment's age at which the next one is begun: a committed record does not stay on disk for much longer."""
SUFFIX = ".journal"
_ROOM_BYTES = 1 << 20
_MEASURE_SECONDS = 0.2
_IDLE_SECONDS = 0.5
_PROBE_BYTES = 1 << 16

Waiting = tuple[bytes, "asyncio.Future[None]"]


class Journal:
    """The appending side. Use as an asynchronous context: leaving it syncs what was appended.

    Args:
        directory: of all segments of this machine's processes; made where missing, for its owner's eyes only.
        max_bytes: cap on all segments together, from which on nothing is taken.
    """

    def __init__(self, directory: Path, *, max_bytes: int = MAX_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory, self._segment_bytes = directory, segment_bytes
        self.max_bytes = max_bytes
        self._segment: _Segment | None = None
        self._pending: list[Waiting] = []
        self._pending_bytes = 0
        self._wake = threading.Condition()
        self._closing = False
        self._seal_soon = False
        self._measured, self._measured_at = 0, 0.0
        self.appended = 0
        """Records that are on disk, since the start."""
        self.failure: str | None = None
        """Why the last group did not reach the disk; None when it did."""

    @property
    def used(self) -> int:
        """Bytes of all segments (as of the last look, a fraction of a second ago) and of what waits for the disk."""
        return self._measured + self._pending_bytes

    @property
    def oldest_seconds(self) -> float:
        """Age of the oldest segment: seconds where the database keeps up."""
        return oldest_seconds(self._directory, time.time())

    @property
    def unsynced(self) -> bool:
        """Whether something that was appended is not on disk yet."""
        return self._pending_bytes > 0

    def own_segments(self) -> set[Path]:
        """The segments of this process that are not emptied yet."""
        return {path for path in segments(self._directory) if path.name.split("-")[1] == str(os.getpid())}

    async def __aenter__(self) -> Journal:
        await asyncio.to_thread(_make_directory, self._directory)
        self._measured = segment_bytes(self._directory)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def append(self, payload: bytes) -> asyncio.Future[None]:
        """Take one record; the future is done when it is synced, or has JournalFull. Never waits, never raises."""
        future = self._loop.create_future()
        if len(payload) > MAX_PAYLOAD:  # alone, and not with all of its group
            future.set_exception(JournalFull(f"a record of {len(payload)} bytes is larger than any may be"))
            return future
        if self.used + len(payload) > self.max_bytes:
            future.set_exception(JournalFull(f"the journal is at its cap of {self.max_bytes >> 20} MiB"))
            return future
        with self._wake:
            self._pending.append((payload, future))
            self._pending_bytes += len(payload)
            self._wake.notify()
        return future

    def seal(self) -> None:
        """Begin a new segment with the next record, so that the current one can be emptied and deleted."""
        with self._wake:
            self._seal_soon = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not (self._pending or self._closing or self._seal_soon):
                    self._wake.wait(_IDLE_SECONDS)
                group, self._pending = self._pending, []
                closing, sealing, self._seal_soon = self._closing, self._seal_soon, False
            if group:
                self._keep(group)
            elif self.failure is not None:
                self._probe()
            if self._segment and (sealing or closing or self._segment.is_ripe(self._segment_bytes)):
                self._close_segment()
            elif group and self._segment:
                self._segment.make_room()  # nobody waits for this one
            self._measure()
            if closing and not group:
                return

    def _keep(self, group: Sequence[Waiting]) -> None:
        error: JournalFull | None = None
        try:
            if self._segment is None:
                self._segment = _Segment(self._directory)
            self._segment.append([payload for payload, _ in group])
            self.appended += len(group)
        except OSError as cause:
            reason = os.strerror(cause.errno) if cause.errno else str(cause)
            error = JournalFull(f"the journal in {self._directory} cannot be written: {reason}")
            # after a failed write or sync nobody knows what the file holds: never append to it again
            self._close_segment(failed=True)
        self.failure = None if error is None else str(error)
        with self._wake:
            self._pending_bytes -= sum(len(payload) for payload, _ in group)
        self._measured += sum(len(payload) for payload, _ in group) if error is None else 0
        self._loop.call_soon_threadsafe(_settle, [future for _, future in group], error)

    def _probe(self) -> None:
        """Find out whether the disk takes writes again: under `fail_closed` no record comes to show it."""
        try:
            segment = _Segment(self._directory)
            try:
                segment.probe()
            finally:
                segment.close()
        except OSError:
            return
        self.failure = None

    def _close_segment(self, *, failed: bool = False) -> None:
        if self._segment is not None:
            self._segment.close(failed=failed)
            self._segment = None

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._measured_at > _MEASURE_SECONDS:
            ahead = self._segment.room if self._segment else 0
            self._measured, self._measured_at = max(0, segment_bytes(self._directory) - ahead), now


class _Segment:
    """One file, locked by this process from before it can be seen under its name."""

    def __init__(self, directory: Path) -> None:
        self._mark = os.urandom(MARK_BYTES)
        name = f"{time.time_ns() // 1_000_000:013}-{os.getpid()}-{self._mark.hex()}{SUFFIX}"
        hidden = directory / f".{name}"
        self._path, self._born = directory / name, time.monotonic()
        self._size = self._room = 0
        self._file = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(self._path)
        _sync_directory(directory)

    def append(self, payloads: Sequence[bytes]) -> None:
        end = self._write(b"".join([frame(payload, self._mark) for payload in payloads]), self._size)
        os.fdatasync(self._file)
        self._size = end

    @property
    def room(self) -> int:
        """Bytes that the file is larger than its records."""
        return max(0, self._room - self._size)

    def make_room(self) -> None:
        """Let the file grow ahead of its records, unless it is far ahead already."""
        if self.room > _ROOM_BYTES // 2:
            return
        start = max(self._room, self._size)
        self._room = start + _ROOM_BYTES
        with contextlib.suppress(OSError):  # a full disk, say: the next record may fit all the same, or will tell
            self._write(bytes(_ROOM_BYTES), start)
            os.fdatasync(self._file)

    def probe(self) -> None:
        """Write what is no record. Raises OSError where the disk does not take it."""
        self._write(bytes(_PROBE_BYTES), 0)
        os.fdatasync(self._file)

    def is_ripe(self, limit: int) -> bool:
        return self._size >= limit or time.monotonic() - self._born >= SEGMENT_SECONDS

    def close(self, *, failed: bool = False) -> None:
        if not self._size:
            self._path.unlink(missing_ok=True)
        elif not failed:  # else a record may stand behind the end: whole, though it was never acknowledged
            with contextlib.suppress(OSError):  # zeros at the end do no harm
                os.ftruncate(self._file, self._size)
        os.close(self._file)

    def _write(self, data: bytes, position: int) -> int:
        left = memoryview(data)
        while left:
            written = os.pwrite(self._file, left, position)
            left, position = left[written:], position + written
        return position


def default_directory(store: str) -> Path:
    """Beside a SQLite file; for Postgres in the working directory."""
    url = parse_url(store)
    return Path(f"{url.database}.journal") if is_sqlite(url) else Path("seedproof.journal")


def segments(directory: Path) -> list[Path]:
    """All segments, the oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [directory / name for name in sorted(names) if name.endswith(SUFFIX) and not name.startswith(".")]


def segment_bytes(directory: Path) -> int:
    """The size of all segments together."""
    total = 0
    for path in segments(directory):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # the writer has just emptied it
            continue
    return total


def oldest_seconds(directory: Path, now: float) -> float:
    """How long ago (`now` is Unix time) the oldest segment that holds anything was begun; 0 where none does."""
    for path in segments(directory):
        try:
            size = path.stat().st_size
        except FileNotFoundError:  # the writer has just emptied it
            continue
        if size:
            return max(0.0, now - int(path.name.partition("-")[0]) / 1000)
    return 0.0


def mark_of(path: Path) -> bytes:
    """The mark that a segment's name tells. Raises ValueError for another kind of name."""
    mark = bytes.fromhex(path.name.removesuffix(SUFFIX).rpartition("-")[2])
    if len(mark) != MARK_BYTES:
        raise ValueError(f"{path.name} is not the name of a journal segment")
    return mark


def is_locked(file: int) -> bool:
    """Whether another process (or another open of this one) holds the file's lock; takes it if not."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise
    return False


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise JournalFull(f"the journal's directory {directory} cannot be made: {reason}") from error


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _settle(futures: Sequence[asyncio.Future[None]], error: JournalFull | None) -> None:
    for future in futures:
        if future.done():
            continue  # its client has left and took the waiting handler along
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
