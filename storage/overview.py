"""What the overview, the metrics and the alerts read. Every query here is bounded, however large the tables are."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, TextualSelect, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.columns import UtcDateTime
from storage.jobs import in_state
from storage.models import Job, JobState

MOST_COUNTED = 20_000
"""Jobs of one upstream and reference: counting a longer backlog exactly would take as long as it is."""


@dataclass(frozen=True)
class Waiting:
    """Jobs of one reference that are not finished."""

    reference: str
    todo: int
    leased: int
    oldest: datetime | None
    """When the oldest one's exchange came."""
    retried: int
    """Jobs among them that have failed at least once."""
    reason: str | None
    """Why one of these failed last."""
    more: bool = False
    """Whether a count ended, so that there are more."""


def _counts(state: JobState) -> TextualSelect:
    """Per upstream and reference: reference, number of jobs, the oldest exchange's time.

    From one pair to the next by the index ix_jobs_unfinished alone: neither SQLite nor Postgres skips by itself, and
    millions of jobs may wait of a few pairs.
    """
    # spelled out, and with the index's own condition: SQLite uses a partial index only where it sees that
    in_state = f"FROM jobs WHERE state IN ('todo', 'leased') AND state = '{state.value}'"
    # not as one comparison of pairs: SQLite would read all jobs of the pair to find the next
    later = f"{in_state} AND upstream = pair.upstream AND reference > pair.reference ORDER BY reference LIMIT 1"
    beyond = f"{in_state} AND upstream > pair.upstream ORDER BY upstream, reference LIMIT 1"
    of_pair = f"{in_state} AND upstream = pair.upstream AND reference = pair.reference"
    return text(f"""
        WITH RECURSIVE pair(upstream, reference) AS (
            SELECT * FROM (SELECT upstream, reference {in_state} ORDER BY upstream, reference LIMIT 1) AS first
            UNION ALL
            SELECT coalesce((SELECT upstream {later}), (SELECT upstream {beyond})),
                   coalesce((SELECT reference {later}), (SELECT reference {beyond}))
            FROM pair WHERE upstream IS NOT NULL
        )
        SELECT reference, (SELECT count(*) FROM (SELECT 1 {of_pair} LIMIT :most) AS counted) AS jobs,
            (SELECT created_at {of_pair} ORDER BY created_at LIMIT 1) AS oldest
        FROM pair WHERE upstream IS NOT NULL
    """).columns(oldest=UtcDateTime)


_TODO, _LEASED = _counts(JobState.TODO), _counts(JobState.LEASED)


async def waiting(session: AsyncSession, *, most: int = MOST_COUNTED) -> list[Waiting]:
    """The backlog by reference, in the order of their names; of each upstream's jobs `most` are counted."""
    if session.get_bind().dialect.name == "postgresql":
        # it takes the first query for a long one, and would compile it for longer than it runs
        await session.execute(text("SET LOCAL jit = off"))
    todo = (await session.execute(_TODO, {"most": most})).all()
    leased = (await session.execute(_LEASED, {"most": most})).all()
    failed = {row[0]: row[1:] for row in await session.execute(_retried())}
    return [
        Waiting(
            reference=name,
            todo=sum(row.jobs for row in todo if row.reference == name),
            leased=sum(row.jobs for row in leased if row.reference == name),
            oldest=min(row.oldest for row in (*todo, *leased) if row.reference == name),
            retried=failed.get(name, (0, None))[0],
            reason=failed.get(name, (0, None))[1],
            more=any(row.jobs == most for row in (*todo, *leased) if row.reference == name),
        )
        for name in sorted({row.reference for row in (*todo, *leased)})
    ]  # fmt: skip


def _retried() -> Select[Any]:
    """By reference how many jobs failed before, and why one did: those that wait have turn 0, those at work are few."""
    waits = select(Job.reference, Job.reason).where(in_state(JobState.TODO), Job.turn == 0).limit(MOST_COUNTED)
    works = select(Job.reference, Job.reason).where(in_state(JobState.LEASED)).limit(MOST_COUNTED)
    both = select(waits.subquery()).union_all(select(works.subquery())).subquery()
    failed = select(both.c.reference, func.count(), func.max(both.c.reason)).where(both.c.reason.is_not(None))
    return failed.group_by(both.c.reference)
