"""The composition of this side: one resource per cleanup context, found by typed keys, and the routes."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from proxy.config import Limits, ProxyConfig
from proxy.errors import ListenError
from proxy.forward import Forwarder, not_found
from proxy.recorder import Recorder
from proxy.upstreams import Routes
from storage import exchanges
from storage.database import Database, open_database

FORWARDER = web.AppKey("FORWARDER", Forwarder)
DATABASE = web.AppKey("DATABASE", Database)
RECORDER = web.AppKey("RECORDER", Recorder)
SESSION = web.AppKey("SESSION", aiohttp.ClientSession)

UPSTREAM_KEEPALIVE_SECONDS = 4.0
"""Below uvicorn's 5 s: a POST on a connection that the provider is just closing cannot be sent again."""
CLIENT_KEEPALIVE_SECONDS = 75.0
"""nginx's; aiohttp's own default is an hour, which is also its deadline for the first request's headers."""


class DatabaseStore:
    """The recorder's store: exchanges and their jobs in one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, batch: Sequence[exchanges.NewExchange]) -> None:
        async with self._database.writing() as session:
            await exchanges.record(session, batch)


def make_app(config: ProxyConfig) -> web.Application:
    """The whole proxy; it opens its database, its recorder and its connections when it starts."""
    app = web.Application(client_max_size=config.limits.request_bytes)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        # one context, since the order of teardown matters: connections, then the last rows, then the database
        async with open_database(config.store) as database:
            app[DATABASE] = database
            app[RECORDER] = recorder = Recorder(DatabaseStore(database))
            async with recorder.running(), _session(config.limits) as session:
                app[SESSION] = session
                app[FORWARDER] = Forwarder(
                    session=session, recorder=recorder, routes=Routes(config.upstreams),
                    seed_secret=config.seed_secret,
                )
                yield

    app.cleanup_ctx.append(resources)
    _add_routes(app)
    return app


@asynccontextmanager
async def listening(config: ProxyConfig) -> AsyncIterator[str]:
    """The running proxy; yields its address, as `serving` does."""
    async with serving(make_app(config), config) as address:
        yield address


@asynccontextmanager
async def serving(app: web.Application, config: ProxyConfig) -> AsyncIterator[str]:
    """The app at its address; yields `http://host:port`, with the real port where port 0 was asked for.

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
        shutdown_timeout=config.limits.shutdown_seconds,
    )
    try:
        await runner.setup()
        await _bind(runner, config.host, config.port)
        port = runner.addresses[0][1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def _bind(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "it is in use; stop the other program or change 'listen'"
        else:
            reason = f"{error.strerror or error}; change 'listen'"
        raise ListenError(f"cannot listen on {host}:{port}: {reason}") from error


def _session(limits: Limits) -> aiohttp.ClientSession:
    """Connections to the providers: no cookies, no proxies of the environment, nothing decoded, no cap on
    their number.

    aiohttp sets TCP_NODELAY on its connections, both ways.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=UPSTREAM_KEEPALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_seconds, sock_read=limits.idle_seconds
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("User-Agent", "Content-Type"),
    )


def _add_routes(app: web.Application) -> None:
    for prefix in ("", "/{upstream:[a-z0-9][a-z0-9_-]*}"):
        app.router.add_post(f"{prefix}/v1/chat/completions", _chat)
        app.router.add_get(f"{prefix}/v1/models", _models, allow_head=False)
        app.router.add_get(f"{prefix}/v1/models/{{model:.+}}", _models, allow_head=False)
        app.router.add_route("*", f"{prefix}/v1/{{tail:.*}}", _passthrough)
    app.router.add_get("/healthz", _healthy)
    app.router.add_route("*", "/{path:.*}", not_found)


async def _healthy(_: web.Request) -> web.Response:
    """The event loop runs; says nothing of upstreams or database."""
    return web.Response(text="ok\n")


async def _chat(request: web.Request) -> web.StreamResponse:
    return await request.app[FORWARDER].chat(request)


async def _models(request: web.Request) -> web.StreamResponse:
    return await request.app[FORWARDER].models(request)


async def _passthrough(request: web.Request) -> web.StreamResponse:
    return await request.app[FORWARDER].passthrough(request)
