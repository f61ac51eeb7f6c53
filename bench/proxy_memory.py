"""The proxy's memory over many requests, with recording and auditing on: the curve must be flat after its start.

Half of the load are JSON answers, half streams; after each step the proxy is left to write what it had to write.
Exit status 1 where the line through the second half of the curve rises by more than `--rise` MiB, there are more files
or threads than connections explain, or an answer was no 200. A million requests take about ten minutes of an idle
machine, and 5 GB of its temporary directory.

    usage: python -m bench.proxy_memory [--requests N] [--step N] [--rise MIB] [--save]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from bench.gateway.commands import KINDS, free_ports, gateways
from bench.proxy import Case, described, load, settle, started

ROOT = Path(__file__).parents[1]
CONCURRENCY = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--step", type=int, default=40_000)
    parser.add_argument("--rise", type=float, default=5.0)
    parser.add_argument("--save", action="store_true", help="write bench/results/proxy_memory.json")
    args = parser.parse_args()
    curve = measure(args.requests, args.step)
    found = judged(curve, args.rise)
    result = {
        **described(), "requests": curve[-1]["requests"], "concurrency": CONCURRENCY, **found, "limit_mb": args.rise,
        "curve": curve,
    }
    print(json.dumps(found))
    if args.save:
        (ROOT / "bench/results/proxy_memory.json").write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if found["flat"] else 1)


def judged(curve: list[dict[str, float]], limit: float) -> dict[str, float | bool]:
    """What the second half of the curve says: by how many MiB its line rises from its first point to its last."""
    half = curve[len(curve) // 2:]
    requests = [point["requests"] for point in half]
    slope = statistics.linear_regression(requests, [point["rss_mb"] for point in half]).slope
    rise = slope * (requests[-1] - requests[0])
    # kept-alive connections come and go: at most as many as run at once, to the clients and to two providers
    left_behind = {
        name: max(point[name] for point in half) - curve[0][name] - at_most
        for name, at_most in (("fds", 4 * CONCURRENCY), ("threads", 4))
    }
    errors = sum(point["errors"] for point in curve)
    return {
        "rise_of_second_half_mb": rise, "highest_rss_mb": max(point["rss_mb"] for point in curve),
        "errors": errors, "flat": rise <= limit and max(left_behind.values()) <= 0 and not errors,
    }


def measure(requests: int, step: int) -> list[dict[str, float]]:
    """Resident memory, file descriptors and threads after each step."""
    ports = dict(zip(KINDS, free_ports(len(KINDS)), strict=True))
    provider = [part for kind, port in ports.items() for part in (f"--{kind}", str(port))]
    curve: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory(prefix="seedproof-bench-") as scratch,
        started([sys.executable, "-m", "bench.gateway.provider", *provider, "--chunks", "8"], {}, None),
    ):
        ours = gateways(Path(scratch), Path("none"), ports)["seedproof"]
        with started(ours.command, ours.environment, f"http://127.0.0.1:{ours.port}{ours.probe}") as process:
            for done in range(0, requests + 1, step):
                errors = 0
                for kind in ("json", "stream") if done else ():
                    case = Case(kind, kind, CONCURRENCY, step // 2)
                    errors += int(load(case, f"http://127.0.0.1:{ours.port}/{kind}/v1", [])["errors"])
                settle(process)
                curve.append({
                    "requests": done, "rss_mb": process.memory_info().rss / 2**20, "fds": process.num_fds(),
                    "threads": process.num_threads(), "errors": errors,
                })
                print(json.dumps(curve[-1]), flush=True)
    return curve


if __name__ == "__main__":
    main()
