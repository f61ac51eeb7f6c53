"""Honest bands, as `seedproof calibrate` stores them; the newest of a reference and sampler counts."""

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.models import Calibration


async def add(
    session: AsyncSession, *, reference: str, sampler: str, token_source: str, hardware: str, band: dict[str, Any],
    now: datetime,
) -> int:  # fmt: skip
    """Stores a band; returns its id."""
    row = Calibration(
        created_at=now, reference=reference, sampler=sampler, token_source=token_source, hardware=hardware, band=band
    )
    session.add(row)
    await session.flush()
    return row.id


async def newest(session: AsyncSession, *, reference: str, sampler: str) -> Calibration | None:
    """The calibration that streams of a reference and sampler are judged by; None for none."""
    query = select(Calibration).where(Calibration.reference == reference, Calibration.sampler == sampler)
    return (await session.scalars(query.order_by(Calibration.id.desc()).limit(1))).first()
