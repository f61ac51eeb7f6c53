"""Workers as many as the backlog asks for: per reference a pool of the Ray executor and lanes that claim for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from storage import jobs
from storage.database import Database
from storage.errors import DatabaseUnreachable
from verifier.errors import ExecutorLost
from verifier.executor_ray import RayExecutor
from verifier.scaling import Demand, Scale, shared_out, workers_wanted
from verifier.worker import AWAY_SECONDS, IDLE_SECONDS, Worker

TICK_SECONDS = 2.0
GUESSED_TOKENS = 1000.0
"""Of an answer with its prompt, before any was seen."""

logger = logging.getLogger("seedproof.worker")


class Fleet:
    """Looks at the queue every two seconds and has as many lanes claim as workers run; none while the cluster is away.

    Args:
        database: holds the queue.
        executor: where the workers are.
        worker: makes the Worker of one reference; all its lanes share it.
        least: workers of every reference that was asked for, even when idle.
        most: workers in all.
        lanes: of one worker.
    """

    def __init__(
        self, database: Database, executor: RayExecutor, worker: Callable[[str], Worker], *, least: int, most: int,
        lanes: int = 1,
    ) -> None:  # fmt: skip
        self._database, self._executor, self._made = database, executor, worker
        self._least, self._most, self._lanes = least, most, lanes
        self._pools: dict[str, _Pool] = {}

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until cancelled, or until no job is left to claim; an error of one lane ends all."""
        try:
            while await self._tick() or not until_empty:
                await self._until_next_tick()
        finally:
            await _ended([lane.task for pool in self._pools.values() for lane in pool.lanes])

    async def _tick(self) -> bool:
        """Whether there is work."""
        try:
            demands = await self._demands()
            wanted = self._wanted(demands)
            running = await self._executor.resize(wanted)
        except (DatabaseUnreachable, ExecutorLost) as error:
            logger.warning("%s", error)
            await asyncio.sleep(AWAY_SECONDS)
            return True
        for reference, pool in self._pools.items():
            pool.tell(wanted[reference], running.get(reference, 0))
            pool.resize(min(running.get(reference, 0), wanted[reference]) * self._lanes)
        busy = any(lane.is_busy for pool in self._pools.values() for lane in pool.lanes)
        return busy or any(demand.tokens for demand in demands.values())

    async def _until_next_tick(self) -> None:
        """Raises what a lane raised."""
        lanes = [lane.task for pool in self._pools.values() for lane in pool.lanes]
        tick = asyncio.create_task(asyncio.sleep(TICK_SECONDS))
        done, _ = await asyncio.wait([tick, *lanes], return_when=asyncio.FIRST_COMPLETED)
        tick.cancel()
        for task in done - {tick}:
            task.result()

    async def _demands(self) -> dict[str, Demand]:
        """Of every reference that has ever been asked for."""
        now = _now()
        async with self._database.reading() as session:
            due = await jobs.due(session, now=now)
        for reference in due.keys() - self._pools.keys():
            self._pools[reference] = _Pool(reference, self._made(reference))
        return {
            reference: pool.demand(*due[reference], now=now) if reference in due else Demand(0.0, 0.0)
            for reference, pool in self._pools.items()
        }

    def _wanted(self, demands: dict[str, Demand]) -> dict[str, int]:
        for reference, pool in self._pools.items():
            asked = workers_wanted(
                demands[reference], running=pool.scale.workers, tokens_per_second=pool.speed(self._lanes),
                least=self._least, most=self._most,
            )  # fmt: skip
            pool.scale = pool.scale.after(asked, _now())
        return shared_out({name: pool.scale.workers for name, pool in self._pools.items()}, demands, self._most)


class _Pool:
    """One reference's lanes."""

    def __init__(self, reference: str, worker: Worker) -> None:
        self.reference, self.worker, self.scale = reference, worker, Scale()
        self.lanes: list[_Lane] = []
        self._told: tuple[int, int] = (0, 0)

    def demand(self, due: int, oldest: datetime, *, now: datetime) -> Demand:
        return Demand(due * (self.worker.pace.mean or GUESSED_TOKENS), (now - oldest).total_seconds())

    def speed(self, lanes: int) -> float | None:
        """Tokens per second of one worker."""
        return self.worker.pace.speed and self.worker.pace.speed * lanes

    def resize(self, count: int) -> None:
        """Lanes that are too many end after their batch; until then they are kept, so that their errors are seen."""
        self.lanes = [lane for lane in self.lanes if not lane.task.done()]
        going = [lane for lane in self.lanes if not lane.stops.is_set()]
        for lane in going[count:]:
            lane.stops.set()
        self.lanes += [_Lane(self.worker) for _ in range(count - len(going))]

    def tell(self, wanted: int, running: int) -> None:
        if (wanted, running) != self._told:
            logger.info("%s: %d of %d workers run", self.reference, running, wanted)
            self._told = (wanted, running)


class _Lane:
    """Claims and works, batch after batch, until it is told to stop."""

    def __init__(self, worker: Worker) -> None:
        self.stops, self.is_busy = asyncio.Event(), False
        self.task = asyncio.create_task(self._run(worker))

    async def _run(self, worker: Worker) -> None:
        while not self.stops.is_set():
            self.is_busy = True
            try:
                worked = await worker.step()
            except (DatabaseUnreachable, ExecutorLost) as error:
                logger.warning("%s; its jobs went back", error)
                return
            finally:
                self.is_busy = False
            if not worked:
                await asyncio.sleep(IDLE_SECONDS)


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _now() -> datetime:
    return datetime.now(timezone.utc)
