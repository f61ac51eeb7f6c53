"""From finished exchanges to durable records: packed, sealed where keys are given, and appended to the journal.

`put` never waits and never raises. In `strict` mode a handler awaits what `put` returned before it sends the last
bytes of an answer: what a client has received in full is then on disk. In `fast` mode it does not wait, and the last
group (at most one sync, some 10 ms) can be lost with the machine or the process. What cannot be recorded is counted,
logged by its id, and, where the configuration says `fail_closed`, not acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from storage.errors import JournalFull
from storage.exchange_codec import Seal, pack, row_of
from storage.exchanges import NewExchange
from storage.journal import Journal
from storage.writer import Writer

logger = logging.getLogger(__name__)

WATERMARK = 0.5
"""Share of the journal's cap at which the proxy says that it is not well, while it still takes everything."""
DRAIN_SECONDS = 30.0
_LOOK_SECONDS = 0.02
_RESTART_SECONDS = 1.0


@dataclass(frozen=True)
class Health:
    """What the recorder tells of itself. `problem` is one sentence when somebody should look, else None."""

    problem: str | None
    journal_bytes: int
    journal_oldest_seconds: float
    max_bytes: int
    recorded: int
    lost: int
    dead_letters: int


class Recorder:
    """`recorded` counts exchanges on disk since the start, `lost` those that are nowhere; it must stay 0.

    Args:
        journal: open; takes the records.
        writer: moves them into the database, when its turn comes; None where another process does.
        strict: whether `durable` waits for the disk.
        fail_closed: whether an exchange that cannot be recorded must not be answered.
        seal: applied to requests and answers before they touch the disk.
    """

    def __init__(
        self, journal: Journal, writer: Writer | None, *, strict: bool = True, fail_closed: bool = False,
        seal: Seal | None = None,
    ) -> None:  # fmt: skip
        self._journal, self._writer = journal, writer
        self._strict, self._fail_closed, self._seal = strict, fail_closed, seal
        self.lost = 0

    @property
    def recorded(self) -> int:
        return self._journal.appended

    @property
    def waiting(self) -> int:
        """Bytes of the journal's segments: what waits for the database, and up to a segment that does not any more."""
        return self._journal.used

    @property
    def accepting(self) -> bool:
        """Whether a new request may be taken: under `fail_closed` not while the journal cannot keep it."""
        full = self._journal.used >= self._journal.max_bytes or self._journal.failure is not None
        return not (full and self._fail_closed)

    def put(self, exchange: NewExchange) -> asyncio.Future[None]:
        """Hand over one finished exchange. The future is done when it is on disk, or has JournalFull."""
        try:
            future = self._journal.append(pack(row_of(exchange, self._seal)))
        except Exception as error:
            logger.exception("exchange %s could not be packed", exchange.id)
            future = asyncio.get_running_loop().create_future()
            future.set_exception(JournalFull(f"exchange {exchange.id} could not be packed: {type(error).__name__}"))
        future.add_done_callback(lambda done: self._note(exchange.id, done))
        return future

    async def durable(self, record: asyncio.Future[None]) -> None:
        """Wait until the answer of a record may be acknowledged.

        Raises:
            JournalFull: it must not be, since it cannot be recorded (`fail_closed`).
        """
        if not self._strict:
            return
        try:
            await asyncio.shield(record)  # its client may leave; its failure must be counted all the same
        except JournalFull:
            if self._fail_closed:
                raise

    async def drained(self) -> None:
        """Wait until everything handed over so far is in the database, or among its dead letters."""
        while self._journal.unsynced:  # noqa: ASYNC110 (another thread's work)
            await asyncio.sleep(_LOOK_SECONDS)
        self._journal.seal()
        left = self._journal.own_segments()
        while left & self._journal.own_segments():  # noqa: ASYNC110 (of other processes no event tells)
            await asyncio.sleep(_LOOK_SECONDS)

    @contextlib.asynccontextmanager
    async def running(self, *, drain_seconds: float = DRAIN_SECONDS) -> AsyncIterator[None]:
        """Writes until the block ends, then what is left, for at most `drain_seconds`; the rest stays on disk."""
        task = None if self._writer is None else asyncio.create_task(_write(self._writer), name="writer")
        try:
            yield
            if task is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.drained(), drain_seconds)
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def health(self) -> Health:
        """How the records fare, now."""
        return Health(
            problem=self._problem(), journal_bytes=self._journal.used,
            journal_oldest_seconds=self._journal.oldest_seconds, max_bytes=self._journal.max_bytes,
            recorded=self.recorded, lost=self.lost, dead_letters=self._writer.buried if self._writer else 0,
        )  # fmt: skip

    def _problem(self) -> str | None:
        if self._journal.failure is not None:
            return self._journal.failure
        share = self._journal.used / self._journal.max_bytes
        if share >= WATERMARK:
            reason = self._writer and self._writer.failing
            return f"the journal is {share:.0%} full: {reason or 'the database does not keep up'}"
        return None

    def _note(self, exchange_id: str, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self.lost += 1
            logger.error("exchange %s is not recorded: %s", exchange_id, error)


async def _write(writer: Writer) -> None:
    while True:
        try:
            await writer.run()
        except Exception:
            logger.exception("the writer stopped; it starts again, and nothing is lost meanwhile")
            await asyncio.sleep(_RESTART_SECONDS)
