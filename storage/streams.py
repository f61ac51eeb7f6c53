"""Streams: which audits are still to be weighed, in which order, and what was made of them.

A worker's transaction hands out places (`place`), reads the stream (`locked`), weighs and keeps it (`keep`): each audit
is weighed exactly once, and `weighed` gives all of them in that order again.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from storage.database import insert_new
from storage.models import Audit, Stream


@dataclass(frozen=True, order=True)
class StreamKey:
    """What names a stream; `sampler` is empty where the configuration names none."""

    upstream: str
    model: str
    reference: str
    sampler: str

    @classmethod
    def of(cls, row: Audit | Stream) -> "StreamKey":
        """The stream of an audit, or of a stream's own row."""
        return cls(row.upstream, row.model, row.reference, row.sampler or "")


async def locked(session: AsyncSession, key: StreamKey, *, now: datetime) -> Stream:
    """The stream's row, made where there is none, and nobody else's until the transaction ends.

    Change its attributes to keep what was weighed; a new one has `audits` 0 and an empty `state`.
    """
    values: dict[str, Any] = {
        **vars(key), "updated_at": now, "audits": 0, "requests": 0, "tokens": 0, "verdict": "inconclusive",
        "reasons": ["no_data"], "log_e": 0.0, "detail": {}, "state": {},
    }  # fmt: skip
    await insert_new(session, Stream, [values])
    query = select(Stream).where(*(getattr(Stream, name) == value for name, value in vars(key).items()))
    return (await session.scalars(query.with_for_update(), execution_options={"populate_existing": True})).one()


async def place(session: AsyncSession, exchange_id: str, stream: Stream) -> list[Audit]:
    """Audits of an exchange that have no place yet, placed at the stream's end in the order of their choices."""
    query = select(Audit).where(Audit.exchange_id == exchange_id, Audit.stream_position.is_(None))
    audits = list(await session.scalars(query.order_by(Audit.choice_index)))
    for audit in audits:
        stream.audits += 1
        audit.stream_position = stream.audits
    return audits


async def weighed(
    session: AsyncSession, key: StreamKey, *, since: datetime | None = None, exchange_ids: Sequence[str] | None = None
) -> AsyncIterator[Audit]:
    """A stream's audits in the order in which they were weighed; made at or after `since`, of these exchanges."""
    query = select(Audit).where(_in(key), Audit.stream_position.is_not(None))
    if since is not None:
        query = query.where(Audit.created_at >= since)
    if exchange_ids is not None:
        query = query.where(Audit.exchange_id.in_(exchange_ids))
    rows = await session.stream_scalars(query.order_by(Audit.stream_position).execution_options(yield_per=100))
    async for audit in rows:
        yield audit


async def every(session: AsyncSession, *, upstream: str | None = None) -> Sequence[Stream]:
    """All streams, or one upstream's, in the order of their keys."""
    query = select(Stream).order_by(Stream.upstream, Stream.model, Stream.reference, Stream.sampler)
    if upstream is not None:
        query = query.where(Stream.upstream == upstream)
    return (await session.scalars(query)).all()


async def standing(session: AsyncSession, *, upstream: str | None = None) -> Sequence[Stream]:
    """As `every`, but without `state`, which is large and only weighed on: reading it is an error."""
    query = select(Stream).options(defer(Stream.state, raiseload=True))
    if upstream is not None:
        query = query.where(Stream.upstream == upstream)
    ordered = query.order_by(Stream.upstream, Stream.model, Stream.reference, Stream.sampler)
    return (await session.scalars(ordered)).all()


def _in(key: StreamKey) -> ColumnElement[bool]:
    sampler = Audit.sampler == key.sampler if key.sampler else Audit.sampler.is_(None)
    named = (Audit.upstream == key.upstream, Audit.model == key.model, Audit.reference == key.reference)
    return and_(*named, sampler)
