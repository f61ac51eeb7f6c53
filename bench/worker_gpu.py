"""Recorded outputs through the whole worker: exchanges in a new database, `seedproof worker --gpu N`, their audits.

    python -m bench.worker_gpu [--gpus 0 1 …] [--backend vllm] [--golden DIR] [--limit N] [--cpu] [--kill] [--save]

One worker process for each GPU, all at one database; they end when no job is left. `seconds` is from their start to
their end, most of it the engine's own start; the workers' own lines tell their speed. `--kill` kills vLLM's engine
after the first audits: it must be started again, and nothing be lost. Exits with 1 unless every exchange was audited
once and honest answers match.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import uuid_utils
from sqlalchemy import text

from bench.run import ROOT, save_case
from storage import exchanges
from storage.database import open_database
from storage.exchanges import NewExchange
from verifier.demo_model import ensure_demo_model
from verifier.recordings import Recording, read_recordings

FILES = {"honest_bf16": "vllm@0.26.0/v1", "v2_plain": "vllm@0.26.0/v2", "int4": "vllm@0.26.0/v1"}
HONEST = {"honest_bf16": 0.97, "v2_plain": 0.97}
FORCED = ("temperature", "top_k", "top_p")
AUDITED = """SELECT upstream, count(*), count(DISTINCT exchange_id), sum(tokens), sum(exact_matches),
    sum(verdict_status = 'verified') FROM audits GROUP BY upstream"""
JOBS = "SELECT state, count(*), max(reason) FROM jobs GROUP BY state"
STREAMS = "SELECT upstream, verdict FROM streams"


def exchange(file: str, sampler: str, one: Recording) -> NewExchange:
    """One recorded answer as the proxy would have stored it, from a provider that is named as its file."""
    prompt, output = one.sequence.prompt_token_ids, one.sequence.output_token_ids
    choice = {"index": 0, "text": one.text, "token_ids": output, "finish_reason": one.finish_reason}
    return NewExchange(
        id=str(uuid_utils.uuid7()), created_at=datetime.now(timezone.utc), upstream=file,
        endpoint="/v1/chat/completions", model="smollm2", streamed=False,
        request={"model": "smollm2", "messages": one.messages},
        forced={"seed": one.seed, **{name: getattr(one.params, name) for name in FORCED}}, overridden={},
        response={"prompt_token_ids": prompt, "choices": [choice]}, status=200, outcome="complete",
        first_byte_seconds=0.1, total_seconds=1.0, audit=True, reference="smollm2", sampler=sampler,
    )  # fmt: skip


async def record(store: str, golden: Path, limit: int | None) -> int:
    """All files' answers; returns how many."""
    made = [
        exchange(file, sampler, one)
        for file, sampler in FILES.items()
        for one in read_recordings(golden / f"{file}.jsonl", limit=limit)
    ]
    async with open_database(store) as database, database.writing() as session:
        return await exchanges.record(session, made)


async def told(store: str) -> dict[str, Any]:
    """What the database holds now."""
    async with open_database(store) as database, database.reading() as session:
        audits, jobs, streams = [(await session.execute(text(query))).all() for query in (AUDITED, JOBS, STREAMS)]
    return {
        "audits": sum(row[1] for row in audits), "audited_exchanges": sum(row[2] for row in audits),
        "tokens": sum(row[3] for row in audits), "exact_match": {row[0]: round(row[4] / row[3], 5) for row in audits},
        "verified": sum(row[5] for row in audits), "verdicts": {row[0]: row[1] for row in streams},
        "jobs": [list(row) for row in jobs],
    }  # fmt: skip


def workers(store: str, model: Path, logs: Path, args: argparse.Namespace) -> tuple[list[int], list[str]]:
    """Run them to their end; their exit codes, and the lines that they logged of their own accord."""
    command = [sys.executable, "-m", "seedproof", "worker", "--store", store, "--reference", f"smollm2={model}"]
    command += ["--backend", args.backend, "--until-empty"]
    command += ["--max-model-len", "2048"] if args.backend != "transformers" else []
    command += ["--vllm", args.vllm] if args.backend != "transformers" else []
    command += ["--batch", "16"] if args.kill else []
    places = [[]] if args.cpu else [["--gpu", str(gpu)] for gpu in args.gpus]
    outputs = [logs / f"worker-{number}.log" for number in range(len(places))]
    started = []
    for place, output in zip(places, outputs, strict=True):
        with output.open("wb") as file:
            started.append(subprocess.Popen(command + place, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT))
    if args.kill:
        kill_engine(store, started[0])
    codes = [process.wait() for process in started]
    said = [line for output in outputs for line in output.read_text().splitlines() if " seedproof." in line]
    return codes, [line.split(" seedproof.", 1)[1] for line in said]


def kill_engine(store: str, worker: subprocess.Popen[bytes]) -> None:
    """Kill the worker's engine once the first audits are stored."""
    while worker.poll() is None and not asyncio.run(told(store))["audits"]:
        time.sleep(0.1)
    for child in psutil.Process(worker.pid).children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()):
            child.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", nargs="+", type=int, default=[0])
    parser.add_argument("--cpu", action="store_true", help="one worker on the CPU instead")
    parser.add_argument("--backend", default="transformers")
    parser.add_argument("--vllm", default='{"gpu_memory_utilization": 0.3}', help="as the worker's")
    parser.add_argument("--golden", type=Path, default=Path("../shared/golden"))
    parser.add_argument("--limit", type=int, help="only the first N recordings of a file")
    parser.add_argument("--kill", action="store_true", help="kill the first worker's engine in between")
    parser.add_argument("--logs", default="", help="a directory for what the workers say")
    parser.add_argument("--save", action="store_true", help="put the case into bench/results/worker_gpu.json")
    args = parser.parse_args()
    model = ensure_demo_model()
    with tempfile.TemporaryDirectory() as scratch:
        store = f"sqlite:///{scratch}/audits.db"
        count = asyncio.run(record(store, args.golden, args.limit))
        started = time.perf_counter()
        codes, said = workers(store, model, Path(args.logs or scratch), args)
        seconds = round(time.perf_counter() - started, 1)
        found = asyncio.run(told(store))
    name = f"{args.backend}, {'cpu' if args.cpu else f'{len(args.gpus)} workers'}{', engine killed' * args.kill}"
    case = {"case": name, "exchanges": count, "seconds": seconds, **found, "exit_codes": codes, "said": said}
    print(json.dumps(case), flush=True)
    if args.save:
        save_case("worker_gpu", case)
    once = found["audits"] == found["audited_exchanges"] == found["verified"] == count
    honest = all(found["exact_match"].get(file, 0) >= least for file, least in HONEST.items())
    sys.exit(not (once and honest and not any(codes)))


if __name__ == "__main__":
    main()
