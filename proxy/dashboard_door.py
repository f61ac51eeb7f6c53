"""The dashboard's door: which requests may come in. The cookie and its key are `dashboard_login`'s."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy import dashboard_login as login
from proxy.clients import carries
from proxy.dashboard_config import DashboardConfig
from proxy.dashboard_pages import FORM_TOKEN, LOGGED_IN, page
from proxy.errors import RequestError

logger = logging.getLogger(__name__)

PREFIX = "/dashboard"
COOKIE = "seedproof_session"
FAILED_SECONDS = 1.0
"""A wrong password costs that long, and only one is tried at a time: 86,400 guesses a day."""
OPEN = (f"{PREFIX}/login", f"{PREFIX}/static/")
FORM_FIELD = "form_token"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Door:
    """Checks Host, session and forms. Without a password hash everyone who reaches the address may look."""

    def __init__(self, config: DashboardConfig, seed_secret: bytes) -> None:
        self._config = config
        self._key = login.session_key(seed_secret, config.password_hash or "")
        self._one_guess_at_a_time = asyncio.Lock()

    @property
    def guarded(self) -> Middleware:
        """The middleware."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._check_host(request)
            if request.method not in ("GET", "HEAD"):
                _check_origin(request)
            session = self._session(request)
            if session is None:
                if not self._is_open(request):
                    return self._sent_away(request)
                return await handler(request)
            request[FORM_TOKEN] = login.form_token(self._key, session)
            request[LOGGED_IN] = self._config.password_hash is not None
            return await handler(request)

        return guarded

    async def login_page(self, request: web.Request) -> web.Response:
        """GET …/login."""
        return await page(request, "login.html", wrong=False, next=request.query.get("next", ""))

    async def log_in(self, request: web.Request) -> web.StreamResponse:
        """POST …/login: a session for the right password."""
        form = await request.post()
        password, target = str(form.get("password", "")), str(form.get("next", ""))
        if not await self._is_password(password):
            logger.warning("a login to the dashboard failed (from %s)", request.remote)
            return await page(request, "login.html", status=403, wrong=True, next=target)
        cookie = login.new_session(self._key, now=time.time(), nonce=secrets.token_bytes(16))
        response = redirect(target if _is_ours(target) else PREFIX)
        response.set_cookie(
            COOKIE, cookie, max_age=login.SESSION_SECONDS, path=PREFIX, httponly=True, samesite="Strict",
            secure=self._config.https,
        )  # fmt: skip
        return response

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        """POST …/logout."""
        await self.check_form(request)
        response = redirect(f"{PREFIX}/login")
        response.del_cookie(COOKIE, path=PREFIX)
        return response

    async def check_form(self, request: web.Request) -> None:
        """Raises RequestError unless the form came from one of this session's pages."""
        session = self._session(request)
        token = str((await request.post()).get(FORM_FIELD, ""))
        if session is None or not login.form_token_matches(self._key, session, token):
            raise RequestError("this form is not from your session: reload the page", status=403, code="bad_form")

    def _session(self, request: web.Request) -> str | None:
        if self._config.password_hash is None:
            return "open"
        cookie = request.cookies.get(COOKIE, "")
        return cookie if login.session_is_valid(self._key, cookie, now=time.time()) else None

    def _is_open(self, request: web.Request) -> bool:
        if request.path.startswith(OPEN):
            return True
        wanted = self._config.api_token
        return wanted is not None and request.path.startswith(f"{PREFIX}/api/") and carries(request.headers, wanted)

    def _sent_away(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith(f"{PREFIX}/api/"):
            raise RequestError("log in, or send the API token", status=401, code="unauthorized")
        if request.method != "GET":
            raise RequestError("log in first", status=401, code="unauthorized")
        return redirect(f"{PREFIX}/login?next={quote(request.path_qs)}")

    def _check_host(self, request: web.Request) -> None:
        name = _host_name(request.host)
        if not (name in (*self._config.hosts, "localhost", self._config.host) or _is_address(name)):
            sentence = f"this dashboard is not called {name!r}: add the name to [dashboard] hosts"
            raise RequestError(sentence, status=421, code="wrong_host")

    async def _is_password(self, password: str) -> bool:
        stored = self._config.password_hash
        async with self._one_guess_at_a_time:
            if stored is not None and await asyncio.to_thread(login.password_matches, password, stored):
                return True
            await asyncio.sleep(FAILED_SECONDS)
            return False


def redirect(target: str) -> web.Response:
    """To a page of ours, by GET."""
    return web.Response(status=303, headers={"Location": target})


def _check_origin(request: web.Request) -> None:
    """Browsers say where a form came from; another site's is refused."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    foreign = site not in (None, "same-origin", "none") or (
        origin is not None and origin.partition("://")[2] != request.host
    )
    if foreign:
        raise RequestError("this form came from another site", status=403, code="bad_origin")


def _is_ours(target: str) -> bool:
    return target.startswith(PREFIX) and "\\" not in target and "\n" not in target and "\r" not in target


def _host_name(host: str) -> str:
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


def _is_address(name: str) -> bool:
    # an address is no name that someone else could let point here
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
