"""From a request's query string to rows: what the pages, the JSON API and the CSV files read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from proxy import dashboard_rows as rows
from proxy.dashboard_tokens import Token, tokens
from proxy.errors import RequestError
from storage import history, overview, search, streams
from storage.models import Outcome
from storage.models_history import Span, StreamHistory
from storage.search import Auditing, Cursor, Filters
from storage.streams import StreamKey

PERIODS = {
    "1h": timedelta(hours=1), "6h": timedelta(hours=6), "24h": timedelta(days=1), "7d": timedelta(days=7),
    "30d": timedelta(days=30), "90d": timedelta(days=90), "1y": timedelta(days=366),
}  # fmt: skip
PAGE = 50
MOST_EXPORTED = 1_000
MOST_WAITING = 5_000
"""Jobs of an upstream that a page counts; the metrics count more, and are read less often."""


@dataclass(frozen=True)
class Period:
    """The last so many hours: `name` is one of PERIODS."""

    name: str
    since: datetime
    span: Span


async def all_streams(session: AsyncSession) -> list[dict[str, Any]]:
    """Every stream as it stands, in the order of their names."""
    return [rows.stream_row(stream) for stream in await streams.standing(session)]


async def one_stream(session: AsyncSession, query: Mapping[str, str]) -> dict[str, Any]:
    """The stream that a query names. Raises RequestError."""
    key = stream_key(query)
    found = next((s for s in await streams.standing(session, upstream=key.upstream) if StreamKey.of(s) == key), None)
    if found is None:
        raise RequestError("there is no such stream", status=404, code="not_found")
    return {**rows.stream_row(found), "detail": found.detail, "identified": found.identified}


def stream_key(query: Mapping[str, str]) -> StreamKey:
    """The stream that `upstream`, `model`, `reference` and `sampler` name; the last may be empty."""
    for name in ("upstream", "model", "reference"):
        if not query.get(name):
            raise RequestError(f"name the stream: {name} is missing", code="missing_parameter", param=name)
    return StreamKey(query["upstream"], query["model"], query["reference"], query.get("sampler", ""))


async def period(session: AsyncSession, query: Mapping[str, str], now: datetime) -> Period:
    """The period that `period` names; untold, the shortest that holds all of a young database, else a day."""
    name = query.get("period") or await _fitting(session, now)
    if name not in PERIODS:
        known = ", ".join(PERIODS)
        raise RequestError(f"period must be one of {known}", code="invalid_parameter", param="period")
    return Period(name, now - PERIODS[name], history.span_for(PERIODS[name]))


async def _fitting(session: AsyncSession, now: datetime) -> str:
    for name in ("1h", "6h"):
        if await history.is_younger_than(session, now - PERIODS[name]):
            return name
    return "24h"


async def stream_history(
    session: AsyncSession, key: StreamKey, within: Period, *, effects: bool = False
) -> Sequence[StreamHistory]:
    """A stream's rows of a period, the oldest first; with the detectors' `effects` if asked."""
    return await history.of_stream(session, key, span=within.span, since=within.since, effects=effects)


async def exchanges(session: AsyncSession, query: Mapping[str, str], *, limit: int = PAGE) -> dict[str, Any]:
    """`rows`, and as `next` the query that goes on (None at the end); `id` looks for an id instead of filtering."""
    wanted = query.get("id", "").strip().lower()
    if wanted:
        found = await search.find(session, wanted, limit=limit)
        return {"rows": [rows.exchange_row(row) for row in found], "next": None}
    page = await search.page(session, filters(query), before=cursor(query), limit=limit)
    return {
        "rows": [rows.exchange_row(row) for row in page.rows],
        "next": None if page.seen_back_to is None else _cursor_text(page.seen_back_to),
        "seen_back_to": None if page.seen_back_to is None else page.seen_back_to.created_at,
    }


def filters(query: Mapping[str, str]) -> Filters:
    """What the list shows. Raises RequestError for a value that it cannot mean."""
    outcome, auditing = query.get("outcome") or None, query.get("auditing") or None
    _one_of(outcome, [member.value for member in Outcome], "outcome")
    _one_of(auditing, [member.value for member in Auditing], "auditing")
    return Filters(
        upstream=query.get("upstream") or None, model=query.get("model") or None, outcome=outcome,
        auditing=Auditing(auditing) if auditing else None, match_below=_rate(query.get("match_below")),
        since=_moment(query, "since"), until=_moment(query, "until"),
    )  # fmt: skip


def cursor(query: Mapping[str, str]) -> Cursor | None:
    """Where the page begins, as `next` of the page before told it."""
    text = query.get("before")
    if not text:
        return None
    stamp, _, exchange_id = text.partition("_")
    return Cursor(_parsed(stamp, "before"), exchange_id)


def _cursor_text(place: Cursor) -> str:
    return f"{place.created_at.astimezone(timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.%fZ')}_{place.id}"


async def exchange(session: AsyncSession, exchange_id: str, *, payloads: bool) -> dict[str, Any]:
    """One exchange with its audits. Raises RequestError where there is neither."""
    found, audits, job = await search.exchange(session, exchange_id)
    if found is None and not audits:
        raise RequestError("there is no such exchange", status=404, code="not_found")
    return rows.exchange_detail(found, audits, job, payloads=payloads)


async def answer_tokens(
    session: AsyncSession, exchange_id: str, choice_index: int, *, texts: bool
) -> list[Token]:
    """The tokens of one choice; none where it was not scored. Raises CorruptScores."""
    _, audits, _ = await search.exchange(session, exchange_id)
    audit = next((audit for audit in audits if audit.choice_index == choice_index), None)
    return [] if audit is None or audit.scores is None else tokens(audit.scores, audit.pieces, texts=texts)


async def backlog(session: AsyncSession) -> list[dict[str, Any]]:
    """What waits for its audit, by reference."""
    return [rows.waiting_row(row) for row in await overview.waiting(session, most=MOST_WAITING)]


def whole(query: Mapping[str, str], name: str, default: int) -> int:
    """A number from 0. Raises RequestError."""
    text = query.get(name, str(default))
    if not text.isdecimal() or len(text) > 9:
        raise RequestError(f"{name} must be a whole number", code="invalid_parameter", param=name)
    return int(text)


def _one_of(value: str | None, known: Sequence[str], name: str) -> None:
    if value is not None and value not in known:
        raise RequestError(f"{name} must be one of {', '.join(known)}", code="invalid_parameter", param=name)


def _rate(text: str | None) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RequestError("match_below must be from 0 to 1", code="invalid_parameter", param="match_below")
    return value


def _moment(query: Mapping[str, str], name: str) -> datetime | None:
    return _parsed(query[name], name) if query.get(name) else None


def _parsed(text: str, name: str) -> datetime:
    try:
        value = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        sentence = f"{name} must be a time like 2026-11-24T12:00 (UTC)"
        raise RequestError(sentence, code="invalid_parameter", param=name) from error
    return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value
