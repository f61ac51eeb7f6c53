"""From finished exchanges to committed rows: a bounded queue and one task that writes batches.

`put` never waits and never raises, so that no answer waits for the database. An exchange and its job commit
in one transaction. What cannot be recorded is counted and logged by its id; it is never dropped in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from storage.errors import DatabaseUnreachable, StorageError
from storage.exchanges import NewExchange

logger = logging.getLogger(__name__)

CAPACITY = 10_000
BATCH = 200
RETRY_SECONDS = (0.1, 0.5, 2.0, 5.0)
DRAIN_SECONDS = 30.0


class Store(Protocol):
    """Where a batch goes: one transaction, idempotent by exchange id."""

    async def record(self, exchanges: Sequence[NewExchange]) -> None: ...


class Recorder:
    """`recorded` and `lost` count exchanges since the start; `lost` must stay 0."""

    def __init__(self, store: Store, *, capacity: int = CAPACITY) -> None:
        self._store = store
        self._queue: asyncio.Queue[NewExchange] = asyncio.Queue(capacity)
        self.recorded = 0
        self.lost = 0

    @property
    def waiting(self) -> int:
        """Exchanges that are not committed yet, without the batch in hand."""
        return self._queue.qsize()

    def put(self, exchange: NewExchange) -> None:
        """Hand over one finished exchange."""
        try:
            self._queue.put_nowait(exchange)
        except asyncio.QueueFull:
            self._lose(exchange, "the queue is full")

    async def drained(self) -> None:
        """Wait until everything handed over so far is committed or counted as lost."""
        await self._queue.join()

    @contextlib.asynccontextmanager
    async def running(self, *, drain_seconds: float = DRAIN_SECONDS) -> AsyncIterator[None]:
        """Writes until the block ends, then what is left, for at most `drain_seconds`."""
        task = asyncio.create_task(self._write_forever(), name="recorder")
        try:
            yield
        finally:
            with contextlib.suppress(asyncio.TimeoutError):  # those left over are counted and logged below
                await asyncio.wait_for(self.drained(), drain_seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._lose_the_rest()

    async def _write_forever(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._write(batch)
            except asyncio.CancelledError:
                for exchange in batch:
                    self._lose(exchange, "shut down before it was committed")
                raise
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _write(self, batch: Sequence[NewExchange]) -> None:
        attempt = 0
        while True:
            try:
                await self._store.record(batch)
            except DatabaseUnreachable as error:
                delay = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
                logger.warning("%s; %d exchanges wait, next attempt in %.1f s", error, len(batch), delay)
                attempt += 1
                await asyncio.sleep(delay)
            except Exception as error:
                await self._isolate(batch, error)
                return
            else:
                self.recorded += len(batch)
                return

    async def _isolate(self, batch: Sequence[NewExchange], error: Exception) -> None:
        """One poisonous exchange must not take its neighbours along: halve until it stands alone."""
        if len(batch) == 1:
            self._lose(batch[0], str(error) if isinstance(error, StorageError) else type(error).__name__)
            return
        middle = len(batch) // 2
        await self._write(batch[:middle])
        await self._write(batch[middle:])

    def _lose_the_rest(self) -> None:
        while not self._queue.empty():
            self._lose(self._queue.get_nowait(), "shut down before it was committed")

    def _lose(self, exchange: NewExchange, reason: str) -> None:
        self.lost += 1
        # the exception's own text may quote the row, and with it a user's words
        logger.error("exchange %s is not recorded: %s", exchange.id, reason)
