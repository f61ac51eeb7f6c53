"""Every few seconds: what this process has recorded and lost, into the database and into its metrics.

A beat that the database does not take is skipped: the next one tells the same and more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import uuid_utils

from proxy.recorder import Recorder
from storage import proxies
from storage.database import Database
from storage.errors import StorageError
from storage.proxies import Beat

if TYPE_CHECKING:
    from proxy.metrics import Metrics

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0


@contextlib.asynccontextmanager
async def beating(recorder: Recorder, database: Database, metrics: Metrics | None) -> AsyncIterator[None]:
    """Beats while the block runs, and once more at its end."""
    heart = _Heart(recorder, database, metrics)
    task = asyncio.create_task(heart.run(), name="heartbeat")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(heart.beat(), BEAT_SECONDS)


class _Heart:
    def __init__(self, recorder: Recorder, database: Database, metrics: Metrics | None) -> None:
        self._recorder, self._database, self._metrics = recorder, database, metrics
        self._id, self._born = str(uuid_utils.uuid7()), datetime.now(timezone.utc)

    async def run(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> None:
        health = self._recorder.health()
        if self._metrics is not None:
            self._metrics.recorder(health)
        told = Beat(
            id=self._id, host=socket.gethostname(), pid=os.getpid(), started_at=self._born,
            recorded=health.recorded, lost=health.lost, waiting=self._recorder.waiting, problem=health.problem,
        )  # fmt: skip
        try:
            async with self._database.writing() as session:
                await proxies.beat(session, told, now=datetime.now(timezone.utc))
        except StorageError as error:
            logger.debug("this beat is not in the database: %s", error)
