"""How fast the dashboard answers over a large database, and how much a first load transfers.

    python -m bench.dashboard [--audits 10000000] [--databases sqlite postgres] [--requests 40] [--keep DIR]

A database with that many audits is generated (`bench.large_database`), or, with `--keep`, left in a directory for other
runs and used again from there; `--requests 0` does no more than that. Then `seedproof dashboard serve` runs over it as
a process of its own, and each kind of page is asked for one after the other, with other streams, exchanges, filters
and places in the list each time. Times are the client's, to the last byte, after one request of that kind; CPU times
are those of the server and of Postgres, which other work on the machine does not change; bytes are those on the wire.
Postgres is the tests' own (tests/databases.py). Results are saved as bench/results/dashboard.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import psutil

from bench.large_database import DAYS, SCORED, UPSTREAMS, Made, database_directory, database_in, made_database
from bench.large_history import renew
from bench.run import ROOT, save_case
from storage.database import open_database


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audits", type=int, default=10_000_000)
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgres"), default=["sqlite", "postgres"])
    parser.add_argument("--requests", type=int, default=40, help="of each kind of page; 0 only generates")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the databases here, and use those that are")
    options = parser.parse_args()
    for kind in options.databases:
        with database_directory(kind, options.keep) as directory, database_in(directory, kind) as url:
            made = asyncio.run(made_database(directory, url, kind, options.audits))
            if options.requests:
                case = asyncio.run(measure(url, made, options.requests))
                save_case("dashboard", case)
                tell(case)


def tell(case: dict[str, Any]) -> None:
    print(case["case"])
    for name, page in case["pages"].items():
        took = f"p50 {page['p50_ms']:7.1f}   p95 {page['p95_ms']:7.1f}   CPU {page['cpu_ms']:6.1f} ms"
        print(f"  {name:22} {took}   {page['bytes']:7} bytes")
    print(f"  worst p95 {case['worst_p95_ms']} ms, first loads: {case['first_load_bytes']}")


async def measure(url: str, made: Made, requests: int) -> dict[str, Any]:
    async with open_database(url) as database:
        await renew(database, made.audits)
    async with serving(url) as (address, servers), aiohttp.ClientSession(auto_decompress=False) as client:
        streams = (await fetched(client, f"{address}/api/v1/streams.json"))["rows"]
        pages = {}
        for name, paths in asked(streams, made, requests).items():
            pages[name] = await timed(client, address, paths, servers)
        loads = {}
        for name, path in first_pages(streams, made):
            loads[name] = await first_load(client, address, path)
    return {
        "case": f"{made.kind}, {made.audits} audits", "audits": made.audits, "waiting": made.waiting,
        "requests_per_page": requests, "pages": pages, "first_load_bytes": loads, "generated_seconds": made.seconds,
        "worst_p95_ms": max(page["p95_ms"] for page in pages.values()),
        "worst_cpu_ms": max(page["cpu_ms"] for page in pages.values()), "load_average": os.getloadavg()[0],
    }  # fmt: skip


def asked(streams: list[dict[str, Any]], made: Made, count: int) -> dict[str, list[str]]:
    """The paths of each kind of page, other ones each time."""
    rng = random.Random(20)
    keys = [stream_query(rng.choice(streams)) for _ in range(count)]
    ids = [made.exchange_id(rng.randrange(made.audits // SCORED) * SCORED) for _ in range(count)]
    periods = ["1h", "6h", "24h", "7d", "30d", "90d", "1y"]
    moments = [moment_text(made.moment(0) + timedelta(days=rng.uniform(1, DAYS - 1))) for _ in range(count)]
    upstreams = [rng.choice(UPSTREAMS) for _ in range(count)]
    narrow = "auditing=verified&match_below=0.97"
    return {
        "overview": [f"?period={periods[i % 7]}" for i in range(count)],
        "stream": [f"/stream?{key}&period={periods[i % 7]}" for i, key in enumerate(keys)],
        "exchanges": ["/exchanges"] * count,
        "exchanges, deep": [f"/exchanges?before={moment}_x" for moment in moments],
        "exchanges, filtered": [
            f"/exchanges?upstream={u}&{narrow}&until={m}" for u, m in zip(upstreams, moments, strict=True)
        ],
        "exchanges, waiting": [f"/exchanges?upstream={u}&auditing=waiting" for u in upstreams],
        "exchanges, rare": [f"/exchanges?outcome=malformed&before={moment}_x" for moment in moments],
        "exchanges, unsupported": [f"/exchanges?auditing=unsupported&before={moment}_x" for moment in moments],
        "id, whole": [f"/exchanges?id={i}" for i in ids],
        "id, part": [f"/exchanges?id={i[-9:]}" for i in ids],
        "exchange": [f"/exchanges/{i}" for i in ids],
        "alerts": ["/alerts"] * count,
        "settings": ["/settings"] * count,
        "api history": [f"/api/v1/history.json?{key}&period={periods[i % 7]}" for i, key in enumerate(keys)],
        "api detectors": [f"/api/v1/detectors?{key}&period={periods[i % 7]}" for i, key in enumerate(keys)],
        "api tokens": [f"/api/v1/tokens.json?exchange_id={i}" for i in ids],
        "csv exchanges": ["/api/v1/exchanges.csv"] * count,
    }  # fmt: skip


def moment_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def first_pages(streams: list[dict[str, Any]], made: Made) -> Iterator[tuple[str, str]]:
    yield "overview", ""
    yield "stream", f"/stream?{stream_query(streams[0])}&period=7d"
    yield "exchanges", "/exchanges"
    yield "exchange", f"/exchanges/{made.exchange_id(0)}"


def stream_query(stream: dict[str, Any]) -> str:
    return urlencode({name: stream[name] for name in ("upstream", "model", "reference", "sampler")})


async def timed(
    client: aiohttp.ClientSession, address: str, paths: list[str], servers: list[psutil.Process]
) -> dict[str, Any]:
    seconds, size = [], 0
    await got(client, address + paths[0])
    spent = cpu_seconds(servers)
    for path in paths:
        began = time.perf_counter()
        size = max(size, len(await got(client, address + path)))
        seconds.append(time.perf_counter() - began)
    cpu = (cpu_seconds(servers) - spent) / len(paths)
    cuts = statistics.quantiles(seconds, n=20)
    times = {"p50": cuts[9], "p95": cuts[18], "max": max(seconds), "cpu": cpu}
    return {**{f"{name}_ms": round(1e3 * value, 1) for name, value in times.items()}, "bytes": size}


def cpu_seconds(servers: list[psutil.Process]) -> float:
    """CPU time of the dashboard, and of Postgres with its backends: what other work on the machine does not change."""
    spent = 0.0
    for server in servers:
        for process in [server, *server.children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                spent += sum(process.cpu_times()[:2])
    return spent


async def first_load(client: aiohttp.ClientSession, address: str, path: str) -> int:
    """Bytes of a page with all that it loads: what its HTML names, and the JSON of its charts."""
    page = await got(client, address + path)
    async with client.get(address + path, headers={"Accept-Encoding": "identity"}) as answer:
        html = (await answer.read()).decode()
    named = set(re.findall(r'(?:src|href)="(/dashboard/static/[^"]+)"', html))
    named |= {found.replace("&amp;", "&") for found in re.findall(r'data-(?:source|detectors)="([^"]+)"', html)}
    origin = address.removesuffix("/dashboard")
    return len(page) + sum([len(await got(client, origin + one)) for one in named])


async def got(client: aiohttp.ClientSession, url: str) -> bytes:
    async with client.get(url, headers={"Accept-Encoding": "gzip, deflate"}) as answer:
        body = await answer.read()
        assert answer.status == 200, (url, answer.status)
        return body


async def fetched(client: aiohttp.ClientSession, url: str) -> Any:
    async with client.get(url, headers={"Accept-Encoding": "identity"}) as answer:
        assert answer.status == 200, (url, await answer.read())
        return json.loads(await answer.read())


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[tuple[str, list[psutil.Process]]]:
    """`seedproof dashboard serve` as its own process: its address, and all processes that serve."""
    folder = Path(tempfile.mkdtemp(prefix="seedproof-bench-"))
    (folder / "c.toml").write_text(
        f'store = "{url}"\n[seed]\nsecret_env = "S"\n[dashboard]\nlisten = "127.0.0.1:0"\n'
        '[[upstreams]]\nname = "up"\nbase_url = "http://127.0.0.1:1/v1"\n'
    )
    command = [sys.executable, "-m", "seedproof", "dashboard", "serve", "--config", str(folder / "c.toml")]
    environment = {**os.environ, "S": "s" * 32, "PYTHONPATH": str(ROOT)}
    process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        yield line.split()[-1], [psutil.Process(process.pid), *postgres_of(url)]
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def postgres_of(url: str) -> list[psutil.Process]:
    """The server behind a URL of `database_of`."""
    found = re.search(r"host=(\S+)", url)
    if found is None:
        return []
    return [psutil.Process(int((Path(found[1]) / "data/postmaster.pid").read_text().split()[0]))]


if __name__ == "__main__":
    main()
