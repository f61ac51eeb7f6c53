"""The list of exchanges: filters, pages, and the search for an id. Every query looks at a bounded number of rows."""

import contextlib
import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Subquery, and_, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from storage.jobs import unfinished
from storage.models import Audit, Exchange, Job, JobState, Outcome, VerdictStatus
from storage.streams import StreamKey

MOST_SEEN = 1_000
"""Exchanges that one page looks at to find those that its filters ask for; the next page goes on from there."""
NEWEST_SEEN = 10_000
"""Exchanges among which a part of an id is looked for; a whole id, or its beginning, is found among all."""
SHORTEST_PART = 4
FEWEST_TOKENS = 20
"""Below, a single near-tie decides whether an answer is among the worst."""
_DAY = timedelta(days=1)
_NARROWING = ("upstream", "model", "outcome", "auditing", "match_below")
_COLUMNS: tuple[Any, ...] = (
    Exchange.id, Exchange.created_at, Exchange.upstream, Exchange.model, Exchange.streamed, Exchange.status,
    Exchange.outcome, Exchange.total_seconds, Exchange.audit, Exchange.unaudited_reason,
)  # fmt: skip
_AUDITED: tuple[Any, ...] = (
    Audit.choice_index, Audit.verdict_status, Audit.reason, Audit.reference, Audit.sampler, Audit.token_source,
    Audit.tokens, Audit.exact_matches, Audit.exact_match_rate, Audit.outside_support, Audit.ambiguous_tokens,
    Audit.clipped_margin, Audit.created_at.label("audited_at"),
)  # fmt: skip


class Auditing(str, enum.Enum):
    """What became of an exchange, as the list's filter names it."""

    VERIFIED = "verified"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    GIVEN_UP = "given_up"
    """Its job failed for good."""
    WAITING = "waiting"
    """It has a job and no audit yet."""
    UNAUDITED = "unaudited"
    """It has a reason why not."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What the list shows; None for all."""

    upstream: str | None = None
    model: str | None = None
    outcome: str | None = None
    auditing: Auditing | None = None
    match_below: float | None = None
    """Only choices with a lower match rate."""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def narrow(self) -> bool:
        """Whether any exchange of the period can be left out."""
        return any(getattr(self, name) is not None for name in _NARROWING)


@dataclass(frozen=True, order=True)
class Cursor:
    """The place of an exchange in the list, which has the newest first."""

    created_at: datetime
    id: str


@dataclass(frozen=True)
class Page:
    """`rows` are exchanges joined with their choices' audits; `seen_back_to` is where the next page begins.

    None there means that there is nothing older.
    """

    rows: Sequence[Any]
    seen_back_to: Cursor | None


async def page(
    session: AsyncSession, filters: Filters, *, before: Cursor | None = None, limit: int = 50
) -> Page:
    """The next choices older than `before`: as many as `limit`, or those among the next `MOST_SEEN` exchanges."""
    seen = MOST_SEEN if filters.narrow else limit + 1
    rows = await _rows(session, _joined(_window(filters, before, seen), filters).limit(limit + 1))
    if len(rows) > limit:
        return Page(rows[:limit], Cursor(rows[limit - 1].created_at, rows[limit - 1].id))
    last = await session.execute(_window(filters, before, 1).offset(seen - 1))
    return Page(rows, next((Cursor(row.created_at, row.id) for row in last), None))


async def find(session: AsyncSession, text: str, *, limit: int = 50) -> Sequence[Any]:
    """Exchanges whose id begins with the text, or holds it if they are among the `NEWEST_SEEN`; rows as of `page`."""
    begins = and_(Exchange.id >= text, Exchange.id < text + "\U0010ffff")
    for where in (*_days_of(text), begins):
        found = select(*_COLUMNS).where(begins, where).order_by(Exchange.id.desc()).limit(limit)
        if rows := await _rows(session, _joined(found, Filters())):
            return rows
    if len(text) < SHORTEST_PART:
        return []
    newest = _window(Filters(), None, NEWEST_SEEN).subquery()
    holding = select(newest).where(newest.c.id.contains(text, autoescape=True)).limit(limit)
    return await _rows(session, _joined(holding, Filters()))


async def latest(session: AsyncSession, key: StreamKey, *, limit: int = 20) -> Sequence[Any]:
    """A stream's newest weighed audits, without their long columns."""
    return await _rows(session, _weighed(key).limit(limit))


async def worst(session: AsyncSession, key: StreamKey, *, among: int = 1_000, limit: int = 20) -> Sequence[Any]:
    """Of a stream's newest audits those with the lowest match rate; of answers of at least `FEWEST_TOKENS`."""
    newest = _weighed(key).limit(among).subquery()
    judged = select(newest).where(newest.c.exact_match_rate.is_not(None), newest.c.tokens >= FEWEST_TOKENS)
    query = judged.order_by(newest.c.exact_match_rate, newest.c.exchange_id).limit(limit)
    return await _rows(session, query)


