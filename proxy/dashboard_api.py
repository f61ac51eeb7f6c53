"""The read-only JSON API of the dashboard and its CSV files (docs/api.md). Every table of the pages is here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import orjson
from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from proxy import dashboard_queries as queries
from proxy import dashboard_rows as rows
from proxy.dashboard_format import as_csv
from proxy.dashboard_tokens import COLUMNS as TOKEN
from proxy.errors import RequestError
from storage import alerts, history, search
from storage.database import Database

Load = Callable[[AsyncSession, Mapping[str, str]], Awaitable[list[dict[str, Any]]]]


class Api:
    """Handlers of `/dashboard/api/v1/…`; without `payloads` no text of requests or answers."""

    def __init__(self, database: Database, *, payloads: bool) -> None:
        self._database, self._payloads = database, payloads
        self._tables: dict[str, tuple[Load, tuple[str, ...]]] = {
            "streams": (_streams, rows.STREAM),
            "history": (_history, rows.HISTORY),
            "verdicts": (_verdicts, rows.VERDICT),
            "latest": (_latest, rows.AUDIT),
            "worst": (_worst, rows.AUDIT),
            "exchanges": (_exchanges, rows.EXCHANGE),
            "tokens": (self._tokens, TOKEN),
            "waiting": (_waiting, rows.WAITING),
            "alerts": (_alerts, rows.ALERT),
            "notices": (_notices, rows.NOTICE),
            "silences": (_silences, rows.SILENCE),
        }

    async def table(self, request: web.Request) -> web.Response:
        """GET …/{table}.json or .csv."""
        name, kind = request.match_info["table"], request.match_info["kind"]
        if name not in self._tables:
            known = ", ".join(map(repr, self._tables))
            raise RequestError(f"there is no table {name!r}; there are {known}", status=404, code="not_found")
        load, columns = self._tables[name]
        async with self._database.reading() as session:
            found = await load(session, request.query)
        if kind == "json":
            return as_json({"rows": found})
        return web.Response(
            text=as_csv(found, columns), content_type="text/csv", charset="utf-8",
            headers={"Content-Disposition": f'attachment; filename="seedproof-{name}.csv"'},
        )  # fmt: skip

    async def exchanges(self, request: web.Request) -> web.Response:
        """GET …/exchanges: a page of the list, with `next` to go on."""
        limit = min(queries.whole(request.query, "limit", queries.PAGE), queries.MOST_EXPORTED)
        async with self._database.reading() as session:
            return as_json(await queries.exchanges(session, request.query, limit=max(1, limit)))

    async def exchange(self, request: web.Request) -> web.Response:
        """GET …/exchanges/{id}: all that is known of one exchange."""
        async with self._database.reading() as session:
            return as_json(await queries.exchange(session, request.match_info["id"], payloads=self._payloads))

    async def stream(self, request: web.Request) -> web.Response:
        """GET …/stream: one stream with its whole verdict."""
        async with self._database.reading() as session:
            return as_json(await queries.one_stream(session, request.query))

    async def detectors(self, request: web.Request) -> web.Response:
        """GET …/detectors: each detector's mean, confidence sequence and band over time, by column."""
        async with self._database.reading() as session:
            found = await _period_rows(session, request.query, effects=True)
        names = sorted({effect["detector"] for row in found for effect in row.effects})
        return as_json({"at": [row.at for row in found], "detectors": {n: _columns(n, found) for n in names}})

    async def _tokens(self, session: AsyncSession, query: Mapping[str, str]) -> list[dict[str, Any]]:
        if not query.get("exchange_id"):
            raise RequestError("exchange_id is missing", code="missing_parameter", param="exchange_id")
        choice = queries.whole(query, "choice", 0)
        found = await queries.answer_tokens(session, query["exchange_id"], choice, texts=self._payloads)
        return [token.to_dict() for token in found]


def as_json(value: Any, *, status: int = 200) -> web.Response:
    """Times as RFC 3339 in UTC, NaN and infinities as null."""
    body = orjson.dumps(value, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS, default=str)
    return web.Response(body=body, status=status, content_type="application/json")


async def _streams(session: AsyncSession, _: Mapping[str, str]) -> list[dict[str, Any]]:
    return await queries.all_streams(session)


async def _history(session: AsyncSession, query: Mapping[str, str]) -> list[dict[str, Any]]:
    return [rows.history_row(row) for row in await _period_rows(session, query)]


async def _verdicts(session: AsyncSession, query: Mapping[str, str]) -> list[dict[str, Any]]:
    key = queries.stream_key(query) if query.get("upstream") else None
    changes = await history.verdict_changes(session, key, limit=queries.MOST_EXPORTED)
    return [rows.verdict_row(change) for change in changes]


async def _latest(session: AsyncSession, query: Mapping[str, str]) -> list[dict[str, Any]]:
    found = await search.latest(session, queries.stream_key(query), limit=queries.MOST_EXPORTED)
    return [rows.audit_row(row) for row in found]


async def _worst(session: AsyncSession, query: Mapping[str, str]) -> list[dict[str, Any]]:
    return [rows.audit_row(row) for row in await search.worst(session, queries.stream_key(query), limit=100)]


async def _exchanges(session: AsyncSession, query: Mapping[str, str]) -> list[dict[str, Any]]:
    page = await queries.exchanges(session, query, limit=queries.MOST_EXPORTED)
    found: list[dict[str, Any]] = page["rows"]
    return found


async def _waiting(session: AsyncSession, _: Mapping[str, str]) -> list[dict[str, Any]]:
    return await queries.backlog(session)


async def _alerts(session: AsyncSession, _: Mapping[str, str]) -> list[dict[str, Any]]:
    return [rows.alert_row(alert) for alert in await alerts.every_alert(session)]


async def _notices(session: AsyncSession, _: Mapping[str, str]) -> list[dict[str, Any]]:
    return [rows.notice_row(row) for row in await alerts.latest_notices(session, limit=queries.MOST_EXPORTED)]


async def _silences(session: AsyncSession, _: Mapping[str, str]) -> list[dict[str, Any]]:
    return [rows.silence_row(row) for row in await alerts.silences(session, now=datetime.now(timezone.utc))]


async def _period_rows(session: AsyncSession, query: Mapping[str, str], *, effects: bool = False) -> Any:
    within = await queries.period(session, query, datetime.now(timezone.utc))
    return await queries.stream_history(session, queries.stream_key(query), within, effects=effects)


def _columns(name: str, found: Any) -> dict[str, Any]:
    by_row: list[dict[str, Any]] = [next((e for e in row.effects if e["detector"] == name), {}) for row in found]
    unit = next((effect["unit"] for effect in by_row if effect), "")
    values = {field: [_short(effect.get(field)) for effect in by_row] for field in ("mean", "low", "high", "tolerated")}
    return {"unit": unit, **values}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
