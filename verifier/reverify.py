"""Old traffic audited again, by another reference or contract, page by page; live audits go first.

A page is kept in one transaction, and what is kept is not done again: a run may stop at any time and go on later.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from storage import exchanges, jobs, reaudits
from storage.audits import NewAudit
from storage.database import Database
from storage.models import Exchange
from storage.reaudits import Key, Selection
from verifier.auditor import Auditor
from verifier.errors import ReferenceModelError
from verifier.pace import size_of
from verifier.throttle import Throttle

PAGE = 8
"""Exchanges that are audited and kept together."""
FRESH_SECONDS = 60.0
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Ask:
    """What a run does: None is the exchange's own reference, and its own contract.

    Attributes:
        tokens_per_second: of prompts and answers, at most; None for no limit.
        fresh_seconds: while a live job has waited for longer, the run pauses.
    """

    selection: Selection
    reference: str | None = None
    sampler: str | None = None
    tokens_per_second: float | None = None
    fresh_seconds: float = FRESH_SECONDS


async def pages(database: Database, selection: Selection) -> AsyncIterator[list[Key]]:
    """What the run still has to do, oldest first."""
    last: Key | None = None
    while True:
        async with database.reading() as session:
            page = await reaudits.left(session, selection, limit=PAGE, after=last)
        if not page:
            return
        yield page
        last = page[-1]


class Reverifier:
    """Audits pages and keeps what it finds. One page at a time."""

    def __init__(self, database: Database, auditor: Auditor, ask: Ask) -> None:
        self._database, self._auditor, self._ask = database, auditor, ask
        self._throttle = Throttle(ask.tokens_per_second)

    async def do(self, page: Sequence[Key]) -> int:
        """Audit a page's exchanges and keep the result; returns how many there still were.

        Raises:
            ReferenceModelError: the reference cannot be used; nothing of the page is kept.
        """
        await self._until_welcome()
        found = await self._read(page)
        self._throttle.add(sum(size_of(one.request, one.response) for one in found), time.monotonic())
        made: list[NewAudit] = []
        for reference, batch in _by_reference(found, self._ask.reference).items():
            made += await asyncio.to_thread(self._audited, reference, batch)
        async with self._database.writing() as session:
            await reaudits.add(session, self._ask.selection.run, made)
        return len(found)

    async def _until_welcome(self) -> None:
        """Wait for the rate, and while live jobs are late."""
        await asyncio.sleep(self._throttle.wait(time.monotonic()))
        while await self._late():  # noqa: ASYNC110 (other processes end it)
            await asyncio.sleep(LOOK_SECONDS)

    async def _late(self) -> bool:
        now = _now()
        async with self._database.reading() as session:
            due = await jobs.due(session, now=now)
        return any((now - oldest).total_seconds() > self._ask.fresh_seconds for _, oldest in due.values())

    async def _read(self, page: Sequence[Key]) -> list[Exchange]:
        async with self._database.reading() as session:
            ids = [key.exchange_id for key in page]
            found = await exchanges.get(session, ids, since=page[0].created_at, until=page[-1].created_at)
        return [found[number] for number in ids if number in found and found[number].redacted_at is None]

    def _audited(self, reference: str, batch: Sequence[Exchange]) -> list[NewAudit]:
        now = _now()
        results = self._auditor.audit_by(reference, batch, sampler=self._ask.sampler, now=now)
        made: list[NewAudit] = []
        for exchange in batch:
            outcome = results[exchange.id]
            if isinstance(outcome, ReferenceModelError):
                raise outcome
            if isinstance(outcome, Exception):
                reason = f"{type(outcome).__name__}: {outcome}"[:500]
                outcome = [self._unverified(exchange, reference, "failed", reason, now)]
            # one without a choice gets its row too, or the run would never be done with it
            made += outcome or [self._unverified(exchange, reference, "unsupported", "no_choices", now)]
        return [self._as_asked(audit) for audit in made]

    def _unverified(self, exchange: Exchange, reference: str, status: str, reason: str, now: datetime) -> NewAudit:
        return NewAudit(
            exchange_id=exchange.id, choice_index=0, created_at=now, upstream=exchange.upstream, model=exchange.model,
            reference=reference, sampler=exchange.sampler, verdict_status=status, reason=reason,
        )  # fmt: skip

    def _as_asked(self, audit: NewAudit) -> NewAudit:
        return replace(audit, sampler=self._ask.sampler or audit.sampler)


def _by_reference(found: Sequence[Exchange], reference: str | None) -> dict[str, list[Exchange]]:
    groups: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in found:
        groups[reference or exchange.reference or ""].append(exchange)
    return dict(groups)


def _now() -> datetime:
    return datetime.now(timezone.utc)
