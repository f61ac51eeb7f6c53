"""A stream's past: noted with every audit that is weighed, read by pages, metrics and alerts."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer

from storage.models import Audit, Stream, VerdictStatus
from storage.models_history import Span, StreamHistory, VerdictChange
from storage.streams import StreamKey

RATE_BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Upper bounds of the match rates that `stream_history.match_rates` counts."""
SECONDS = {Span.TEN_SECONDS: 10, Span.MINUTE: 60, Span.HOUR: 3600, Span.DAY: 86400}
KEPT = {Span.TEN_SECONDS: timedelta(hours=2), Span.MINUTE: timedelta(days=2)}
"""Fine rows are dropped when they are that old; hours and days stay."""
MOST_POINTS = 400
"""A chart is about a thousand pixels wide."""
MOST_ROWS = 10_000
"""For the small charts of all streams together."""

_KEPT = ("detector", "unit", "mean", "low", "high", "honest", "tolerated", "tokens", "log_e")
_COUNTS = ("audits", "unsupported", "failed", "tokens", "exact_matches", "outside_support", "ambiguous_tokens")



class MatchRate(NamedTuple):
    """A stream's match rate at a time, over its whole life until then."""

    at: datetime
    match_mean: float
    match_low: float
    match_high: float
    match_tolerated: float


async def note(
    session: AsyncSession, stream: Stream, audits: Sequence[Audit], *, previous: str, now: datetime
) -> None:
    """Adds what has just been weighed to each span that holds `now`, and a row where the verdict is not `previous`.

    The caller holds the stream's row (`storage.streams.locked`), which keeps two workers from adding at once.
    """
    match = match_rate(stream.detail.get("effects", ()))
    for span in Span:
        row = await _row(session, StreamKey.of(stream), span, start_of(span, now))
        for audit in audits:
            _count(row, audit)
        row.verdict, row.log_e = stream.verdict, stream.log_e
        row.total_requests, row.total_tokens = stream.requests, stream.tokens
        row.match_mean, row.match_low, row.match_high, row.match_tolerated = match
        row.effects = [
            {name: effect.get(name) for name in _KEPT} for effect in stream.detail.get("effects", ())
        ]
    if stream.verdict != previous:
        session.add(_change(stream, previous, now))


def match_rate(
    effects: Sequence[Mapping[str, Any]],
) -> tuple[float | None, float | None, float | None, float | None]:
    """Match rate, the ends of its confidence sequence and the lowest that is tolerated, of a verdict's effects."""
    for effect in effects:
        if effect["detector"] == "mismatch":
            return 1 - effect["mean"], 1 - effect["high"], 1 - effect["low"], 1 - effect["tolerated"]
    return None, None, None, None


def start_of(span: Span, moment: datetime) -> datetime:
    """Where the span that holds the moment begins; days are UTC's."""
    seconds = moment.timestamp()
    return datetime.fromtimestamp(seconds - seconds % SECONDS[span], timezone.utc)


def span_for(period: timedelta, *, streams: int = 1) -> Span:
    """The finest span that draws a period with at most `MOST_POINTS` points; days where none does.

    For many streams at once a coarser one, so that no more than `MOST_ROWS` are read.
    """
    most = min(MOST_POINTS, MOST_ROWS / max(1, streams))
    fitting = (span for span in Span if period.total_seconds() / SECONDS[span] <= most)
    return next(fitting, Span.DAY)


async def is_younger_than(session: AsyncSession, moment: datetime) -> bool:
    """Whether no audit was weighed before the moment, which may be rounded down to its hour."""
    earlier = select(StreamHistory.at).where(
        StreamHistory.span == Span.HOUR.value, StreamHistory.at < start_of(Span.HOUR, moment)
    )
    return await session.scalar(earlier.limit(1)) is None


async def of_stream(
    session: AsyncSession, key: StreamKey, *, span: Span, since: datetime, effects: bool = False
) -> Sequence[StreamHistory]:
    """A stream's newest rows of a span, at most `MOST_POINTS`, the oldest first; their long `effects` if asked."""
    query = select(StreamHistory).where(*_of(key), _from(span, since))
    if not effects:
        query = query.options(defer(StreamHistory.effects, raiseload=True))
    rows = await session.scalars(query.order_by(StreamHistory.at.desc()).limit(MOST_POINTS))
    return rows.all()[::-1]


