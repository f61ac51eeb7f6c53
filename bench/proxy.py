"""What each gateway adds to a request, in one run on one machine: ours with recording and auditing on, a bare aiohttp
pass-through, and LiteLLM's proxy where it is installed; all in front of the same provider.

CPU time is of the gateway's processes and holds on a shared machine; latencies are the client's own, minus those of
direct calls in the same run, and want an idle one (`chrt --fifo 1 python -m bench.proxy` where others work). "A core"
is a second of CPU time. `disk` is what a sync of this disk takes by itself: with a `strict` journal an answer waits
for one.

    usage: python -m bench.proxy [--quick] [--gateways NAME,…] [--litellm DIR] [--nice N] [--save]
    LiteLLM: python3 -m venv DIR && DIR/bin/pip install 'litellm[proxy]==1.106.2'
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import psutil

from bench.gateway import disk
from bench.gateway.commands import CHUNKS, KINDS, Gateway, free_ports, gateways

ROOT = Path(__file__).parents[1]
READY_SECONDS = 120.0
SETTLED_SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    """One load: `requests` of them, `concurrency` at a time."""

    name: str
    kind: str
    concurrency: int
    requests: int

    def times(self, share: float) -> Case:
        """The same with fewer requests, at least two for each connection."""
        return Case(self.name, self.kind, self.concurrency, max(2 * self.concurrency, int(self.requests * share)))


CASES = (
    Case("json_1", "json", 1, 4000), Case("json_64", "json", 64, 12000), Case("json_512", "json", 512, 12000),
    Case("stream_1", "stream", 1, 600), Case("stream_64", "stream", 64, 2000), Case("stream_512", "stream", 512, 2048),
    Case("paced_1", "paced", 1, 20), Case("paced_64", "paced", 64, 640), Case("paced_512", "paced", 512, 1536),
)
QUICK = (Case("json_1", "json", 1, 1500), Case("json_64", "json", 64, 4000), Case("paced_64", "paced", 64, 256))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cases and no LiteLLM: under a minute")
    parser.add_argument("--gateways", help="comma-separated: bare_proxy, seedproof, seedproof_fast, litellm")
    parser.add_argument("--litellm", type=Path, default=Path.home() / ".cache/seedproof/litellm")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write bench/results/proxy.json")
    args = parser.parse_args()
    if args.nice:
        os.nice(args.nice)
    names = args.gateways.split(",") if args.gateways else ["bare_proxy", "seedproof", "seedproof_fast"]
    if not args.gateways and not args.quick:
        names.append("litellm")
    result = run(names, QUICK if args.quick else CASES, args.litellm)
    print(json.dumps({name: summary for name, summary in result.items() if name != "cases"}, indent=2))
    if args.save:
        save(result, args.litellm)


def run(names: list[str], cases: tuple[Case, ...], litellm: Path = Path("none")) -> dict[str, object]:
    """Every case directly, then through each gateway; a summary of each gateway and all cases."""
    rows: list[dict[str, object]] = []
    ports = dict(zip(KINDS, free_ports(len(KINDS)), strict=True))
    provider = [part for kind, port in ports.items() for part in (f"--{kind}", str(port))]
    with (
        tempfile.TemporaryDirectory(prefix="seedproof-bench-") as scratch,
        started([sys.executable, "-m", "bench.gateway.provider", *provider], {}, f"http://127.0.0.1:{ports['json']}/"),
    ):
        known = gateways(Path(scratch), litellm, ports)
        direct = {case.name: load(case, f"http://127.0.0.1:{ports[case.kind]}/v1", []) for case in cases}
        rows += [{"gateway": "direct", "case": name, **seen} for name, seen in direct.items()]
        syncs = disk.measure(Path(scratch))
        for gateway in (known[name] for name in names):
            probe = f"http://127.0.0.1:{gateway.port}{gateway.probe}"
            with started(gateway.command, gateway.environment, probe) as process:
                for case in cases:
                    row = measure(gateway, process, case.times(gateway.share), direct[case.name])
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
    summaries = {name: summary([row for row in rows if row["gateway"] == name]) for name in names}
    return {"disk": syncs, **summaries, "held": held(summaries), "cases": rows}


def held(summaries: dict[str, dict[str, float]]) -> dict[str, bool]:
    """What was promised of the proxy, and whether this run saw it; nothing of gateways that did not run."""
    ours, theirs = summaries.get("seedproof"), summaries.get("litellm")
    found = {} if ours is None else {
        "requests_per_second_per_core >= 1500": ours["requests_per_second_per_core"] >= 1500,
        "chunks_per_second_per_core >= 10000": ours["chunks_per_second_per_core"] >= 10_000,
        "added_p50_ms <= 1": ours["added_p50_ms"] <= 1, "added_p99_ms <= 5": ours["added_p99_ms"] <= 5,
        "rss_mb <= 150": ours["rss_mb"] <= 150, "errors == 0": ours["errors"] == 0,
    }
    if ours is not None and theirs is not None:
        ratio = ours["requests_per_second_per_core"] / theirs["requests_per_second_per_core"]
        found["requests_per_second_per_core >= 10 x litellm"] = ratio >= 10
    return found


def measure(gateway: Gateway, process: psutil.Process, case: Case, direct: dict[str, float]) -> dict[str, object]:
    """One case through one gateway: what the client saw, and what the gateway spent until it was idle again."""
    url = f"http://127.0.0.1:{gateway.port}{gateway.path(case.kind)}"
    model = gateway.model(case.kind)
    load(Case(case.name, case.kind, case.concurrency, min(128, max(20, case.concurrency))), url, gateway.headers, model)
    settle(process)
    before = cpu_seconds(process)
    seen = load(case, url, gateway.headers, model)
    settle(process)
    spent = cpu_seconds(process) - before
    chunks = CHUNKS if case.kind != "json" else 1
    return {
        "gateway": gateway.name, "case": case.name, **seen, "cpu_us_per_request": 1e6 * spent / seen["requests"],
        "chunks_per_second_per_core": seen["requests"] * chunks / spent,
        "added_p50_ms": seen["p50_ms"] - direct["p50_ms"], "added_p99_ms": seen["p99_ms"] - direct["p99_ms"],
        "added_first_p50_ms": seen["first_p50_ms"] - direct["first_p50_ms"],
        "rss_mb": sum(part.memory_info().rss for part in family(process)) / 2**20,
    }


def summary(rows: list[dict[str, object]]) -> dict[str, float]:
    """The figures that are compared: throughput at 64, latency at 1; `reads_per_chunk` is 1 where every chunk of a
    paced stream came by itself."""
    by_case = {str(row["case"]): row for row in rows}
    paced = by_case.get("paced_1", by_case["paced_64"])
    return {
        "requests_per_second_per_core": 1e6 / float(by_case["json_64"]["cpu_us_per_request"]),
        "added_p50_ms": float(by_case["json_1"]["added_p50_ms"]),
        "added_p99_ms": float(by_case["json_1"]["added_p99_ms"]),
        "chunks_per_second_per_core": float(by_case["paced_64"]["chunks_per_second_per_core"]),
        "reads_per_chunk": float(paced["reads"]) / (CHUNKS * float(paced["requests"])),
        "rss_mb": max(float(row["rss_mb"]) for row in rows),
        "errors": sum(int(row["errors"]) for row in rows),
    }


def load(case: Case, base: str, headers: list[str], model: str = "m") -> dict[str, float]:
    """Run the load in a process of its own."""
    command = [
        sys.executable, "-m", "bench.gateway.load", f"{base}/chat/completions",
        "--concurrency", str(case.concurrency), "--requests", str(case.requests), "--model", model,
        *(["--stream"] if case.kind != "json" else []), *(part for header in headers for part in ("--header", header)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and its children."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of the process and its children."""
    return sum(times.user + times.system for times in (part.cpu_times() for part in family(process)))


