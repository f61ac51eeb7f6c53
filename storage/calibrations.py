"""Honest bands, as `seedproof calibrate` stores them; of a reference and sampler, for one upstream or for all."""

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


async def fitting(
    session: AsyncSession, *, reference: str, sampler: str, upstream: str, token_source: str
) -> Calibration | None:
    """The calibration that a stream is judged by; None for none.

    Of those of its reference and sampler, the newest of its own upstream and token source; failing that, of its
    upstream; failing that, of its token source; failing that, the newest. Another upstream's never counts.
    """
    query = select(Calibration).where(Calibration.reference == reference, Calibration.sampler == sampler)
    rows = [(row, row.band.get("scope", {}).get("upstream")) for row in await session.scalars(query)]
    ranked = [
        ((own is not None, row.token_source == token_source, row.id), row)
        for row, own in rows
        if own in (None, upstream)
    ]
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else None
