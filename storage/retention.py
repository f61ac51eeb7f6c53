"""What is taken away again: contents after their days, verdicts after theirs, a person's exchanges when asked.

An exchange whose audit is not finished is never touched: it must first end in its audits or in a reason why not. What
an answer said stands in three places, and goes from all at once: the exchange, the texts of the audit's tokens
(`audits.pieces`) and the ids among its scores. What is left of the scores still gives the same evidence again.

Work is done in small transactions, so that nobody waits for it; on Postgres the partition of a day is dropped once
nothing is left in it.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage import partitions
from storage.database import Database
from storage.models import Audit, Erasure, Exchange, Job, JobState, Retention
from storage.retention_rule import Rule
from storage.scores import without_ids

CHUNK = 500

_Take = Callable[[AsyncSession, Sequence[str], datetime], Awaitable[None]]


@dataclass(kw_only=True)
class Purged:
    """What a purge took away."""

    redacted: int = 0
    exchanges: int = 0
    audits: int = 0
    partitions: int = 0


async def set_rules(session: AsyncSession, upstreams: Sequence[str], rules: Sequence[Rule]) -> None:
    """Put these in place of the rules of `upstreams`; those of others stay."""
    await session.execute(delete(Retention).where(Retention.upstream.in_(upstreams)))
    session.add_all(Retention(**vars(rule)) for rule in rules)


async def rules(session: AsyncSession) -> list[Rule]:
    """The rules in force."""
    rows = await session.scalars(select(Retention).order_by(Retention.upstream))
    names = ("upstream", "payload_days", "verdict_days", "redact_verified")
    return [Rule(**{name: getattr(row, name) for name in names}) for row in rows]


async def purge(database: Database, *, now: datetime) -> Purged:
    """Take away what is past its days at `now`, by the rules in force."""
    purged = Purged()
    async with database.reading() as session:
        in_force = await rules(session)
        on_postgres = session.get_bind().dialect.name == "postgresql"
    for rule in in_force:
        if rule.redact_verified:
            purged.redacted += await _all(database, _ended(rule.upstream, Exchange.redacted_at.is_(None)), _redact, now)
        if rule.payload_days is not None:
            past = Exchange.created_at < now - timedelta(days=rule.payload_days)
            purged.exchanges += await _all(database, _ended(rule.upstream, past), _delete, now)
        if rule.verdict_days is not None:
            purged.audits += await _delete_audits(database, rule.upstream, now - timedelta(days=rule.verdict_days))
    if on_postgres:
        purged.partitions = await _drop_empty_days(database, now)
    return purged


async def erase(database: Database, user_hash: str, *, now: datetime) -> int:
    """Delete all exchanges of a user, audited or not; what still comes of them is not written. Returns how many."""
    async with database.writing() as session:
        await session.merge(Erasure(user_hash=user_hash, erased_at=now))
    return await _all(database, select(Exchange.id).where(Exchange.user_hash == user_hash), _delete, now)


async def _all(database: Database, query: Select[Any], take: _Take, now: datetime) -> int:
    """Apply `take` to everything that the query finds, CHUNK at a time."""
    total = 0
    while True:
        async with database.writing() as session:
            ids = list(await session.scalars(query.limit(CHUNK)))
            if not ids:
                return total
            await _strip_audits(session, ids)
            await take(session, ids, now)
            total += len(ids)


def _ended(upstream: str, condition: ColumnElement[bool]) -> Select[Any]:
    """Ids of an upstream's exchanges whose audit has ended, or that had none."""
    waiting = exists().where(Job.exchange_id == Exchange.id, Job.state.in_([JobState.TODO, JobState.LEASED]))
    return select(Exchange.id).where(Exchange.upstream == upstream, condition, ~waiting)


async def _redact(session: AsyncSession, ids: Sequence[str], now: datetime) -> None:
    emptied = {"request": {}, "response": {}, "redacted_at": now}
    await session.execute(update(Exchange).where(Exchange.id.in_(ids)).values(emptied))


async def _delete(session: AsyncSession, ids: Sequence[str], now: datetime) -> None:  # noqa: ARG001 (as _redact)
    await session.execute(delete(Job).where(Job.exchange_id.in_(ids)))
    await session.execute(delete(Exchange).where(Exchange.id.in_(ids)))


async def _strip_audits(session: AsyncSession, ids: Sequence[str]) -> None:
    """Take what the answers said out of their audits."""
    said = or_(Audit.pieces.is_not(None), Audit.scores.is_not(None))
    for audit in await session.scalars(select(Audit).where(Audit.exchange_id.in_(ids), said)):
        audit.pieces = None
        audit.scores = None if audit.scores is None else without_ids(audit.scores)


async def _delete_audits(database: Database, upstream: str, limit: datetime) -> int:
    total = 0
    while True:
        async with database.writing() as session:
            old = select(Audit.exchange_id).where(Audit.upstream == upstream, Audit.created_at < limit)
            ids = list(await session.scalars(old.distinct().limit(CHUNK)))
            if not ids:
                return total
            await session.execute(delete(Audit).where(Audit.exchange_id.in_(ids)))
            total += len(ids)


async def _drop_empty_days(database: Database, now: datetime) -> int:
    """Drop the partitions of past days that hold nothing any more."""
    async with database.writing() as session:
        oldest = await session.scalar(select(Exchange.created_at).order_by(Exchange.created_at).limit(1))
        today = now.astimezone(timezone.utc)
        return len(await partitions.drop_before(session, min(oldest or today, today - timedelta(days=1))))