def settle(process: psutil.Process) -> None:
    """Wait until a gateway has written what it had to write: half a second with hardly any work, twice."""
    quiet, last, give_up = 0, cpu_seconds(process), time.monotonic() + SETTLED_SECONDS
    while quiet < 2 and time.monotonic() < give_up:
        time.sleep(0.5)
        now = cpu_seconds(process)
        quiet, last = (quiet + 1 if now - last <= 0.03 else 0), now


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str], probe: str | None) -> Iterator[psutil.Process]:
    """A running process, answering at `probe` (any status) if that is given."""
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + READY_SECONDS
        while probe is not None and not _answers(probe):
            if child.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"{' '.join(command[:4])} … did not come up")
            time.sleep(0.2)
        time.sleep(0.5)
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def save(result: dict[str, object], litellm: Path) -> None:
    """Keep the run with what it ran on."""
    freeze = [str(litellm / "bin/python"), "-m", "pip", "show", "litellm"]
    shown = subprocess.run(freeze, capture_output=True, text=True, check=False).stdout if "litellm" in result else ""
    version = next((line.split()[1] for line in shown.splitlines() if line.startswith("Version:")), None)
    document = {**described(), "litellm_version": version, **result}
    path = ROOT / "bench/results/proxy.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def described() -> dict[str, object]:
    """Date, commit, hardware and versions of a run."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {_cpu_model()}, load {os.getloadavg()[0]:.1f}",
        "versions": {
            name: metadata.version(name) for name in ("aiohttp", "orjson", "SQLAlchemy")
        } | {"python": platform.python_version()},
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


if __name__ == "__main__":
    main()
