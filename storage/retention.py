"""What is taken away again: contents after their days, verdicts after theirs, a person's exchanges when asked.

An exchange whose audit is not finished is never touched: it must first end in its audits or in a reason why not. What
an answer said stands in three places, and goes from all at once: the exchange, the texts of the audit's tokens
(`audits.pieces`) and the ids among its scores. What is left of the scores still gives the same evidence again.

Work is done in small transactions, so that nobody waits for it; what they concern is found outside of them. A purge
notes how far it has come (`retention.emptied_to`, `deleted_to`), so that the next one need not look at all again. On
Postgres the partition of a day is dropped as a whole where all that it holds is past its days, else once it is empty.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage import partitions
from storage.database import Database
from storage.jobs import unfinished
from storage.models import Audit, Erasure, Exchange, Job, Retention
from storage.models_reaudits import Reaudit
from storage.retention_rule import Rule
from storage.scores import without_ids

CHUNK = 100
LATE = timedelta(days=1)
"""A record may be that late in the database and is still found by the next purge."""

Pace = Callable[[float], Awaitable[None]]
"""Called after each small transaction with the seconds that it took."""
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
    kept = [rule.upstream for rule in rules]
    gone = Retention.upstream.in_(upstreams) & Retention.upstream.not_in(kept)
    await session.execute(delete(Retention).where(gone))
    for rule in rules:
        await session.merge(Retention(**vars(rule)))  # how far the last purge came stays


async def rules(session: AsyncSession) -> list[Rule]:
    """The rules in force."""
    rows = await session.scalars(select(Retention).order_by(Retention.upstream))
    names = ("upstream", "payload_days", "verdict_days", "redact_verified")
    return [Rule(**{name: getattr(row, name) for name in names}) for row in rows]


async def at_once(seconds: float) -> None:
    """The pace of somebody who waits for the end."""


async def purge(database: Database, *, now: datetime, again: bool = True, pace: Pace = at_once) -> Purged:
    """Take away what is past its days at `now`, by the rules in force.

    With `again` everything is looked at; without it what came since the last purge, or up to `LATE` before it.
    """
    purged = Purged()
    async with database.reading() as session:
        in_force = list(await session.scalars(select(Retention).order_by(Retention.upstream)))
        on_postgres = session.get_bind().dialect.name == "postgresql"
    if on_postgres:
        await _drop_days(database, in_force, purged, now, pace)
    for rule in in_force:
        if rule.redact_verified:
            since = None if again else rule.emptied_to
            reached = await _oldest_waiting(database, rule.upstream, before=now)
            full = Exchange.redacted_at.is_(None)
            purged.redacted += await _all(database, _ended(rule.upstream, full, since=since), _redact, now, pace)
            await _note(database, rule.upstream, emptied_to=reached - LATE)
        if rule.payload_days is not None:
            since, limit = None if again else rule.deleted_to, now - timedelta(days=rule.payload_days)
            reached = await _oldest_waiting(database, rule.upstream, before=limit)
            past = Exchange.created_at < limit
            purged.exchanges += await _all(database, _ended(rule.upstream, past, since=since), _delete, now, pace)
            await _note(database, rule.upstream, deleted_to=reached - LATE)
        if rule.verdict_days is not None:
            limit = now - timedelta(days=rule.verdict_days)
            purged.audits += await _delete_audits(database, rule.upstream, limit, pace)
    if on_postgres:
        await _drop_days(database, (), purged, now, pace)  # those that are empty now
    return purged


async def _drop_days(
    database: Database, in_force: Sequence[Retention], purged: Purged, now: datetime, pace: Pace
) -> None:
    """Drop the partitions of past days that hold nothing, or nothing but what is past its days."""
    async with database.reading() as session:
        days = await partitions.days_before(session, now - timedelta(days=1))
    for day in days:
        first, end = partitions.bounds(day)
        past = [
            rule.upstream for rule in in_force
            if rule.payload_days is not None and end <= now - timedelta(days=rule.payload_days)
        ]  # fmt: skip
        of_day = and_(Exchange.created_at >= first, Exchange.created_at < end)
        async with database.reading() as session:
            if not await _is_past(session, of_day, past):
                continue
        purged.exchanges += await _all(database, _exchanges(of_day), _delete_jobs, now, pace)
        async with database.writing() as session:
            await partitions.may_drop(session)
            if await _is_past(session, of_day, past):
                await partitions.drop(session, day)
                purged.partitions += 1


async def _is_past(session: AsyncSession, of_day: ColumnElement[bool], past: Sequence[str]) -> bool:
    """Whether all exchanges of a day are of upstreams for which it is past, and none waits for its audit."""
    others = select(Exchange.id).where(of_day, Exchange.upstream.not_in(past))
    waiting = select(Exchange.id).join(Job, Job.exchange_id == Exchange.id).where(
        of_day, unfinished()
    )
    for query in (others, waiting):
        if await session.scalar(query.limit(1)) is not None:
            return False
    return True


async def erase(database: Database, user_hash: str, *, now: datetime) -> int:
    """Delete all exchanges of a user, audited or not; what still comes of them is not written. Returns how many."""
    async with database.writing() as session:
        await session.merge(Erasure(user_hash=user_hash, erased_at=now))
    return await _all(database, _exchanges(Exchange.user_hash == user_hash), _delete, now, at_once)


async def _all(database: Database, query: Select[str, datetime], take: _Take, now: datetime, pace: Pace) -> int:
    """Apply `take` to everything that the query finds, CHUNK at a time."""
    total = 0
    async for ids in _chunks(database, query):
        started = time.monotonic()
        async with database.writing() as session:
            await _strip_audits(session, ids)
            await take(session, ids, now)
        total += len(ids)
        await pace(time.monotonic() - started)
    return total


async def _chunks(database: Database, query: Select[str, datetime]) -> AsyncIterator[list[str]]:
    """What the query of `_exchanges` finds, in its order; no transaction is open between the chunks."""
    behind: ColumnElement[bool] | None = None
    while True:
        async with database.reading() as session:
            found = (await session.execute(query if behind is None else query.where(behind))).all()
        if not found:
            return
        yield [row.id for row in found]
        last = found[-1]
        later = or_(Exchange.created_at > last.created_at, Exchange.id > last.id)
        behind = and_(Exchange.created_at >= last.created_at, later)


def _exchanges(*conditions: ColumnElement[bool]) -> Select[str, datetime]:
    found = select(Exchange.id, Exchange.created_at).where(*conditions)
    return found.order_by(Exchange.created_at, Exchange.id).limit(CHUNK)


def _ended(upstream: str, condition: ColumnElement[bool], *, since: datetime | None) -> Select[str, datetime]:
    """An upstream's exchanges whose audit has ended, or that had none."""
    waiting = exists().where(Job.exchange_id == Exchange.id, unfinished())
    query = _exchanges(Exchange.upstream == upstream, condition, ~waiting)
    return query if since is None else query.where(Exchange.created_at >= since)


