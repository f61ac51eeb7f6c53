"""Seconds and memory to write out 1,000 × 128,256 values of each contract's noise, and to race rows of logits on it.

    python -m bench.noise [--rows 1000] [--width 128256] [--save]

`rows` writes the noise out in chunks; `race` scores random claims on random logits, an unfavourable case. Both are
timed by the clock and in CPU seconds of all threads: half the latter is what two idle cores take.
`allocated` is the peak of what one race allocates (tracemalloc), `resident` the process's peak. Nothing is gated.
"""

from __future__ import annotations

import argparse
import resource
import time
import tracemalloc
from typing import Any

import numpy as np
from numba import get_num_threads

from bench.run import save_case
from verifier.samplers import candidates, contract

CHUNK = 50
HEADINGS = f"{'rows s':>8}{'cpu':>8}{'race s':>8}{'cpu':>8}{'allocated':>12}"


def main() -> None:
    """Print the table, and save it if asked to."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, default=1000)
    arguments.add_argument("--width", type=int, default=128_256)
    arguments.add_argument("--save", action="store_true", help="write bench/results/noise.json")
    chosen = arguments.parse_args()
    print(f"{chosen.rows} rows × {chosen.width} ids, {get_num_threads()} threads\n{'contract':34}{HEADINGS}")
    for one in candidates():
        if hasattr(contract(one), "gumbel"):
            case = measure(one, chosen.rows, chosen.width)
            if chosen.save:
                save_case("noise", case)
    print(f"resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at its peak")


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

    line: dict[str, Any] = {"case": contract_id, "rows": rows, "width": width, "threads": get_num_threads()}
    for name, work in (("rows", write), ("race", race)):
        work(np.arange(2))  # compiles
        start, cpu = time.perf_counter(), time.process_time()
        for first in range(0, rows, CHUNK):
            work(np.arange(first, min(first + CHUNK, rows)))
        line[f"{name}_s"] = round(time.perf_counter() - start, 3)
        line[f"{name}_cpu_s"] = round(time.process_time() - cpu, 3)
    tracemalloc.start()
    race(np.arange(CHUNK))
    line["allocated"] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    times = "".join(f"{line[name]:8.2f}" for name in ("rows_s", "rows_cpu_s", "race_s", "race_cpu_s"))
    print(f"{contract_id:34}{times}{line['allocated']:12,}", flush=True)
    return line


if __name__ == "__main__":
    main()
