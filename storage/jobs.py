"""The queue: which exchanges wait for an audit, and who works on them. `storage.models.JobState` draws it.

A worker's round is: `claim` in one transaction; work, with a `heartbeat` now and then; `audits.add` and
`complete` in one transaction, rolled back when `complete` says that the lease was lost. Nothing is locked
while the worker works. Each function takes the time as `now`, aware.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Update, func, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.models import Job, JobState

# no Job objects live in these sessions that an UPDATE would have to refresh
_AS_IS = {"synchronize_session": False}


@dataclass(frozen=True)
class Claim:
    """A job on lease. `attempts` counts this claim: a worker gives up (`fail`) when it exceeds its limit."""

    job_id: int
    exchange_id: str
    reference: str
    lease_token: int
    attempts: int
    created_at: datetime
    """The exchange's."""


@dataclass(frozen=True)
class Backlog:
    """Jobs by state. `oldest` is when the oldest unfinished one's exchange came, None when none is left."""

    todo: int
    leased: int
    done: int
    failed: int
    oldest: datetime | None


async def claim(
    session: AsyncSession,
    *,
    worker: str,
    limit: int,
    lease: timedelta,
    now: datetime,
    reference: str | None = None,
) -> list[Claim]:
    """todo -> leased, for up to `limit` due jobs in the order of their turns, all of one reference.

    The reference is the given one, or that of the job whose turn it is, so that a batch needs one model. One
    statement; workers that claim at the same moment get different jobs and do not wait for each other.
    """
    due = (in_state(JobState.TODO), Job.run_at <= now)
    first = select(Job.reference).where(*due).order_by(Job.turn, Job.id).limit(1).scalar_subquery()
    of_reference = select(Job.id).where(*due, Job.reference == (first if reference is None else reference))
    # in a CTE, since Postgres may run a subquery of WHERE more than once and then lease more than the limit
    chosen = of_reference.order_by(Job.turn, Job.id).limit(limit).with_for_update(skip_locked=True).cte("chosen")
    statement = (
        update(Job)
        .where(Job.id.in_(select(chosen.c.id)))
        .values(
            state=JobState.LEASED,
            worker=worker,
            lease_until=now + lease,
            lease_token=Job.lease_token + 1,
            attempts=Job.attempts + 1,
        )
        .returning(Job.id, Job.exchange_id, Job.reference, Job.lease_token, Job.attempts, Job.created_at)
    )
    rows = (await session.execute(statement, execution_options=_AS_IS)).all()
    return sorted((Claim(*row) for row in rows), key=lambda claim: claim.job_id)


async def complete(session: AsyncSession, claim: Claim) -> bool:
    """leased -> done. False when the lease was lost: the caller must roll its audits back."""
    return await _end_lease(session, claim, state=JobState.DONE, reason=None)


async def retry(session: AsyncSession, claim: Claim, *, at: datetime, reason: str) -> bool:
    """leased -> todo, not to be claimed before `at`, then first. False when the lease was lost."""
    return await _end_lease(session, claim, state=JobState.TODO, reason=reason, run_at=at, turn=0)


async def give_back(session: AsyncSession, claims: Sequence[Claim]) -> None:
    """leased -> todo, as if never claimed: for a worker that stops before it began. Lost leases stay as they are."""
    for claim in claims:
        await _end_lease(session, claim, state=JobState.TODO, attempts=Job.attempts - 1, turn=0)


async def fail(session: AsyncSession, claim: Claim, *, reason: str) -> bool:
    """leased -> failed, for good. False when the lease was lost."""
    return await _end_lease(session, claim, state=JobState.FAILED, reason=reason)


async def heartbeat(
    session: AsyncSession, claims: Sequence[Claim], *, lease: timedelta, now: datetime
) -> list[Claim]:
    """Extends the leases to `now + lease`; returns the claims still held. Work on the others is lost."""
    if not claims:
        return []
    held = tuple_(Job.id, Job.lease_token).in_([(claim.job_id, claim.lease_token) for claim in claims])
    statement = update(Job).where(held, in_state(JobState.LEASED)).values(lease_until=now + lease)
    kept = set(await session.scalars(statement.returning(Job.id), execution_options=_AS_IS))
    return [claim for claim in claims if claim.job_id in kept]


async def release_stalled(session: AsyncSession, *, now: datetime, max_attempts: int) -> int:
    """leased -> todo, for every lease that ran out (its worker died or hangs); returns how many leases ended.

    The attempt stays counted, and the last one is leased -> failed: a job that kills its workers does so
    `max_attempts` times at most.
    """
    stalled = update(Job).where(in_state(JobState.LEASED), Job.lease_until < now)
    given_up = {**_released(JobState.FAILED), "reason": f"its workers died or hung {max_attempts} times"}
    ended = await _changed(session, stalled.where(Job.attempts >= max_attempts).values(given_up))
    again = {**_released(JobState.TODO), "run_at": now, "turn": 0, "reason": "the worker's lease ran out"}
    return ended + await _changed(session, stalled.values(again))


async def pending(session: AsyncSession) -> Backlog:
    """How many jobs are in each state, and since when the oldest unfinished one waits."""
    rows = await session.execute(select(Job.state, func.count()).group_by(Job.state))
    counts = {state.value: count for state, count in rows}
    oldest = await session.scalar(select(func.min(Job.created_at)).where(unfinished()))
    return Backlog(**{state.value: counts.get(state.value, 0) for state in JobState}, oldest=oldest)


async def due(session: AsyncSession, *, now: datetime) -> dict[str, tuple[int, datetime]]:
    """Of each reference with jobs that can be claimed: how many, and when the oldest one's exchange came."""
    ready = (in_state(JobState.TODO), Job.run_at <= now)
    query = select(Job.reference, func.count(), func.min(Job.created_at)).where(*ready).group_by(Job.reference)
    return {reference: (count, oldest) for reference, count, oldest in await session.execute(query)}


def in_state(state: JobState) -> ColumnElement[bool]:
    """The condition that a job is in a state."""
    # literal, not bound: a planner uses a partial index only where it can see the condition
    return Job.state == literal(state, Job.state.type, literal_execute=True)


def unfinished() -> ColumnElement[bool]:
    """The condition that a job waits or is worked on."""
    return in_state(JobState.TODO) | in_state(JobState.LEASED)


def _released(state: JobState) -> dict[str, Any]:
    return {"state": state, "worker": None, "lease_until": None}


async def _end_lease(session: AsyncSession, claim: Claim, *, state: JobState, **values: Any) -> bool:
    held = update(Job).where(
        Job.id == claim.job_id, Job.lease_token == claim.lease_token, in_state(JobState.LEASED)
    )
    return await _changed(session, held.values({**_released(state), **values})) == 1


async def _changed(session: AsyncSession, statement: Update) -> int:
    result = await session.execute(statement, execution_options=_AS_IS)
    assert isinstance(result, CursorResult)
    return result.rowcount
