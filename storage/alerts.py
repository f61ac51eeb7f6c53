"""Alerts: one evaluation at a time, decisions and their notices in one transaction, notices sent at least once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from storage.database import insert_new
from storage.models_alerts import Alert, Evaluation, Notice, Silence

_THE_ONE = 1
_LONG_AGO = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
_AS_IS = {"synchronize_session": False}


@dataclass(frozen=True)
class NewNotice:
    """A message for the outbox; fields as `Notice` has them."""

    receiver: str
    topic: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Due:
    """A message to be sent now. `attempts` counts this one."""

    id: int
    created_at: datetime
    receiver: str
    payload: dict[str, Any]
    attempts: int


async def turn(session: AsyncSession, *, every: timedelta, now: datetime) -> bool:
    """Whether this transaction may evaluate: nobody did within `every`, and nobody else does until its end."""
    await insert_new(session, Evaluation, [{"id": _THE_ONE, "evaluated_at": _LONG_AGO}])
    row = (await session.scalars(select(Evaluation).with_for_update())).one()
    if now - row.evaluated_at < every:
        return False
    row.evaluated_at = now
    return True


async def every_alert(session: AsyncSession) -> Sequence[Alert]:
    """All that have a state, firing first, then the latest."""
    rows = (await session.scalars(select(Alert))).all()
    order = {"firing": 0, "pending": 1, "resolved": 2}
    return sorted(rows, key=lambda alert: (order[alert.state], -alert.seen_at.timestamp(), alert.fingerprint))


async def keep(session: AsyncSession, changed: Sequence[dict[str, Any]], dropped: Sequence[str]) -> None:
    """Stores the alerts' new rows by fingerprint, and forgets the dropped ones."""
    for values in changed:
        row = await session.get(Alert, values["fingerprint"])
        if row is None:
            session.add(Alert(**values))
            continue
        for name, value in values.items():
            setattr(row, name, value)
    if dropped:
        await session.execute(delete(Alert).where(Alert.fingerprint.in_(dropped)), execution_options=_AS_IS)


async def post(session: AsyncSession, notices: Sequence[NewNotice], *, now: datetime) -> None:
    """Puts messages into the outbox."""
    session.add_all(
        [Notice(**vars(notice), created_at=now, state="todo", attempts=0, run_at=now) for notice in notices]
    )


async def due(session: AsyncSession, *, limit: int, lease: timedelta, now: datetime) -> list[Due]:
    """Messages to be sent now, the first of each topic; until `now + lease` nobody else gets them."""
    earlier = aliased(Notice)
    first = ~exists().where(
        earlier.state == "todo", earlier.receiver == Notice.receiver, earlier.topic == Notice.topic,
        earlier.id < Notice.id,
    )  # fmt: skip
    ready = select(Notice.id).where(Notice.state == "todo", Notice.run_at <= now, first).order_by(Notice.id)
    chosen = ready.limit(limit).with_for_update(skip_locked=True).cte("chosen")
    statement = (
        update(Notice)
        .where(Notice.id.in_(select(chosen.c.id)))
        .values(run_at=now + lease, attempts=Notice.attempts + 1)
        .returning(Notice.id, Notice.created_at, Notice.receiver, Notice.payload, Notice.attempts)
    )
    rows = await session.execute(statement, execution_options=_AS_IS)
    return sorted((Due(*row) for row in rows), key=lambda notice: notice.id)


async def sent(session: AsyncSession, notice: Due, *, now: datetime) -> None:
    """todo -> sent."""
    await _end(session, notice, state="sent", sent_at=now, error=None)


async def retry(session: AsyncSession, notice: Due, *, at: datetime, error: str) -> None:
    """Stays todo, not to be sent before `at`."""
    await _end(session, notice, run_at=at, error=error)


async def fail(session: AsyncSession, notice: Due, *, error: str) -> None:
    """todo -> failed, for good."""
    await _end(session, notice, state="failed", error=error)


async def _end(session: AsyncSession, notice: Due, **values: Any) -> None:
    mine = (Notice.id == notice.id, Notice.attempts == notice.attempts, Notice.state == "todo")
    await session.execute(update(Notice).where(*mine).values(**values), execution_options=_AS_IS)


async def latest_notices(session: AsyncSession, *, limit: int = 50) -> Sequence[Notice]:
    """The newest messages, sent or not."""
    return (await session.scalars(select(Notice).order_by(Notice.id.desc()).limit(limit))).all()


async def forget_notices(session: AsyncSession, *, before: datetime) -> None:
    """Drops messages that are finished and older."""
    old = (Notice.created_at < before, Notice.state != "todo")
    await session.execute(delete(Notice).where(*old), execution_options=_AS_IS)


async def silence(
    session: AsyncSession, matchers: dict[str, str], *, starts_at: datetime, ends_at: datetime, comment: str,
    now: datetime,
) -> int:  # fmt: skip
    """Keeps matching alerts quiet; returns the silence's id."""
    row = Silence(matchers=matchers, starts_at=starts_at, ends_at=ends_at, comment=comment, created_at=now)
    session.add(row)
    await session.flush()
    return row.id


async def end_silence(session: AsyncSession, silence_id: int, *, now: datetime) -> bool:
    """Ends a silence now; False where there is none that has not ended."""
    row = await session.get(Silence, silence_id)
    if row is None or row.ends_at <= now:
        return False
    row.ends_at = now
    return True


async def silences(session: AsyncSession, *, now: datetime) -> Sequence[Silence]:
    """Those that have not ended."""
    return (await session.scalars(select(Silence).where(Silence.ends_at > now).order_by(Silence.id))).all()
