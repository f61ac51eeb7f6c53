"""A fleet's day, simulated minute by minute: GPUs, lag, database size, and how soon each named fault is found.

    python -m bench.capacity [--requests 100e6] [--upstreams 20] [--audit-rate 0.05] [--seed 1] [--save]

Requests arrive with a daily rhythm, Poisson within a minute, shared out between upstreams by a Zipf law. The share of
them that is audited waits in one queue, oldest first, and is scored by GPUs at a rate measured by bench.verify_gpu.
Failures, each at its own time of the day: a tenth of the GPUs leave for an hour; all of them for ten minutes (the head
of the cluster restarts); the database is away for ten minutes (proxies keep their journals, workers stand still).

The least number of GPUs is searched that keeps the 99th percentile of the lag of a day with these failures below
`--lag` seconds. A fault is found once as many tokens of its stream have been audited as verifier.faults says that it
takes nine times in ten; that many are waited for, on the typical (median) and on the quietest upstream.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.run import circumstances
from verifier.band import SHIPPED, Band
from verifier.detectors import NAMES
from verifier.faults import FAULTS, tokens_for

Floats = NDArray[np.float64]

RESULTS = Path(__file__).parent / "results"
MINUTES = 24 * 60
DECODE_TOKENS_PER_SECOND = 50.0
"""How fast a provider writes an answer, about; the last answer that is needed has to end."""
RATES = (0.001, 0.01, 0.05, 0.2, 1.0)


@dataclass(frozen=True)
class Load:
    """What clients ask for in a day: requests, prompt and output tokens of each, bytes of its record and its audit."""

    requests: float = 100e6
    upstreams: int = 20
    prompt_tokens: float = 512.0
    output_tokens: float = 256.0
    exchange_bytes: float = 7_500.0
    audit_bytes: float = 3_800.0


@dataclass(frozen=True)
class Day:
    """What a simulated day came to; seconds of lag are those of the work that is done in each minute."""

    gpus: int
    audited: float
    lag_p50: float
    lag_p99: float
    lag_max: float
    utilization: float
    journal_bytes: float
    unfinished: float


def shares(upstreams: int) -> Floats:
    """Traffic of each upstream, the busiest first: Zipf's law with exponent 1."""
    weights = 1.0 / np.arange(1, upstreams + 1)
    return weights / weights.sum()


def arrivals(rng: np.random.Generator, load: Load, rate: float) -> Floats:
    """Audited requests per minute of a day [1440]: the busiest hour has three times the quietest one's."""
    hours = np.arange(MINUTES) / 60.0
    rhythm = 1.0 + 0.5 * np.sin((hours - 8.0) / 24.0 * 2 * math.pi)
    return rng.poisson(load.requests * rate * rhythm / rhythm.sum()).astype(np.float64)


def capacity(gpus: int, load: Load, tokens_per_second: float) -> Floats:
    """Requests that can be scored per minute [1440], with a day's failures taken out."""
    present = np.full(MINUTES, float(gpus))
    present[9 * 60 : 10 * 60] -= math.ceil(gpus / 10)
    present[13 * 60 : 13 * 60 + 10] = 0.0
    present[_database_away()] = 0.0
    return present * 60.0 * tokens_per_second / (load.prompt_tokens + load.output_tokens)


def _database_away() -> slice:
    return slice(15 * 60, 15 * 60 + 10)


def simulate(rng: np.random.Generator, load: Load, gpus: int, *, rate: float, tokens_per_second: float) -> Day:
    """One day of one pool, first come first served."""
    come, can = arrivals(rng, load, rate), capacity(gpus, load, tokens_per_second)
    backlog, done = 0.0, np.empty(MINUTES)
    for minute in range(MINUTES):
        backlog += come[minute]
        done[minute] = min(backlog, can[minute])
        backlog -= done[minute]
    waits = lags(come, done)
    away = come[_database_away()].sum() / rate * load.exchange_bytes if rate else 0.0
    return Day(
        gpus=gpus,
        audited=float(done.sum()),
        lag_p50=_quantile(waits, done, 0.5),
        lag_p99=_quantile(waits, done, 0.99),
        lag_max=float(waits[done > 0].max()),
        utilization=float(done.sum() / max(can.sum(), 1e-9)),
        journal_bytes=away,
        unfinished=backlog,
    )


def lags(come: Floats, done: Floats) -> Floats:
    """Seconds between coming and being done of the work that ends in each minute, in a first-come queue."""
    ended, begun = np.cumsum(done), np.cumsum(come)
    minute_it_came = np.searchsorted(begun, ended - 1e-6)
    return np.maximum(np.arange(MINUTES) - minute_it_came, 0) * 60.0


def _quantile(values: Floats, weights: Floats, q: float) -> float:
    order = np.argsort(values)
    heights = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(heights, q * heights[-1])])


def least_gpus(load: Load, *, rate: float, tokens_per_second: float, lag: float, seed: int) -> Day:
    """The smallest pool with a 99th percentile of lag within `lag` seconds and no backlog at the day's end."""

    def day(gpus: int) -> Day:
        rng = np.random.default_rng(seed)
        return simulate(rng, load, gpus, rate=rate, tokens_per_second=tokens_per_second)

    def enough(found: Day) -> bool:
        return found.lag_p99 <= lag and found.unfinished * 60 <= load.requests * rate / MINUTES * lag

    low, high = 0, 1
    while not enough(day(high)):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(day(middle)) else (middle, high)
    return day(high)


