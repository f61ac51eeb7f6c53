"""What the overview, the metrics and the alerts read. Every query here is bounded, however large the tables are."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, case, func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.models import Job, JobState

MOST_COUNTED = 100_000
"""A longer backlog reads `100,000+`: counting it exactly would take as long as it is."""


@dataclass(frozen=True)
class Waiting:
    """Jobs of one reference that are not finished. Counts end at `MOST_COUNTED`."""

    reference: str
    todo: int
    leased: int
    oldest: datetime | None
    """When the oldest one's exchange came."""
    retried: int
    """Of those looked at, jobs that have failed at least once."""
    reason: str | None
    """Why one of these failed last."""


async def waiting(session: AsyncSession) -> list[Waiting]:
    """The backlog by reference, in the order of their names; of each state the first `MOST_COUNTED` due."""
    rows: dict[str, list[Waiting]] = {}
    for state in (JobState.TODO, JobState.LEASED):
        for row in await session.execute(_by_reference(state)):
            name, count, oldest, retried, reason = row
            todo, leased = (count, 0) if state is JobState.TODO else (0, count)
            rows.setdefault(name, []).append(Waiting(name, todo, leased, oldest, retried, reason))
    return [_sum(rows[name]) for name in sorted(rows)]


def _by_reference(state: JobState) -> Select[Any]:
    # literal, not bound: a planner uses a partial index only where it can see the condition
    in_state = Job.state == literal(state, Job.state.type, literal_execute=True)
    order = (Job.run_at, Job.id) if state is JobState.TODO else (Job.lease_until,)
    columns = (Job.reference, Job.created_at, Job.reason)
    first = select(*columns).where(in_state).order_by(*order).limit(MOST_COUNTED).subquery()
    failed = func.sum(case((first.c.reason.is_not(None), 1), else_=0))
    query = select(first.c.reference, func.count(), func.min(first.c.created_at), failed, func.max(first.c.reason))
    return query.group_by(first.c.reference)


def _sum(parts: Sequence[Waiting]) -> Waiting:
    return Waiting(
        reference=parts[0].reference,
        todo=sum(part.todo for part in parts),
        leased=sum(part.leased for part in parts),
        oldest=min((part.oldest for part in parts if part.oldest), default=None),
        retried=sum(part.retried for part in parts),
        reason=next((part.reason for part in parts if part.reason), None),
    )
