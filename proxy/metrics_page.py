"""`GET /metrics`, on an address of its own: what the processes measured, and what lies in the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from proxy.clients import carries
from proxy.listen import bind
from proxy.metrics import Metrics
from proxy.metrics_config import MetricsConfig
from proxy.metrics_store import StoreMetrics
from storage.database import Database


@asynccontextmanager
async def metrics_listening(
    config: MetricsConfig, metrics: Metrics, database: Database, *, share_port: bool = False
) -> AsyncIterator[str]:
    """Yields the address of the metrics. Raises ListenError."""
    app = web.Application()
    page = _Page(config.token, metrics, StoreMetrics(database))
    app.router.add_get("/metrics", page.metrics)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    try:
        await runner.setup()
        await bind(runner, config.host, config.port, "metrics.listen", share_port=share_port)
        host, port = runner.addresses[0][:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
    finally:
        await runner.cleanup()


class _Page:
    def __init__(self, token: str | None, metrics: Metrics, store: StoreMetrics) -> None:
        self._token, self._metrics, self._store = token, metrics, store

    async def metrics(self, request: web.Request) -> web.Response:
        """The exposition, in the format that the scraper asks for."""
        if not self._may(request):
            return web.Response(status=401, text="send the token: Authorization: Bearer TOKEN\n")
        registry = self._metrics.collecting(await self._store.families())
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # reading the files of many processes takes a while
        body = await asyncio.to_thread(encode, registry)
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    def _may(self, request: web.Request) -> bool:
        return self._token is None or carries(request.headers, self._token)
