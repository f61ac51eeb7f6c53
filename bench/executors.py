"""Throughput of N workers behind an executor, with a forward pass that only takes time in place of the reference.

    python -m bench.executors [--workers 1 2 4 8] [--executors process ray] [--seconds 2] [--batches 10] [--save]

A timed forward of fixed duration stands for the reference, here only: so what is measured is claiming, sending, waiting
and storing, and eight workers can be had on two cores. Two batches of a worker are on their way at a time, one on its
reference, as on a GPU. `speedup` is throughput beside that of one worker of the same executor in the same run: N
workers should have at least 0.9 N. The queue is SQLite; Ray is a cluster of one head and four nodes on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any

from bench.ingest import exchange
from bench.run import save_case
from bench.timed import REFERENCE, Timed
from storage import exchanges
from storage.database import open_database
from tests.ray_clusters import ADDRESS, ray_cluster
from verifier.executor import Executor
from verifier.executor_process import LANES, Place, ProcessExecutor
from verifier.executor_ray import RayExecutor
from verifier.remote_auditor import Needs
from verifier.worker import Worker

BATCH = 8


@asynccontextmanager
async def opened(kind: str, workers: int, seconds: float) -> AsyncIterator[Executor]:
    """An executor whose workers are all warm."""
    loading = Timed({}, seconds=seconds)
    executor: Any
    if kind == "process":
        executor = ProcessExecutor([Place(loading)] * workers)
    else:
        executor = RayExecutor(ADDRESS, loading, Needs(lanes=LANES), most=workers)
        await _all_running(executor, workers)
    try:
        now = datetime.now(timezone.utc)
        await asyncio.gather(*(executor.audit(REFERENCE, [], now=now) for _ in range(workers)))
        yield executor
    finally:
        executor.close()


async def _all_running(executor: RayExecutor, workers: int) -> None:
    while (await executor.resize({REFERENCE: workers}))[REFERENCE] < workers:  # noqa: ASYNC110 (other processes')
        await asyncio.sleep(0.2)


async def measure(kind: str, workers: int, given: argparse.Namespace) -> dict[str, Any]:
    """Batches per second of so many workers."""
    count = workers * given.batches
    with tempfile.TemporaryDirectory() as folder:
        async with open_database(f"sqlite:///{folder}/audit.db") as database:
            rows = [exchange(1500, number) for number in range(count * BATCH)]
            async with database.writing() as session:
                await exchanges.record(session, rows)
            async with opened(kind, workers, given.seconds) as executor:
                worker = Worker(database, executor, name="bench", batch=BATCH, lanes=workers * LANES)
                load, started = os.getloadavg()[0], time.perf_counter()
                await worker.run(until_empty=True)
                seconds = time.perf_counter() - started
    return {"workers": workers, "batches_per_second": round(count / seconds, 4), "load": round(load, 1)}


async def compare(kind: str, given: argparse.Namespace) -> dict[str, Any]:
    """One case: each number of workers, and how many times faster than one."""
    found = [await measure(kind, workers, given) for workers in sorted({1, *given.workers})]
    for one in found:
        one["speedup"] = round(one["batches_per_second"] / found[0]["batches_per_second"], 2)
        told = f"{kind}: {one['workers']} workers, {one['batches_per_second']:.2f} batches/s"
        print(f"{told}, {one['speedup']} × one (at least {0.9 * one['workers']:.1f}); load {one['load']}", flush=True)
    return {"case": kind, "seconds_of_a_batch": given.seconds, "jobs_of_a_batch": BATCH, "runs": found}


def main() -> None:
    """Print a line for each number of workers; --save keeps all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", nargs="+", choices=["process", "ray"], default=["process", "ray"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=2.0, help="that the forward pass of a batch takes")
    parser.add_argument("--batches", type=int, default=10, help="of each worker")
    parser.add_argument("--save", action="store_true", help="write bench/results/executors.json")
    given = parser.parse_args()
    for kind in given.executors:
        if kind == "ray":
            with ray_cluster(2, 2, 2, 2):
                case = asyncio.run(compare(kind, given))
        else:
            case = asyncio.run(compare(kind, given))
        if given.save:
            save_case("executors", case)
        print(json.dumps(case["runs"]))


if __name__ == "__main__":
    main()
