"""The alerts' page: what fires, what was sent, and silences, which are all that the dashboard ever writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone

from aiohttp import web

from proxy import dashboard_rows as rows
from proxy.dashboard_pages import page
from proxy.errors import RequestError
from storage import alerts
from storage.database import Database

LABELS = ("rule", "upstream", "model", "reference", "sampler")
HOURS = {"1": "1 hour", "4": "4 hours", "24": "1 day", "168": "1 week"}
MOST_COMMENTED = 500

CheckForm = Callable[[web.Request], Awaitable[None]]


class AlertPages:
    """Handlers; `check_form` refuses what did not come from one of this session's pages."""

    def __init__(self, database: Database, check_form: CheckForm) -> None:
        self._database, self._check_form = database, check_form

    async def alerts(self, request: web.Request) -> web.Response:
        """GET …/alerts."""
        now = datetime.now(timezone.utc)
        async with self._database.reading() as session:
            found = [rows.alert_row(alert) for alert in await alerts.every_alert(session)]
            sent = [rows.notice_row(notice) for notice in await alerts.latest_notices(session)]
            quiet = [rows.silence_row(silence) for silence in await alerts.silences(session, now=now)]
        return await page(
            request, "alerts.html", alerts=found, notices=sent, silences=quiet, labels=LABELS, hours=HOURS, now=now
        )

    async def silence(self, request: web.Request) -> web.StreamResponse:
        """POST …/alerts/silence."""
        await self._check_form(request)
        form = await request.post()
        matchers = {name: str(form[name]) for name in LABELS if form.get(name)}
        hours, comment = str(form.get("hours")), str(form.get("comment", "")).strip()
        if not matchers or hours not in HOURS or not 0 < len(comment) <= MOST_COMMENTED:
            raise RequestError("a silence needs a label, how long it holds and a comment", code="invalid_form")
        now = datetime.now(timezone.utc)
        ends_at = now + timedelta(hours=int(hours))
        async with self._database.writing() as session:
            await alerts.silence(session, matchers, starts_at=now, ends_at=ends_at, comment=comment, now=now)
        return _back()

    async def unsilence(self, request: web.Request) -> web.StreamResponse:
        """POST …/alerts/unsilence."""
        await self._check_form(request)
        number = str((await request.post()).get("id", ""))
        if not number.isdecimal() or len(number) > 9:
            raise RequestError("there is no such silence", status=404, code="not_found")
        async with self._database.writing() as session:
            await alerts.end_silence(session, int(number), now=datetime.now(timezone.utc))
        return _back()


def _back() -> web.Response:
    return web.Response(status=303, headers={"Location": "/dashboard/alerts"})