async def exchange(session: AsyncSession, exchange_id: str) -> tuple[Exchange | None, Sequence[Audit], Job | None]:
    """One exchange, its audits in the order of their choices, and its job; the audits may outlive the exchange."""
    audits = select(Audit).where(Audit.exchange_id == exchange_id).order_by(Audit.choice_index)
    return (
        await _exchange(session, exchange_id),
        (await session.scalars(audits)).all(),
        (await session.scalars(select(Job).where(Job.exchange_id == exchange_id))).first(),
    )


async def _exchange(session: AsyncSession, exchange_id: str) -> Exchange | None:
    named = Exchange.id == exchange_id
    for where in (*_days_of(exchange_id), named):
        if (found := (await session.scalars(select(Exchange).where(named, where))).first()) is not None:
            return found
    return None


def _days_of(exchange_id: str) -> Iterator[ColumnElement[bool]]:
    """Where to look first: the days around the time that a UUID of version 7 names, three tables of many on Postgres.

    RFC 9562, section 5.7: its first 48 bits are milliseconds since 1970.
    """
    with contextlib.suppress(ValueError, OverflowError):
        identifier = UUID(exchange_id)
        if identifier.version == 7:
            made = datetime.fromtimestamp((identifier.int >> 80) / 1e3, timezone.utc)
            yield Exchange.created_at.between(made - _DAY, made + _DAY)


async def _rows(session: AsyncSession, query: Select[Any]) -> list[Any]:
    return list(await session.execute(query))


def _window(filters: Filters, before: Cursor | None, size: int) -> Select[Any]:
    """The newest exchanges of a period, found by the index on `created_at`, whatever else is asked of them.

    Those that went wrong are few and have an index of their own.
    """
    query = select(*_COLUMNS)
    if filters.outcome is not None and filters.outcome != Outcome.COMPLETE:
        # literal, not bound: a planner uses a partial index only where it can see the condition
        complete = literal(Outcome.COMPLETE, Exchange.outcome.type, literal_execute=True)
        query = query.where(Exchange.outcome != complete, Exchange.outcome == filters.outcome)
    if filters.since is not None:
        query = query.where(Exchange.created_at >= filters.since)
    if filters.until is not None:
        query = query.where(Exchange.created_at < filters.until)
    if before is not None:
        # the first condition is implied by the second, and is the one that an index on created_at alone can use
        place = (before.created_at, before.id)
        query = query.where(
            Exchange.created_at <= before.created_at, tuple_(Exchange.created_at, Exchange.id) < place
        )
    return query.order_by(Exchange.created_at.desc(), Exchange.id.desc()).limit(size)


def _joined(exchanges: Select[Any], filters: Filters) -> Select[Any]:
    """Exchanges with their choices' audits and their job's state, the newest first."""
    seen = exchanges.subquery("seen")
    query = (
        select(seen, *_AUDITED, Job.state.label("job_state"), Job.reason.label("job_reason"))
        .outerjoin(Audit, Audit.exchange_id == seen.c.id)
        .outerjoin(Job, Job.exchange_id == seen.c.id)
        .where(*_conditions(seen, filters))
    )
    return query.order_by(seen.c.created_at.desc(), seen.c.id.desc(), Audit.choice_index)


def _conditions(seen: Subquery, filters: Filters) -> Iterator[ColumnElement[bool]]:
    for name in ("upstream", "model", "outcome"):
        if getattr(filters, name) is not None:
            yield seen.c[name] == getattr(filters, name)
    if filters.match_below is not None:
        yield Audit.exact_match_rate < filters.match_below
    if filters.auditing is Auditing.UNAUDITED:
        yield seen.c.audit.is_(False)
    elif filters.auditing is Auditing.WAITING:
        yield unfinished()
    elif filters.auditing is Auditing.GIVEN_UP:
        yield Job.state == JobState.FAILED
    elif filters.auditing is not None:
        yield Audit.verdict_status == VerdictStatus(filters.auditing.value)


def _weighed(key: StreamKey) -> Select[Any]:
    """A stream's audits, the newest first, by the index that names them."""
    sampler = Audit.sampler == key.sampler if key.sampler else Audit.sampler.is_(None)
    named = (Audit.upstream == key.upstream, Audit.model == key.model, Audit.reference == key.reference)
    query = select(Audit.exchange_id, *_AUDITED).where(*named, sampler, Audit.stream_position.is_not(None))
    return query.order_by(Audit.stream_position.desc())
