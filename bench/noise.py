"""Seconds and memory to write out 1,000 × 128,256 values of each contract's noise, and to race a row of logits on it.

    python -m bench.noise [--rows 1000] [--width 128256] [--save]

`rows` writes the noise out in chunks; `race` scores random claims on random logits, an unfavourable case; `allocated`
is the peak of what one race allocates (tracemalloc), `resident` the process's peak. Nothing is gated: read the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from verifier.samplers import candidates, contract

RESULTS = Path(__file__).parent / "results" / "noise.json"
CHUNK = 50


def main() -> None:
    """Print the table, and save it if asked to."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, default=1000)
    arguments.add_argument("--width", type=int, default=128_256)
    arguments.add_argument("--save", action="store_true", help=f"write {RESULTS.name} beside the benchmarks")
    chosen = arguments.parse_args()
    print(f"{chosen.rows} rows × {chosen.width} ids\n{'contract':34}{'rows s':>8}{'race s':>8}{'allocated':>12}")
    found = [measure(one, chosen.rows, chosen.width) for one in candidates() if hasattr(contract(one), "gumbel")]
    print(f"resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at its peak")
    if chosen.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"rows": chosen.rows, "width": chosen.width, "contracts": found}, indent=1))


def measure(contract_id: str, rows: int, width: int) -> dict[str, Any]:
    """One contract's line, printed as soon as it is known."""
    rules: Any = contract(contract_id)
    rng, columns = np.random.default_rng(0), np.arange(width)
    logits = rng.normal(0, 3, (CHUNK, width)).astype(np.float32)
    claimed, cuts, heats = rng.integers(0, width, CHUNK), np.full(CHUNK, -np.inf, np.float32), np.ones(CHUNK)

    def write(positions: np.ndarray) -> None:
        rules.gumbel(np.full(len(positions), 42), positions, columns, width)

    def race(positions: np.ndarray) -> None:
        n = len(positions)
        rules.race(logits[:n], cuts[:n], heats[:n], claimed[:n], np.full(n, 42), positions)

    line = {"contract": contract_id}
    for name, work in (("rows", write), ("race", race)):
        work(np.arange(2))  # compiles
        start = time.perf_counter()
        for first in range(0, rows, CHUNK):
            work(np.arange(first, min(first + CHUNK, rows)))
        line[name] = round(time.perf_counter() - start, 3)
    tracemalloc.start()
    race(np.arange(CHUNK))
    line["allocated"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{contract_id:34}{line['rows']:8.2f}{line['race']:8.2f}{line['allocated']:12,}", flush=True)
    return line


if __name__ == "__main__":
    main()
