"""What proxy processes tell of themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.models_proxies import ProxyProcess

ALIVE = timedelta(seconds=60)
KEPT = timedelta(days=30)
"""A process that lost nothing is forgotten when it has been silent for that long."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One process now; fields as `ProxyProcess` has them."""

    id: str
    host: str
    pid: int
    started_at: datetime
    recorded: int
    lost: int
    waiting: int
    problem: str | None


@dataclass(frozen=True)
class Losses:
    """Over all processes, alive or not: how many exchanges were lost, and how many processes are alive."""

    lost: int
    alive: int
    problem: str | None
    """Of one of the living ones."""


async def beat(session: AsyncSession, told: Beat, *, now: datetime) -> None:
    """Keeps what a process tells, and forgets the long silent ones."""
    row = await session.get(ProxyProcess, told.id)
    if row is None:
        await session.execute(delete(ProxyProcess).where(ProxyProcess.seen_at < now - KEPT, ProxyProcess.lost == 0))
        session.add(ProxyProcess(**vars(told), seen_at=now))
        return
    row.seen_at, row.recorded, row.lost = now, told.recorded, told.lost
    row.waiting, row.problem = told.waiting, told.problem


async def losses(session: AsyncSession, *, now: datetime) -> Losses:
    """What was lost so far."""
    alive = ProxyProcess.seen_at >= now - ALIVE
    lost = await session.scalar(select(func.coalesce(func.sum(ProxyProcess.lost), 0)))
    living = (await session.scalars(select(ProxyProcess).where(alive).order_by(ProxyProcess.id))).all()
    problem = next((process.problem for process in living if process.problem), None)
    return Losses(int(lost or 0), len(living), problem)


async def every(session: AsyncSession) -> Sequence[ProxyProcess]:
    """All that are still remembered, the latest seen first."""
    return (await session.scalars(select(ProxyProcess).order_by(ProxyProcess.seen_at.desc()).limit(100))).all()
