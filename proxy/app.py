"""The composition of this side: one resource per cleanup context, found by typed keys, and the routes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from aiohttp.http import HttpRequestParser

from proxy.config import JournalSettings, ProxyConfig
from proxy.errors import UnsafeInstallError
from proxy.forward import Forwarder
from proxy.heartbeat import beating
from proxy.http_log import http_logger
from proxy.limits import Limits
from proxy.listen import bind
from proxy.observation import Observer, Unobserved
from proxy.recorder import Recorder
from proxy.replies import json_reply
from proxy.surface import Surface, not_found, own_faults
from proxy.upstreams import Upstream
from storage import retention
from storage.database import Database, open_database
from storage.errors import StorageError
from storage.housekeeping import housekeeping
from storage.journal import Journal
from storage.writer import DatabaseTarget, Target, Writer

if TYPE_CHECKING:
    from proxy.metrics import Metrics

logger = logging.getLogger(__name__)

FORWARDER = web.AppKey("FORWARDER", Forwarder)
DATABASE = web.AppKey("DATABASE", Database)
RECORDER = web.AppKey("RECORDER", Recorder)
SESSION = web.AppKey("SESSION", aiohttp.ClientSession)
SURFACE = web.AppKey("SURFACE", Surface)
METRICS: web.AppKey[Metrics | None] = web.AppKey("METRICS")
CHORES: web.AppKey[set[asyncio.Task[None]]] = web.AppKey("CHORES")

UPSTREAM_KEEPALIVE_SECONDS = 4.0
"""Below uvicorn's 5 s: a POST on a connection that the provider is just closing cannot be sent again."""
CLIENT_KEEPALIVE_SECONDS = 75.0
"""nginx's; aiohttp's own default is an hour, which is also its deadline for the first request's headers."""


def make_app(config: ProxyConfig, *, observer: Observer | None = None) -> web.Application:
    """The whole proxy; it opens its database, its recorder and its connections when it starts.

    Raises:
        UnsafeInstallError: aiohttp lacks its C parser.
    """
    require_c_parser()
    metrics = None if config.metrics is None else _metrics()
    watcher = observer or metrics or Unobserved()
    app = web.Application(middlewares=[own_faults])

    async def resources(app: web.Application) -> AsyncIterator[None]:
        # one context, since the order of teardown matters: connections, then the last rows, then the database
        async with open_database(config.store) as database:
            app[DATABASE] = database
            await _keep_rules(database, config.upstreams)
            async with AsyncExitStack() as stack:
                target = DatabaseTarget(database) if metrics is None else metrics.measured(DatabaseTarget(database))
                recorder = await stack.enter_async_context(recording(config.journal, database, target))
                app[RECORDER] = recorder
                if not config.journal.writer_apart:
                    await stack.enter_async_context(housekeeping(database))
                await stack.enter_async_context(beating(recorder, database, metrics))
                session = await stack.enter_async_context(_session(config.limits))
                app[SESSION] = session
                app[FORWARDER] = Forwarder(session=session, recorder=recorder, observer=watcher)
                app[SURFACE] = Surface(app[FORWARDER], watcher, config)
                yield
                await asyncio.gather(*app[CHORES])

    async def ending(app: web.Application) -> None:
        drain(app)
        app[FORWARDER].ends_at = time.monotonic() + config.limits.shutdown_seconds

    app[METRICS], app[CHORES] = metrics, set()
    app.cleanup_ctx.append(resources)
    app.on_shutdown.append(ending)
    _add_routes(app)
    return app


async def _keep_rules(database: Database, upstreams: Sequence[Upstream]) -> None:
    """Tell `storage.retention` how long these upstreams' rows are kept."""
    rules = [upstream.retention for upstream in upstreams if upstream.retention is not None]
    async with database.writing() as session:
        await retention.set_rules(session, [upstream.name for upstream in upstreams], rules)


def reload(app: web.Application, running: ProxyConfig, new: ProxyConfig) -> ProxyConfig:
    """Put `new` into force for the requests to come, except for what only a restart can change; returns what now
    holds."""
    fixed = {name: getattr(running, name) for name in ("host", "port", "store", "journal", "dashboard", "metrics")}
    limits = {name: getattr(running.limits, name) for name in ("connect_seconds", "shutdown_seconds")}
    changed = [name for name, value in fixed.items() if getattr(new, name) != value]
    changed += [f"limits.{name}" for name, value in limits.items() if getattr(new.limits, name) != value]
    if changed:
        logger.warning("a restart is needed to change %s; the rest is in force", ", ".join(changed))
    in_force = replace(new, **fixed, limits=replace(new.limits, **limits))
    app[SURFACE].reload(in_force)
    task = asyncio.ensure_future(_renew_rules(app[DATABASE], in_force.upstreams))
    app[CHORES].add(task)
    task.add_done_callback(app[CHORES].discard)
    return in_force


async def _renew_rules(database: Database, upstreams: Sequence[Upstream]) -> None:
    try:
        await _keep_rules(database, upstreams)
    except StorageError as error:
        logger.error("retention goes by the old rules until the next reload: %s", error)  # noqa: TRY400