async def _oldest_waiting(database: Database, upstream: str, *, before: datetime) -> datetime:
    """When the oldest exchange of an upstream came whose audit has not ended; `before` where none is older."""
    async with database.reading() as session:
        oldest = await session.scalar(select(func.min(Job.created_at)).where(unfinished(), Job.upstream == upstream))
    return before if oldest is None else min(before, oldest)


async def _note(database: Database, upstream: str, **reached: datetime) -> None:
    async with database.writing() as session:
        await session.execute(update(Retention).where(Retention.upstream == upstream).values(**reached))


async def _redact(session: AsyncSession, ids: Sequence[str], now: datetime) -> None:
    emptied = {"request": {}, "response": {}, "redacted_at": now}
    await session.execute(update(Exchange).where(Exchange.id.in_(ids)).values(emptied))


async def _delete_jobs(session: AsyncSession, ids: Sequence[str], now: datetime) -> None:  # noqa: ARG001 (as _redact)
    await session.execute(delete(Job).where(Job.exchange_id.in_(ids)))


async def _delete(session: AsyncSession, ids: Sequence[str], now: datetime) -> None:
    await _delete_jobs(session, ids, now)
    await session.execute(delete(Exchange).where(Exchange.id.in_(ids)))


async def _strip_audits(session: AsyncSession, ids: Sequence[str]) -> None:
    """Take what the answers said out of their audits."""
    said = or_(Audit.pieces.is_not(None), Audit.scores.is_not(None))
    found = list(await session.scalars(select(Audit).where(Audit.exchange_id.in_(ids), said)))
    for audit, scores in zip(found, await asyncio.to_thread(_without_ids, found), strict=True):
        audit.pieces, audit.scores = None, scores


def _without_ids(found: Sequence[Audit]) -> list[bytes | None]:
    return [None if audit.scores is None else without_ids(audit.scores) for audit in found]


async def _delete_audits(database: Database, upstream: str, limit: datetime, pace: Pace) -> int:
    total = 0
    old = select(Audit.exchange_id).where(Audit.upstream == upstream, Audit.created_at < limit).limit(CHUNK)
    while True:
        async with database.reading() as session:
            ids = set(await session.scalars(old))
        if not ids:
            return total
        started = time.monotonic()
        async with database.writing() as session:
            await session.execute(delete(Audit).where(Audit.exchange_id.in_(ids)))
            await session.execute(delete(Reaudit).where(Reaudit.exchange_id.in_(ids)))
        total += len(ids)
        await pace(time.monotonic() - started)
