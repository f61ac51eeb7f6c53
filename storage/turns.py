"""Whose turn it is: places in the queue, so that no upstream waits behind another's backlog.

Start-time fair queueing (Goyal, Vin, Cheng 1996): each upstream has a virtual clock. A job's turn is one more than
that of its upstream's last waiting job, or the one that is being served, whichever is later; the lowest is claimed
first. So upstreams with work alternate, whatever each has piled up. The first jobs of a new stream have turn 0, before
all others, so that a new provider is judged soon; so has a job that is tried again, which has waited its turn.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.columns import dump_json
from storage.exchange_codec import ExchangeRow

FRESH = 100
"""So many jobs of a new stream go before all others."""

_CLOCKS = """
    SELECT
        (SELECT coalesce(min(turn), 0) FROM jobs WHERE state = 'todo' AND turn > 0),
        (SELECT coalesce(max(turn), 0) FROM jobs WHERE state = 'todo' AND upstream = {0}),
        (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'todo' AND upstream = {0} LIMIT {fresh}) AS few),
        (SELECT coalesce(max(audits), 0) FROM streams
         WHERE upstream = {0} AND model = {1} AND reference = {2} AND sampler = {3})
    FROM {given} ORDER BY {place}
"""
_CLOCKS_OF = {
    "sqlite": text(_CLOCKS.format(
        *(f"json_extract(given.value, '$[{number}]')" for number in range(4)), fresh=FRESH,
        given="json_each(:streams) AS given", place="given.key",
    )),
    "postgresql": text(_CLOCKS.format(
        *(f"(given.value ->> {number})" for number in range(4)), fresh=FRESH,
        given="json_array_elements(CAST(:streams AS json)) WITH ORDINALITY AS given (value, place)",
        place="given.place",
    )),
}  # fmt: skip


class _Stream(NamedTuple):
    upstream: str
    model: str
    reference: str
    sampler: str


async def turns(session: AsyncSession, rows: Sequence[ExchangeRow]) -> list[int]:
    """The turns of new jobs, in the order of their rows."""
    streams = [_Stream(row.upstream, row.model, row.reference or "", row.sampler or "") for row in rows]
    last: dict[str, int] = {}
    room: dict[_Stream, int] = {}
    for stream, (served, own, waiting, audited) in (await _clocks(session, set(streams))).items():
        room[stream] = FRESH - waiting - audited
        last[stream.upstream] = max(served - 1, own, 0)
    found = []
    for stream in streams:
        if room[stream] > 0:
            room[stream] -= 1
            found.append(0)
        else:
            last[stream.upstream] += 1
            found.append(last[stream.upstream])
    return found


async def _clocks(session: AsyncSession, streams: Collection[_Stream]) -> dict[_Stream, Sequence[int]]:
    """Per stream: the turn being served, its upstream's last one, how many of the upstream wait, and its audits."""
    if not streams:
        return {}
    query = _CLOCKS_OF[session.get_bind().dialect.name]
    return dict(zip(streams, await session.execute(query, {"streams": dump_json([*streams])}), strict=True))
