"""The writer: from the journal's segments into the database, in batches, each record exactly once.

One writer at a time empties a journal's directory, whoever holds the lock there: a proxy process, or `seedproof
writer` beside several. When it dies, the next one takes over and reads the segments that are left from their start:
what was committed already is known by its id. A segment is deleted after the commit of its last record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, Protocol

from sqlalchemy.exc import SQLAlchemyError

from storage import dead_letters
from storage.database import Database, blames_the_row
from storage.errors import CorruptRecord, StorageError
from storage.exchange_codec import ExchangeRow, pack, unpack
from storage.exchange_rows import insert_rows
from storage.journal import SUFFIX, is_locked, segments
from storage.segment_tail import SegmentTail

logger = logging.getLogger(__name__)

BATCH = 500
SECONDS = 0.05
TURN_SECONDS = 0.5
RETRY_SECONDS = (0.1, 0.5, 2.0, 5.0)
LOCK = "writer.lock"
_STALE_SECONDS = 60.0

Letter = tuple[bytes, str]
"""A record that cannot be stored, and why."""


class Batch(NamedTuple):
    """Records as they were read; `ended` are the segments whose last record is among these or was taken before."""

    size: int
    rows: list[ExchangeRow]
    letters: list[Letter]
    ended: list[SegmentTail]


class Target(Protocol):
    """Where a batch goes. Both are idempotent and commit before they return."""

    async def record(self, rows: Sequence[ExchangeRow]) -> int: ...

    async def bury(self, letters: Sequence[Letter], *, now: datetime) -> None: ...


class DatabaseTarget:
    """The database as a target: exchanges and their jobs in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, rows: Sequence[ExchangeRow]) -> int:
        async with self._database.writing() as session:
            return await insert_rows(session, rows)

    async def bury(self, letters: Sequence[Letter], *, now: datetime) -> None:
        async with self._database.writing() as session:
            await dead_letters.bury(session, letters, now=now)


class Writer:
    """`recorded` counts committed exchanges, `buried` those in the dead-letter table, since the start.

    `failing` is why the last batch could not be committed; None while the database takes them.
    """

    def __init__(self, target: Target, directory: Path, *, now: Callable[[], datetime] | None = None) -> None:
        self._target, self._directory = target, directory
        self._now = now or (lambda: datetime.now(timezone.utc))
        self._tails: dict[Path, SegmentTail] = {}
        self.recorded = 0
        self.buried = 0
        self.failing: str | None = None

    async def run(self) -> None:
        """Wait for the turn, then write until cancelled."""
        async with self.turn():
            following = self._reading()
            while True:
                batch = await following
                if full := batch.size >= BATCH:
                    following = self._reading()  # while this one is on its way
                await self._store(batch)
                if not full:
                    await asyncio.sleep(SECONDS)
                    following = self._reading()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Be the only writer of this directory; waits until that is so."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._directory / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._reader = ThreadPoolExecutor(1, "journal-reader")
        try:
            while is_locked(lock):  # noqa: ASYNC110 (of other processes no event tells)
                await asyncio.sleep(TURN_SECONDS)
            self._sweep()
            yield
        finally:
            self._reader.shutdown(cancel_futures=True)
            for tail in self._tails.values():
                tail.close()
            self._tails.clear()
            os.close(lock)

    async def step(self) -> int:
        """Commit one batch and delete what is empty; returns how many records it held."""
        batch = await self._reading()
        await self._store(batch)
        return batch.size

    def _reading(self) -> asyncio.Future[Batch]:
        """The next batch, read by a thread: a proxy's loop has answers to send meanwhile."""
        return asyncio.get_running_loop().run_in_executor(self._reader, self._read)

    def _read(self) -> Batch:
        payloads = self._gathered()
        rows, letters = _unpacked(payloads)
        return Batch(len(payloads), rows, letters, [tail for tail in list(self._tails.values()) if tail.ended])

    async def _store(self, batch: Batch) -> None:
        await self._commit(batch.rows)
        if batch.letters:
            await self._bury(batch.letters)
        for tail in batch.ended:
            self._forget(tail)

    def _gathered(self) -> list[bytes]:
        """Up to BATCH records of all segments, the oldest first."""
        payloads: list[bytes] = []
        for path in segments(self._directory):
            with contextlib.suppress(FileNotFoundError, ValueError):
                tail = self._tails.get(path)
                if tail is None:
                    tail = self._tails[path] = SegmentTail(path)
                payloads += tail.take(BATCH - len(payloads))
        return payloads

    def _forget(self, tail: SegmentTail) -> None:
        if self._tails.get(tail.path) is not tail:
            return  # went with the batch before
        if tail.damaged:
            logger.error("%d bytes in the journal segment %s were damaged", tail.damaged, tail.path.name)
        # in this order: the reading thread meets it as ended, or not at all
        tail.remove()
        del self._tails[tail.path]

    async def _commit(self, rows: Sequence[ExchangeRow]) -> None:
        """All of them, or, where one cannot be stored, all but that one, which goes to the dead letters."""
        if not rows:
            return
        attempt = 0
        while True:
            try:
                self.recorded += await self._target.record(rows)
            except (StorageError, SQLAlchemyError, OSError, ValueError, TypeError, OverflowError) as error:
                if blames_the_row(error):
                    await self._isolate(rows, error)
                    return
                await self._wait(attempt, error, len(rows))
                attempt += 1
            else:
                self.failing = None
                return

    async def _isolate(self, rows: Sequence[ExchangeRow], error: Exception) -> None:
        if len(rows) == 1:
            await self._bury([(pack(rows[0]), _reason(error))])
            return
        middle = len(rows) // 2
        await self._commit(rows[:middle])
        await self._commit(rows[middle:])

    async def _bury(self, letters: Sequence[Letter]) -> None:
        attempt = 0
        while True:
            try:
                await self._target.bury(letters, now=self._now())
            except (StorageError, SQLAlchemyError, OSError) as error:
                await self._wait(attempt, error, len(letters))
                attempt += 1
            else:
                self.buried += len(letters)
                for _, reason in letters:
                    logger.error("an exchange went to the dead letters: %s", reason)
                return

    async def _wait(self, attempt: int, error: Exception, count: int) -> None:
        delay = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
        self.failing = str(error) if isinstance(error, StorageError) else type(error).__name__
        logger.warning("%s; %d exchanges wait in the journal, next attempt in %.1f s", self.failing, count, delay)
        await asyncio.sleep(delay)

    def _sweep(self) -> None:
        """Remove what processes left that died while they made a segment."""
        for path in self._directory.glob(f".*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def _unpacked(payloads: Sequence[bytes]) -> tuple[list[ExchangeRow], list[Letter]]:
    rows, letters = [], []
    for payload in payloads:
        try:
            rows.append(unpack(payload))
        except CorruptRecord as error:
            letters.append((payload, str(error)))
    return rows, letters


def _reason(error: Exception) -> str:
    # the exception's own text may quote the row, and with it a user's words
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return f"{type(error).__name__}{f' {state}' if state else ''}"
