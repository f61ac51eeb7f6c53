"""The dashboard: a read-only application of its own, with its own address, database connections and login.

Every answer carries a content security policy that allows this origin's files and nothing else. A request whose Host
is not the dashboard's own is refused, since a page elsewhere may let its name resolve to this machine.
"""

from __future__ import annotations

import functools
import importlib.resources
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields, is_dataclass
from pathlib import PurePosixPath
from typing import Any

from aiohttp import web

from proxy.config import ProxyConfig
from proxy.dashboard_alerts import AlertPages
from proxy.dashboard_api import Api, as_json
from proxy.dashboard_door import PREFIX, Door, redirect
from proxy.dashboard_pages import Pages, page
from proxy.errors import RequestError
from proxy.listen import bind
from storage.database import Database, open_database
from storage.errors import StorageError

logger = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LARGEST_FORM = 2**16
COMPRESSED = {"text/html", "text/css", "text/csv", "text/javascript", "application/json"}
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def dashboard_listening(config: ProxyConfig, *, share_port: bool = False) -> AsyncIterator[str]:
    """The dashboard of a proxy at its address; yields that, as `http://host:port/dashboard`.

    It has its own connections to the database, so that no page takes one from the proxy.

    Raises:
        ListenError: the address is in use or not ours.
        storage.errors.StorageError: the database cannot be opened.
    """
    assert config.dashboard is not None
    async with open_database(config.store) as database:
        runner = web.AppRunner(make_dashboard(config, database), access_log=None, handler_cancellation=True)
        try:
            await runner.setup()
            await bind(runner, config.dashboard.host, config.dashboard.port, "dashboard.listen", share_port=share_port)
            host, port = runner.addresses[0][:2]
            yield f"http://{f'[{host}]' if ':' in host else host}:{port}{PREFIX}"
        finally:
            await runner.cleanup()


def make_dashboard(config: ProxyConfig, database: Database) -> web.Application:
    """The application; `config.dashboard` says who may look."""
    assert config.dashboard is not None
    door = Door(config.dashboard, config.seed_secret)
    app = web.Application(middlewares=[_answered, door.guarded], client_max_size=LARGEST_FORM)
    pages = Pages(database, payloads=config.dashboard.payloads, settings=shown_settings(config))
    api = Api(database, payloads=config.dashboard.payloads)
    add, v1 = app.router.add_get, f"{PREFIX}/api/v1"
    add("/", _to_overview)
    add(f"{PREFIX}/", _to_overview)
    add(PREFIX, pages.overview)
    add(f"{PREFIX}/stream", pages.stream)
    add(f"{PREFIX}/exchanges", pages.exchanges)
    add(f"{PREFIX}/exchanges/{{id}}", pages.exchange)
    add(f"{PREFIX}/settings", pages.settings)
    alert_pages = AlertPages(database, door.check_form)
    add(f"{PREFIX}/alerts", alert_pages.alerts)
    app.router.add_post(f"{PREFIX}/alerts/silence", alert_pages.silence)
    app.router.add_post(f"{PREFIX}/alerts/unsilence", alert_pages.unsilence)
    add(f"{PREFIX}/login", door.login_page)
    app.router.add_post(f"{PREFIX}/login", door.log_in)
    app.router.add_post(f"{PREFIX}/logout", door.log_out)
    add(f"{PREFIX}/static/{{name:[\\w./-]+}}", _static)
    add(f"{v1}/exchanges", api.exchanges)
    add(f"{v1}/exchanges/{{id}}", api.exchange)
    add(f"{v1}/stream", api.stream)
    add(f"{v1}/detectors", api.detectors)
    add(f"{v1}/{{table}}.{{kind:json|csv}}", api.table)
    return app


def shown_settings(config: ProxyConfig) -> dict[str, dict[str, Any]]:
    """The configuration by section, without what its own repr hides: secrets."""
    plain = {name: value for name, value in _shown(config).items() if not isinstance(value, (dict, list))}
    sections = {"proxy": {name: value for name, value in plain.items() if name != "store"}}
    for name, value in _shown(config).items():
        if isinstance(value, dict):
            sections[name] = value
        elif isinstance(value, list):
            sections |= {f"{name}: {item['name']}": item for item in value}
    return sections


def _shown(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _shown(getattr(value, field.name)) for field in fields(value) if field.repr}
    if isinstance(value, Mapping):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_shown(item) for item in value]
    return value


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure as a page or as JSON, every answer with its headers."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = await _failure(request, error.status, error.reason.lower())
    except RequestError as error:
        response = await _failure(request, error.status, str(error))
    except StorageError as error:
        response = await _failure(request, 503, str(error))
    except Exception:
        logger.exception("a page of the dashboard failed")
        response = await _failure(request, 500, "this page failed; the proxy's log says why")
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    if isinstance(response, web.Response) and response.content_type in COMPRESSED:
        response.enable_compression()
    return response


async def _failure(request: web.Request, status: int, sentence: str) -> web.Response:
    if request.path.startswith(f"{PREFIX}/api/"):
        return as_json({"error": {"message": sentence}}, status=status)
    return await page(request, "error.html", status=status, sentence=sentence)


async def _to_overview(_: web.Request) -> web.StreamResponse:
    return redirect(PREFIX)


async def _static(request: web.Request) -> web.Response:
    found = static_files().get(request.match_info["name"])
    if found is None:
        raise RequestError("there is no such file", status=404, code="not_found")
    content_type, data = found
    # its address changes with its content (dashboard_pages.static)
    cache = {"Cache-Control": "public, max-age=31536000, immutable"}
    return web.Response(body=data, content_type=content_type, headers=cache)


@functools.cache
def static_files() -> dict[str, tuple[str, bytes]]:
    """Every file that pages may load, by its path under `static/`: content type and bytes."""
    root = importlib.resources.files("proxy") / "static"
    files = [("", file) for file in root.iterdir()] + [("vendor/", file) for file in (root / "vendor").iterdir()]
    return {
        f"{folder}{file.name}": (_TYPES[PurePosixPath(file.name).suffix], file.read_bytes())
        for folder, file in files
        if PurePosixPath(file.name).suffix in _TYPES
    }
