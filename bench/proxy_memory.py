"""The proxy's memory over many requests, with recording and auditing on: the curve should be flat after its start.

Half of the load are JSON answers, half streams; after each step the proxy is left to write what it had to write.

    usage: python -m bench.proxy_memory [--requests N] [--step N] [--save]
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--step", type=int, default=20_000)
    parser.add_argument("--save", action="store_true", help="write bench/results/proxy_memory.json")
    args = parser.parse_args()
    curve = measure(args.requests, args.step)
    result = {**described(), "requests": curve[-1]["requests"], "concurrency": CONCURRENCY, "curve": curve}
    if args.save:
        (ROOT / "bench/results/proxy_memory.json").write_text(json.dumps(result, indent=2) + "\n")


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
                for kind in ("json", "stream") if done else ():
                    load(Case(kind, kind, CONCURRENCY, step // 2), f"http://127.0.0.1:{ours.port}/{kind}/v1", [])
                settle(process)
                curve.append({
                    "requests": done, "rss_mb": process.memory_info().rss / 2**20, "fds": process.num_fds(),
                    "threads": process.num_threads(),
                })
                print(json.dumps(curve[-1]), flush=True)
    return curve


if __name__ == "__main__":
    main()
