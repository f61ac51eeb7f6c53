"""The worker: claim, audit, weigh, commit. Any number share one queue; a lost lease undoes only its own work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta, timezone

from sqlalchemy.ext.asyncio import AsyncSession

from storage import audits, exchanges, jobs
from storage.audits import NewAudit
from storage.database import Database
from storage.errors import DatabaseUnreachable, StorageError
from storage.jobs import Claim
from storage.models import Exchange
from storage.streams import StreamKey
from verifier import streams
from verifier.auditor import Results
from verifier.errors import ExecutorLost, ReferenceLost, ReferenceUnreadable
from verifier.executor import Executor
from verifier.pace import Pace, size_of

LEASE = timedelta(minutes=5)
MAX_ATTEMPTS = 5
FIRST_RETRY, LAST_RETRY = timedelta(seconds=5), timedelta(minutes=5)
IDLE_SECONDS = 0.5
AWAY_SECONDS = 2.0

logger = logging.getLogger("seedproof.worker")


class Worker:
    """Audits what the queue holds, a batch of one reference at a time.

    Args:
        database: open database that the proxy records into.
        executor: audits the batches.
        name: shown in the jobs table.
        batch: jobs per claim, at most.
        batch_tokens: tokens of prompts and answers per claim, as far as earlier answers tell.
        lanes: claims worked on at a time: while one is on the reference, others are read, tokenized and stored.
        reference: claim only jobs of this one.
        memory: tells what the GPU holds, for the log.
    """

    def __init__(
        self, database: Database, executor: Executor, *, name: str, batch: int = 8, batch_tokens: int = 65_536,
        lanes: int = 1, reference: str | None = None, memory: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        self._database, self._executor, self._name, self._lanes = database, executor, name, lanes
        self._reference, self._memory = reference, memory
        self.pace = Pace(tokens=batch_tokens, most=batch, now=_now())

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until cancelled, or until no job is left to claim; an error of one lane ends them all."""
        lanes = [asyncio.create_task(self._lane(until_empty)) for _ in range(self._lanes)]
        try:
            await asyncio.gather(*lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)

    async def _lane(self, until_empty: bool) -> None:
        while True:
            try:
                worked = await self.step()
            except (DatabaseUnreachable, ExecutorLost) as error:
                logger.warning("%s; trying again in %.0f s", error, AWAY_SECONDS)
                await asyncio.sleep(AWAY_SECONDS)
                continue
            if worked:
                continue
            if until_empty:
                return
            await asyncio.sleep(IDLE_SECONDS)

    async def step(self) -> int:
        """Claim and finish one batch; returns how many jobs it held.

        Raises:
            ExecutorLost: nobody can audit now; the jobs were given back.
        """
        async with self._database.writing() as session:
            await jobs.release_stalled(session, now=_now(), max_attempts=MAX_ATTEMPTS)
            claims = await jobs.claim(
                session, worker=self._name, limit=self.pace.jobs, lease=LEASE, now=_now(), reference=self._reference
            )
        if not claims:
            return 0
        try:
            found = await self._read(claims)
            for reference in sorted({claim.reference for claim in claims}):
                batch = [claim for claim in claims if claim.reference == reference and claim.exchange_id in found]
                async with self._kept_alive(batch):
                    asked, begun = [found[claim.exchange_id] for claim in batch], time.monotonic()
                    results = await self._executor.audit(reference, asked, now=_now())
                    seconds = time.monotonic() - begun
                await self._finish(batch, results)
                done = [exchange for exchange in asked if not isinstance(results[exchange.id], Exception)]
                self.pace.add([size_of(exchange.request, exchange.response) for exchange in done], seconds)
        except (asyncio.CancelledError, ExecutorLost):
            await self._give_back(claims)
            raise
        await self._tell()
        return len(claims)

    async def _read(self, claims: Sequence[Claim]) -> dict[str, Exchange]:
        """The claims' exchanges. One that is not there was erased meanwhile; its job ends, where it is still there."""
        moments = [claim.created_at for claim in claims]
        async with self._database.reading() as session:
            ids = [claim.exchange_id for claim in claims]
            found = await exchanges.get(session, ids, since=min(moments), until=max(moments))
        for claim in claims:
            if claim.exchange_id not in found:
                async with self._database.writing() as session:
                    await jobs.fail(session, claim, reason="its exchange is no longer there")
        return found

    async def _give_back(self, claims: Sequence[Claim]) -> None:
        """For a worker that stops or cannot audit: others need not wait for the leases' end. What is done stays so."""
        with contextlib.suppress(StorageError):
            async with self._database.writing() as session:
                await jobs.give_back(session, claims)

    async def _tell(self) -> None:
        if self.pace.is_due(_now()):
            async with self._database.reading() as session:
                backlog = await jobs.pending(session)
            waiting = backlog.todo + backlog.leased
            logger.info(self.pace.told(_now(), waiting=waiting, oldest=backlog.oldest, memory=self._memory()))

    async def _finish(self, batch: Sequence[Claim], results: Results) -> None:
        """Store what was found. While the database is away it waits here, rather than to be found again."""
        for claim in batch:
            give_up = _now() + LEASE
            while True:
                try:
                    await self._store(claim, results[claim.exchange_id])
                    break
                except DatabaseUnreachable as error:
                    if _now() > give_up:
                        raise
                    logger.warning("%s; %d audits wait", error, len(batch))
                    await asyncio.sleep(AWAY_SECONDS)

    async def _store(self, claim: Claim, outcome: list[NewAudit] | Exception) -> None:
        async with self._database.writing() as session:
            if isinstance(outcome, Exception):
                await _put_back(session, claim, outcome)
            elif await jobs.complete(session, claim):
                await audits.add(session, outcome)
                for key in {stream_of(audit) for audit in outcome}:
                    await streams.weigh(session, claim.exchange_id, key, now=_now())

    @contextlib.asynccontextmanager
    async def _kept_alive(self, claims: Sequence[Claim]) -> AsyncIterator[None]:
        beating = asyncio.create_task(self._beat(claims))
        try:
            yield
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating

    async def _beat(self, claims: Sequence[Claim]) -> None:
        while True:
            await asyncio.sleep(LEASE.total_seconds() / 3)
            try:
                async with self._database.writing() as session:
                    await jobs.heartbeat(session, claims, lease=LEASE, now=_now())
            except DatabaseUnreachable as error:
                logger.warning("%s; the leases were not renewed", error)


def stream_of(audit: NewAudit) -> StreamKey:
    """The stream that an audit belongs to."""
    return StreamKey(audit.upstream, audit.model, audit.reference, audit.sampler or "")


async def _put_back(session: AsyncSession, claim: Claim, error: Exception) -> None:
    """Try the job again later; give it up after MAX_ATTEMPTS, unless the fault is our reference's and not its own."""
    reason = f"{type(error).__name__}: {error}"[:500]
    ours = isinstance(error, (ReferenceUnreadable, ReferenceLost))
    if claim.attempts >= MAX_ATTEMPTS and not ours:
        await jobs.fail(session, claim, reason=reason)
        return
    wait = min(FIRST_RETRY * 2 ** min(claim.attempts - 1, 10), LAST_RETRY)
    # apart, so that jobs which broke together are not tried together again
    await jobs.retry(session, claim, at=_now() + wait * random.uniform(0.5, 1.5), reason=reason)


def _now() -> datetime:
    return datetime.now(timezone.utc)
