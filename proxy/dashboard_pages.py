"""The dashboard's pages: each reads its rows in one transaction and renders in a thread, so that no answer waits."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.resources
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

import orjson
from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proxy import dashboard_format as form
from proxy import dashboard_queries as queries
from proxy import dashboard_rows as rows
from proxy.dashboard_chart import sparkline
from proxy.dashboard_tokens import Token, tokens
from proxy.errors import RequestError
from storage import dead_letters, history, proxies, search
from storage.database import Database
from storage.errors import CorruptScores
from storage.models import Outcome
from storage.search import Auditing

FORM_TOKEN = web.RequestKey("FORM_TOKEN", str)
LOGGED_IN = web.RequestKey("LOGGED_IN", bool)
TOKENS_SHOWN = 400
MOST_CHARACTERS = 20_000
"""Of one text on a page; the raw JSON holds the rest."""


class Pages:
    """Handlers of the pages. `settings` is what the settings page lists: section, then name and value."""

    def __init__(self, database: Database, *, payloads: bool, settings: Mapping[str, Mapping[str, Any]]) -> None:
        self._database, self._payloads, self._settings = database, payloads, settings

    async def overview(self, request: web.Request) -> web.Response:
        """One row per stream."""
        now = _now()
        async with self._database.reading() as session:
            within = await queries.period(session, request.query, now)
            found = await queries.all_streams(session)
            span = history.span_for(queries.PERIODS[within.name], streams=len(found))
            past = await history.match_rates(session, span=span, since=within.since)
            waiting = await queries.backlog(session)
            losses = await proxies.losses(session, now=now)
            refused = await dead_letters.count(session)
        for stream in found:
            key = queries.stream_key(stream)
            stream["chart"] = sparkline(past.get(key, ()))
        return await page(
            request, "overview.html", streams=found, waiting=waiting, now=now, period=within.name, losses=losses,
            refused=refused,
            oldest=min((row["oldest"] for row in waiting if row["oldest"]), default=None),
        )  # fmt: skip

    async def stream(self, request: web.Request) -> web.Response:
        """Everything behind one verdict."""
        now = _now()
        async with self._database.reading() as session:
            found = await queries.one_stream(session, request.query)
            key = queries.stream_key(request.query)
            within = await queries.period(session, request.query, now)
            past = await queries.stream_history(session, key, within)
            changes = await history.verdict_changes(session, key)
            latest = await search.latest(session, key)
            worst = await search.worst(session, key)
        return await page(
            request, "stream.html", stream=found, now=now, period=within.name, key=vars(key),
            rates=rows.rate_counts(past), points=len(past), changes=[rows.verdict_row(row) for row in changes],
            latest=[rows.audit_row(row) for row in latest], worst=[rows.audit_row(row) for row in worst],
        )  # fmt: skip

    async def exchanges(self, request: web.Request) -> web.Response:
        """The list."""
        async with self._database.reading() as session:
            found = await queries.exchanges(session, request.query)
            streams = await queries.all_streams(session)
        return await page(
            request, "exchanges.html", found=found, query=request.query, outcomes=[o.value for o in Outcome],
            auditings=[a.value for a in Auditing], upstreams=sorted({s["upstream"] for s in streams}),
            models=sorted({s["model"] for s in streams}),
        )  # fmt: skip

    async def exchange(self, request: web.Request) -> web.Response:
        """One exchange and its answer's tokens."""
        choice = queries.whole(request.query, "choice", 0)
        start = queries.whole(request.query, "from", 0)
        async with self._database.reading() as session:
            found, audits, job = await search.exchange(session, request.match_info["id"])
        if found is None and not audits:
            raise RequestError("there is no such exchange", status=404, code="not_found")
        audit = next((audit for audit in audits if audit.choice_index == choice), None)
        scores, pieces = (audit.scores, audit.pieces) if audit is not None else (None, None)
        detail = rows.exchange_detail(found, audits, job, payloads=self._payloads)
        known = rows.audit_detail(audit) if audit is not None else None
        work = functools.partial(_shown_exchange, detail, scores, pieces, start, texts=self._payloads)
        shown = await asyncio.to_thread(work)
        return await page(
            request, "exchange.html", id=request.match_info["id"], choice=choice, audit=known, start=start,
            step=TOKENS_SHOWN, said=rows.conversation(found) if found is not None and self._payloads else None,
            **detail, **shown,
        )  # fmt: skip

    async def settings(self, request: web.Request) -> web.Response:
        """What the proxy runs with."""
        return await page(request, "settings.html", settings=self._settings, where=self._database.where)


async def page(request: web.Request, name: str, *, status: int = 200, **values: Any) -> web.Response:
    """A rendered page."""
    template = environment().get_template(name)
    shared = {"form_token": request.get(FORM_TOKEN, ""), "logged_in": request.get(LOGGED_IN, False)}
    text = await asyncio.to_thread(template.render, path=request.path, **shared, **values)
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")


@functools.cache
def environment() -> Environment:
    """The templates. Whatever they print is made visible and escaped."""
    made = Environment(
        loader=PackageLoader("proxy"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_finalize,
    )  # fmt: skip
    made.filters |= {
        "moment": form.moment, "duration": form.duration, "number": form.number, "e_value": form.e_value,
        "query": _query, "pretty": pretty, "short": short, "quoted": form.quoted, "token_text": token_text,
        "reference_name": form.reference_name,
    }  # fmt: skip
    made.globals |= {"NONE": form.NONE, "PERIODS": tuple(queries.PERIODS), "static": _static_url}
    return made


def pretty(value: Any) -> str:
    """JSON for people."""
    option = orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(value, option=option, default=str).decode()


def short(text: Any, most: int = MOST_CHARACTERS) -> str:
    """The beginning of a long text, and how much is left out."""
    text = text if isinstance(text, str) else pretty(text)
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters: see the raw JSON)"


def token_text(token: Token) -> str:
    """A token in the running text: what has no width of its own gets a sign."""
    if token.text is None:
        return "▢ " if token.token_id is None else f"#{token.token_id} "
    return token.text.replace("\n", "↵\n") or "∅"


def _shown_exchange(
    detail: dict[str, Any], scores: bytes | None, pieces: bytes | None, start: int, *, texts: bool
) -> dict[str, Any]:
    try:
        every = tokens(scores, pieces, texts=texts) if scores is not None else []
    except CorruptScores as error:
        return {"tokens": [], "count": 0, "trouble": str(error), "raw": pretty(detail)}
    return {"tokens": every[start : start + TOKENS_SHOWN], "count": len(every), "trouble": None, "raw": pretty(detail)}


def _finalize(value: Any) -> Any:
    if value is None:
        return form.NONE
    return form.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _query(values: Mapping[str, Any], **changes: Any) -> str:
    merged = {**values, **changes}
    return urlencode({name: value for name, value in merged.items() if value not in (None, "")})


@functools.cache
def _static_url(name: str) -> str:
    data = (importlib.resources.files("proxy") / "static" / name).read_bytes()
    return f"/dashboard/static/{name}?v={hashlib.sha256(data).hexdigest()[:12]}"


def _now() -> datetime:
    return datetime.now(timezone.utc)