async def match_rates(session: AsyncSession, *, span: Span, since: datetime) -> dict[StreamKey, list[MatchRate]]:
    """Every stream's match rate at the end of each span, the oldest first."""
    found: dict[StreamKey, list[MatchRate]] = {}
    names = ("upstream", "model", "reference", "sampler", *MatchRate._fields)
    columns = [getattr(StreamHistory, name) for name in names]
    query = select(*columns).where(_from(span, since), StreamHistory.match_mean.is_not(None))
    for row in await session.execute(query.order_by(StreamHistory.at)):
        found.setdefault(StreamKey(*row[:4]), []).append(MatchRate(*row[4:]))
    return found


async def verdict_changes(
    session: AsyncSession, key: StreamKey | None = None, *, limit: int = 50
) -> Sequence[VerdictChange]:
    """The latest changes of a stream, or of all, the newest first."""
    query = select(VerdictChange)
    if key is not None:
        query = query.where(*(getattr(VerdictChange, name) == value for name, value in vars(key).items()))
    return (await session.scalars(query.order_by(VerdictChange.id.desc()).limit(limit))).all()


async def rate_counts(session: AsyncSession) -> dict[StreamKey, list[int]]:
    """Per stream how many audited answers had a match rate of at most each of RATE_BOUNDS, none counted twice."""
    names = (StreamHistory.upstream, StreamHistory.model, StreamHistory.reference, StreamHistory.sampler)
    found: dict[StreamKey, list[int]] = {}
    days = select(*names, StreamHistory.match_rates).where(StreamHistory.span == Span.DAY.value)
    for *key, counts in await session.execute(days):
        total = found.setdefault(StreamKey(*key), [0] * len(RATE_BOUNDS))
        found[StreamKey(*key)] = [one + other for one, other in zip(total, counts, strict=True)]
    return found


async def sums(session: AsyncSession, *, within: timedelta, now: datetime) -> dict[StreamKey, tuple[int, int]]:
    """Per stream the verified tokens and exact matches of the last so long, to the precision of its chart."""
    names = (StreamHistory.upstream, StreamHistory.model, StreamHistory.reference, StreamHistory.sampler)
    totals = (func.sum(StreamHistory.tokens), func.sum(StreamHistory.exact_matches))
    query = select(*names, *totals).where(_from(span_for(within), now - within)).group_by(*names)
    return {StreamKey(*row[:4]): (int(row[4]), int(row[5])) for row in await session.execute(query)}


async def changes_by_verdict(session: AsyncSession) -> dict[str, int]:
    """How often any stream's verdict became this one."""
    counted = select(VerdictChange.verdict, func.count()).group_by(VerdictChange.verdict)
    return {row[0]: row[1] for row in await session.execute(counted)}


def _of(key: StreamKey) -> list[ColumnElement[bool]]:
    return [getattr(StreamHistory, name) == value for name, value in vars(key).items()]


def _from(span: Span, since: datetime) -> ColumnElement[bool]:
    return (StreamHistory.span == span.value) & (StreamHistory.at >= start_of(span, since))


async def _row(session: AsyncSession, key: StreamKey, span: Span, at: datetime) -> StreamHistory:
    identity = (*vars(key).values(), span.value, at)
    row = await session.get(StreamHistory, identity)
    if row is None:
        if span in KEPT:
            old = (StreamHistory.span == span.value) & (StreamHistory.at < at - KEPT[span])
            await session.execute(delete(StreamHistory).where(*_of(key), old))
        zeros: dict[str, Any] = dict.fromkeys(_COUNTS, 0)
        row = StreamHistory(**vars(key), span=span.value, at=at, **zeros, match_rates=[0] * len(RATE_BOUNDS))
        session.add(row)
    return row


def _count(row: StreamHistory, audit: Audit) -> None:
    row.audits += 1
    row.unsupported += audit.verdict_status is VerdictStatus.UNSUPPORTED
    row.failed += audit.verdict_status is VerdictStatus.FAILED
    if audit.verdict_status is not VerdictStatus.VERIFIED:
        return
    for name in ("tokens", "exact_matches", "outside_support", "ambiguous_tokens"):
        setattr(row, name, getattr(row, name) + getattr(audit, name))
    if audit.exact_match_rate is not None:
        place = bisect_left(RATE_BOUNDS, audit.exact_match_rate)
        # a new list: SQLAlchemy does not see a change inside the old one
        row.match_rates = [count + (index == place) for index, count in enumerate(row.match_rates)]


def _change(stream: Stream, previous: str, now: datetime) -> VerdictChange:
    return VerdictChange(
        at=now, **vars(StreamKey.of(stream)), previous=previous, verdict=stream.verdict,
        reasons=list(stream.reasons), log_e=stream.log_e, requests=stream.requests, tokens=stream.tokens,
    )  # fmt: skip
