"""What the database says afterwards: every acknowledged exchange once, every exchange with one end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_DOUBLED = (
    "SELECT count(*) - count(DISTINCT id) FROM exchanges",
    "SELECT count(*) - count(DISTINCT exchange_id) FROM jobs",
    # an answer here has one choice, so an exchange has one audit
    "SELECT count(*) - count(DISTINCT exchange_id) FROM audits",
    # an audit that was weighed twice
    "SELECT coalesce(sum(audits), 0) - (SELECT count(*) FROM audits) FROM streams",
)
_UNFINISHED = (
    "SELECT count(*) FROM exchanges WHERE audit AND id NOT IN (SELECT exchange_id FROM jobs)",
    "SELECT count(*) FROM exchanges WHERE NOT audit AND unaudited_reason IS NULL",
    "SELECT count(*) FROM jobs WHERE state IN ('todo', 'leased')",
    "SELECT count(*) FROM jobs WHERE state = 'done' AND exchange_id NOT IN (SELECT exchange_id FROM audits)",
    "SELECT count(*) FROM audits WHERE exchange_id NOT IN (SELECT exchange_id FROM jobs WHERE state = 'done')",
)


async def counts(session: AsyncSession, acknowledged: Sequence[str]) -> dict[str, Any]:
    """The four numbers, and what they are made of."""
    recorded = set(await session.scalars(text("SELECT id FROM exchanges")))
    return {
        "acknowledged": len(acknowledged),
        "lost": len(set(acknowledged) - recorded),
        "duplicated": sum([abs(int(await session.scalar(text(query)) or 0)) for query in _DOUBLED]),
        "unfinished": sum([int(await session.scalar(text(query)) or 0) for query in _UNFINISHED]),
        "recorded": len(recorded),
        "audited": await session.scalar(text("SELECT count(*) FROM jobs WHERE state = 'done'")),
        "given_up": await session.scalar(text("SELECT count(*) FROM jobs WHERE state = 'failed'")),
        "dead_letters": await session.scalar(text("SELECT count(*) FROM dead_letters")),
    }


async def waiting(session: AsyncSession) -> int:
    """Jobs that are not finished."""
    return int(await session.scalar(text("SELECT count(*) FROM jobs WHERE state IN ('todo', 'leased')")) or 0)