def detection_seconds(load: Load, *, rate: float, lag: float, band: Band, alpha: float) -> dict[str, Any]:
    """Seconds until each named fault is found nine times in ten, by the upstream's place; None if it never is."""
    per_second = load.requests * shares(load.upstreams) * load.output_tokens * rate / 86_400
    places = {"typical": float(np.median(per_second)), "quietest": per_second[-1]}
    detectors = tuple(name for name in NAMES if band.typical[name] < 0.999)
    found: dict[str, Any] = {}
    for fault in FAULTS:
        needed = tokens_for(fault, band, alpha=alpha, detectors=detectors)
        whole = math.ceil(needed / load.output_tokens) * load.output_tokens if needed else None
        wait = lag + load.output_tokens / DECODE_TOKENS_PER_SECOND
        seconds = {place: whole / speed + wait if whole else None for place, speed in places.items()}
        found[fault.name] = {"tokens": needed, "seconds": seconds}
    return found


def measured_speed(shape: str = "llama") -> float:
    """Tokens per second of one GPU, prompt and output, as bench.verify_gpu saved them."""
    saved = json.loads((RESULTS / "verify_gpu.json").read_text())
    return float(saved["cases"][shape]["seedproof_vllm_tokens_per_second"])


def database(load: Load, rate: float, payload_days: int, audit_days: int) -> dict[str, float]:
    """Bytes that the database holds once retention has come into balance, and rows that it takes per second."""
    return {
        "exchanges_bytes": load.requests * load.exchange_bytes * payload_days,
        "audits_bytes": load.requests * rate * load.audit_bytes * audit_days,
        "exchange_rows_per_second": load.requests / 86_400,
        "audit_rows_per_second": load.requests * rate / 86_400,
    }


def _band(path: Path | None) -> Band:
    return Band.from_dict(json.loads(path.read_text())) if path else SHIPPED


def _report(load: Load, speed: float, given: argparse.Namespace) -> dict[str, Any]:
    band, rows = _band(given.band), []
    for rate in sorted({*RATES, given.audit_rate}):
        day = least_gpus(load, rate=rate, tokens_per_second=speed, lag=given.lag, seed=given.seed)
        rows.append(
            {
                "audit_rate": rate,
                "gpus": day.gpus,
                "lag_p50_seconds": day.lag_p50,
                "lag_p99_seconds": day.lag_p99,
                "lag_max_seconds": day.lag_max,
                "utilization": day.utilization,
                "journal_bytes": day.journal_bytes,
                "database": database(load, rate, given.payload_days, given.audit_days),
                "detection": detection_seconds(load, rate=rate, lag=day.lag_p50, band=band, alpha=given.alpha),
            }
        )
    return {"load": vars(load) | {"tokens_per_second_per_gpu": speed}, "rates": rows}


def _table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    fleet = Table(title="Fleet, a day with failures")
    for heading in ("audit rate", "GPUs", "lag p99 s", "lag max s", "busy", "journal GB", "database TB", "audits/s"):
        fleet.add_column(heading, justify="right")
    for row in rows:
        stored = row["database"]["exchanges_bytes"] + row["database"]["audits_bytes"]
        fleet.add_row(
            f"{row['audit_rate']:g}",
            str(row["gpus"]),
            f"{row['lag_p99_seconds']:.0f}",
            f"{row['lag_max_seconds']:.0f}",
            f"{row['utilization']:.2f}",
            f"{row['journal_bytes'] / 1e9:.1f}",
            f"{stored / 1e12:.2f}",
            f"{row['database']['audit_rows_per_second']:.0f}",
        )
    found = Table(title="Until a fault is found (nine times in ten): typical / quietest upstream")
    for heading in ("fault", "tokens", *(f"{row['audit_rate']:g}" for row in rows)):
        found.add_column(heading, justify="left" if heading == "fault" else "right")
    for fault in FAULTS:
        cells = [row["detection"][fault.name] for row in rows]
        found.add_row(fault.name, str(cells[0]["tokens"]), *(_waits(cell["seconds"]) for cell in cells))
    Console(width=150).print(fleet, found)


def _waits(cell: dict[str, float | None]) -> str:
    return " / ".join(_duration(seconds) for seconds in cell.values())


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for unit, size in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def main() -> None:
    """Print both tables; --save keeps them with the inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=float, default=Load.requests, help="a day")
    parser.add_argument("--upstreams", type=int, default=Load.upstreams)
    parser.add_argument("--prompt-tokens", type=float, default=Load.prompt_tokens)
    parser.add_argument("--output-tokens", type=float, default=Load.output_tokens)
    parser.add_argument("--audit-rate", type=float, default=0.05, help="shown beside the usual ones")
    parser.add_argument("--tokens-per-second", type=float, help="of one GPU; default: bench/results/verify_gpu.json")
    parser.add_argument("--lag", type=float, default=900.0, help="seconds that 99 of 100 audits may wait")
    parser.add_argument("--payload-days", type=int, default=7)
    parser.add_argument("--audit-days", type=int, default=365)
    parser.add_argument("--band", type=Path, help="a band's JSON; default: the shipped, conservative one")
    parser.add_argument("--alpha", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write bench/results/capacity.json")
    given = parser.parse_args()
    load = replace(
        Load(),
        requests=given.requests,
        upstreams=given.upstreams,
        prompt_tokens=given.prompt_tokens,
        output_tokens=given.output_tokens,
    )
    result = _report(load, given.tokens_per_second or measured_speed(), given)
    _table(result["rates"])
    if given.save:
        kept = {**result, **circumstances()}
        (RESULTS / "capacity.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