def drain(app: web.Application) -> float:
    """Be no longer ready, though requests are still taken: the process is about to end. Returns for how many seconds
    they should be: 0 where it was draining already, or has not begun to serve."""
    forwarder = app.get(FORWARDER)
    if forwarder is None or forwarder.draining:
        return 0.0
    forwarder.draining = True
    return app[SURFACE].limits.drain_seconds


def require_c_parser() -> None:
    """aiohttp's Python parser has had holes that its C parser never had: the proxy does not run on it.

    Raises:
        UnsafeInstallError: the C parser is not there.
    """
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise UnsafeInstallError(
            "aiohttp runs on its pure-Python HTTP parser, which is open to request smuggling; unset "
            "AIOHTTP_NO_EXTENSIONS, or install aiohttp from a wheel"
        )


@asynccontextmanager
async def recording(settings: JournalSettings, database: Database, target: Target) -> AsyncIterator[Recorder]:
    """The recorder on its journal, with a writer into the target unless that is a process apart."""
    async with Journal(settings.directory, max_bytes=settings.max_bytes) as journal:
        recorder = Recorder(
            journal, None if settings.writer_apart else Writer(target, settings.directory),
            strict=settings.strict, fail_closed=settings.fail_closed,
            seal=None if database.keys is None else database.keys.seal,
        )
        async with recorder.running():
            yield recorder


@asynccontextmanager
async def listening(
    config: ProxyConfig, app: web.Application | None = None, *, share_port: bool = False
) -> AsyncIterator[str]:
    """The running proxy with its dashboard and metrics, where they are configured; yields the proxy's address, as
    `serving` does."""
    app = app or make_app(config)
    async with serving(app, config, share_port=share_port) as address, AsyncExitStack() as beside:
        if config.dashboard is not None:
            from proxy.dashboard import dashboard_listening

            where = await beside.enter_async_context(dashboard_listening(config, share_port=share_port))
            logger.info("the dashboard is at %s", where)
        metrics = app[METRICS]
        if config.metrics is not None and metrics is not None:
            from proxy.metrics_page import metrics_listening

            page = metrics_listening(config.metrics, metrics, app[DATABASE], share_port=share_port)
            logger.info("metrics are at %s", await beside.enter_async_context(page))
        yield address


@asynccontextmanager
async def serving(
    app: web.Application, config: ProxyConfig, *, share_port: bool = False
) -> AsyncIterator[str]:
    """The app at its address; yields `http://host:port`, with the real port where port 0 was asked for.
    With `share_port` other processes may listen there too, and the kernel deals out the connections.

    Raises:
        ListenError: the address is in use or not ours.
        storage.errors.StorageError: the database cannot be opened.
    """
    runner = web.AppRunner(
        app,
        # the only setting under which a client that leaves before the first token is noticed
        handler_cancellation=True,
        keepalive_timeout=CLIENT_KEEPALIVE_SECONDS,
        access_log=None,
        logger=http_logger(),
        shutdown_timeout=config.limits.shutdown_seconds,
    )
    try:
        await runner.setup()
        await bind(runner, config.host, config.port, "listen", share_port=share_port)
        port = runner.addresses[0][1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def _metrics() -> Metrics:
    # Prometheus' client chooses at its import whether it shares values with other processes
    from proxy.metrics import Metrics

    return Metrics()


def _session(limits: Limits) -> aiohttp.ClientSession:
    """Connections to the providers: no cookies, no proxies of the environment, nothing decoded, no cap on
    their number.

    aiohttp sets TCP_NODELAY on its connections, both ways.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=UPSTREAM_KEEPALIVE_SECONDS),
        # every other deadline is `proxy.watch`'s
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("User-Agent", "Content-Type"),
    )


def _add_routes(app: web.Application) -> None:
    for prefix in ("", "/{upstream:[a-z0-9][a-z0-9_-]*}"):
        app.router.add_post(f"{prefix}/v1/chat/completions", _chat)
        app.router.add_post(f"{prefix}/v1/completions", _text)
        app.router.add_get(f"{prefix}/v1/models", _models, allow_head=False)
        app.router.add_get(f"{prefix}/v1/models/{{model:.+}}", _models, allow_head=False)
        app.router.add_route("*", f"{prefix}/v1/{{tail:.*}}", _passthrough)
    app.router.add_get("/healthz", _healthy)
    app.router.add_get("/readyz", _ready)
    app.router.add_route("*", "/{path:.*}", not_found)


async def _healthy(_: web.Request) -> web.Response:
    """The event loop runs; says nothing of upstreams or database."""
    return web.Response(text="ok\n")


async def _ready(request: web.Request) -> web.Response:
    """Whether requests should be sent here: 503 with the reason while shutting down or while records pile up."""
    health = request.app[RECORDER].health()
    reasons = ["shutting down"] if request.app[FORWARDER].draining else []
    if health.problem is not None:
        reasons.append(health.problem)
    return json_reply({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)


async def _chat(request: web.Request) -> web.StreamResponse:
    return await request.app[SURFACE].chat(request)


async def _text(request: web.Request) -> web.StreamResponse:
    return await request.app[SURFACE].text(request)


async def _models(request: web.Request) -> web.StreamResponse:
    return await request.app[SURFACE].models(request)


async def _passthrough(request: web.Request) -> web.StreamResponse:
    return await request.app[SURFACE].passthrough(request)
