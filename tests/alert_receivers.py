"""Real receivers on loopback: HTTP that takes webhooks as Alertmanager's, Slack's and PagerDuty's do, and SMTP."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

SECRET = "a signing secret"
ROUTING_KEY = "R" * 32


@dataclass
class Taken:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Hooks:
    """What came, and how to answer: `statuses` are given in turn, then 200. Slack and PagerDuty check what they get."""

    taken: list[Taken] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        taken = Taken(request.path, dict(request.headers), await request.read())
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            return web.Response(status=status, text="not now\n")
        check = {"/slack": _wrong_for_slack, "/pagerduty": _wrong_for_pagerduty}.get(request.path)
        if check is not None and (wrong := check(taken.json)) is not None:
            return web.Response(status=400, text=wrong)
        self.taken.append(taken)
        return web.Response(text="ok")


def _wrong_for_slack(message: dict[str, Any]) -> str | None:
    """What Slack itself refuses: no text, too many blocks, sections of more than 3,000 characters."""
    if not message.get("text") or len(message["text"]) > 40_000:
        return "no_text"
    for block in message.get("blocks", []):
        if block["type"] == "section" and not 0 < len(block["text"]["text"]) <= 3000:
            return "invalid_blocks"
    return None if len(message.get("blocks", [])) <= 50 else "invalid_blocks"


def _wrong_for_pagerduty(event: dict[str, Any]) -> str | None:
    """What Events API v2 itself refuses."""
    known = ("trigger", "resolve", "acknowledge")
    if event.get("routing_key") != ROUTING_KEY or event.get("event_action") not in known:
        return "invalid event"
    if event["event_action"] == "resolve":
        return None if event.get("dedup_key") else "dedup_key is missing"
    payload = event.get("payload", {})
    if not (0 < len(payload.get("summary", "")) <= 1024 and payload.get("source")):
        return "payload is incomplete"
    return None if payload.get("severity") in ("critical", "error", "warning", "info") else "severity is unknown"


@asynccontextmanager
async def hooks() -> AsyncIterator[Hooks]:
    received = Hooks()
    app = web.Application()
    app.router.add_post("/{kind}", received.handle)
    async with TestServer(app) as server:
        received.url = f"http://127.0.0.1:{server.port}"
        yield received


@dataclass
class Mails:
    port: int = 0
    mails: list[Any] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    refuse: int = 0
    """That many mails are first answered 451: try again."""

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refuse:
            self.refuse -= 1
            return "451 greylisted"
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        self.recipients += envelope.rcpt_tos
        return "250 OK"


def _login(_server: Any, _session: Any, _envelope: Any, _mechanism: str, told: Any) -> AuthResult:
    right = isinstance(told, LoginPassword) and (told.login, told.password) == (b"seedproof", SECRET.encode())
    return AuthResult(success=right)


@contextmanager
def mail_server(port: int) -> Iterator[Mails]:
    received = Mails(port=port)
    server = Controller(
        received, hostname="127.0.0.1", port=port, authenticator=_login, auth_required=True, auth_require_tls=False
    )
    server.start()
    try:
        yield received
    finally:
        server.stop()
