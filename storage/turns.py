"""Whose turn it is: places in the queue, so that no upstream waits behind another's backlog.

Start-time fair queueing (Goyal, Vin, Cheng 1996): each upstream has a virtual clock. A job's turn is one more than
that of its upstream's last waiting job, or the one that is being served, whichever is later; the lowest is claimed
first. So upstreams with work alternate, whatever each has piled up. The first jobs of a new stream have turn 0, before
all others, so that a new provider is judged soon; so has a job that is tried again, which has waited its turn.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.exchange_codec import ExchangeRow

FRESH = 100
"""So many jobs of a new stream go before all others."""

_CLOCKS = text(f"""
    SELECT
        (SELECT coalesce(min(turn), 0) FROM jobs WHERE state = 'todo' AND turn > 0),
        (SELECT coalesce(max(turn), 0) FROM jobs WHERE state = 'todo' AND upstream = :upstream),
        (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'todo' AND upstream = :upstream LIMIT {FRESH}) AS few),
        (SELECT coalesce(max(audits), 0) FROM streams
         WHERE upstream = :upstream AND model = :model AND reference = :reference AND sampler = :sampler)
""")


class _Stream(NamedTuple):
    upstream: str
    model: str
    reference: str
    sampler: str


async def turns(session: AsyncSession, rows: Sequence[ExchangeRow]) -> list[int]:
    """The turns of new jobs, in the order of their rows."""
    last: dict[str, int] = {}
    room: dict[_Stream, int] = {}
    found = []
    for row in rows:
        stream = _Stream(row.upstream, row.model, row.reference or "", row.sampler or "")
        if stream not in room:
            served, own, waiting, audited = (await session.execute(_CLOCKS, stream._asdict())).one()
            room[stream] = FRESH - waiting - audited
            last.setdefault(row.upstream, max(served - 1, own, 0))
        if room[stream] > 0:
            room[stream] -= 1
            found.append(0)
        else:
            last[row.upstream] += 1
            found.append(last[row.upstream])
    return found
