"""Audits by actors of a Ray cluster, through a driver in a process of its own. Ray is not imported here."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from storage.models import Exchange
from verifier.auditor import Results
from verifier.child import Child, ChildDied
from verifier.errors import ExecutorLost
from verifier.executor import outliving
from verifier.remote_auditor import Loading, Needs, packed_batch, unpacked_results

AWAY_SECONDS = 5.0
ANSWER_SECONDS = 60.0
"""A driver that does not answer within this time hangs on a cluster that is gone."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # then Ray ends the driver, and we look for the cluster anew
}

logger = logging.getLogger("seedproof.worker")


class RayExecutor:
    """Batches go to the actors that `resize` asked for; while the cluster is away, `resize` waits for it.

    Args:
        address: `auto`, HOST:PORT of the head, or ray://HOST:PORT.
        loading: how actors load references; directories are those of the nodes.
        needs: of one worker.
        most: workers at a time.
    """

    def __init__(self, address: str, loading: Loading, needs: Needs, *, most: int) -> None:
        self._address, self._loading, self._needs = address, loading, needs
        self._calls = most * needs.lanes + 2
        self._driver: Child | None = None
        self._connecting = asyncio.Lock()

    async def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        return await outliving(partial(self._audit, reference, now), batch)

    async def _audit(self, reference: str, now: datetime, batch: Sequence[Exchange]) -> Results:
        return unpacked_results(await self._call("audit", reference, packed_batch(batch), now))

    async def resize(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Ask for so many workers of each reference; returns how many run, once there is a cluster.

        Raises:
            ExecutorLost: the cluster went away meanwhile.
            InputError: it cannot be used.
        """
        async with self._connecting:
            if self._driver is None:
                self._driver = await self._connected()
        call = self._call("resize", dict(wanted))
        try:
            return dict(await asyncio.wait_for(call, ANSWER_SECONDS))
        except asyncio.TimeoutError as error:
            self.close()
            raise ExecutorLost(f"the Ray cluster at {self._address} does not answer") from error

    def close(self) -> None:
        """Leave the cluster, whose actors end with that; calls that wait get ExecutorLost."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()

    async def _call(self, method: str, *args: Any) -> Any:
        driver = self._driver
        if driver is None:
            raise ExecutorLost(f"the Ray cluster at {self._address} is away")
        try:
            return await driver.call(method, *args)
        except ChildDied as error:
            if self._driver is driver:
                self.close()
            raise ExecutorLost(f"the Ray cluster at {self._address} is gone") from error

    async def _connected(self) -> Child:
        """A driver that has joined the cluster. Says once that jobs wait, and once that they no longer do."""
        told = False
        while True:
            try:
                driver = await self._tried()
            except ExecutorLost as error:
                if not told:
                    logger.warning("%s; jobs wait in the database until one does", error)
                told = True
                await asyncio.sleep(AWAY_SECONDS)
                continue
            if told:
                logger.warning("the Ray cluster at %s is there", self._address)
            return driver

    async def _tried(self) -> Child:
        driver = await asyncio.to_thread(
            Child, _driver, self._address, self._loading, self._needs, calls=self._calls, environment=ENVIRONMENT
        )
        try:
            await asyncio.wait_for(driver.call("connect"), ANSWER_SECONDS)
        except (ChildDied, asyncio.TimeoutError) as error:
            driver.close()
            raise ExecutorLost(f"no Ray cluster answers at {self._address}") from error
        except BaseException:
            driver.close()
            raise
        return driver


def _driver(address: str, loading: Loading, needs: Needs) -> Any:
    """In the child: a driver that is silent, since Ray keeps its own logs and prints its last stack on the way out."""
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    from verifier.ray_driver import RayDriver

    return RayDriver(address, loading, needs)
