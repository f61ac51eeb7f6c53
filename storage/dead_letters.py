"""Records that the database refused: kept with their reason until a person has looked at them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.columns import clean_text
from storage.models import DeadLetter


async def bury(session: AsyncSession, letters: Sequence[tuple[bytes, str]], *, now: datetime) -> None:
    """Keep the records, each with the reason why it cannot be stored."""
    rows = [{"created_at": now, "reason": clean_text(reason), "record": record} for record, reason in letters]
    await session.execute(insert(DeadLetter), rows)


async def count(session: AsyncSession) -> int:
    """How many there are."""
    return await session.scalar(select(func.count()).select_from(DeadLetter)) or 0
