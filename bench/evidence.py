"""How often honest streams are called `deviates`, and how soon dishonest ones are: simulated, in NumPy.

    python -m bench.evidence [--streams 10000] [--tokens 10000] [--processes 2]

Honest tokens depend on each other: sequences have their own noise level (gamma), noise comes in bursts (a two-state
Markov chain), entropy and cross-entropy have sequence effects, and mismatches follow the entropy. Three nulls are
tried:

    clustered   bands are fitted, by verifier.calibration, to 64 such sequences; fresh streams are judged by them
    long        the same bands judge streams whose answers are ten times as long
    edge        the least favourable null: every token's conditional mean *equals* the bound of H₀, so that tokens
                depend on the past of their answer as much as the band allows, and no bet loses on average

The peers, in the same run, on the same streams and for the same null: a z-test of the mismatch rate against the
tolerated one at the same α, after every sequence, and once at the end.

The result is saved as bench/results/evidence.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import numpy as np
from scipy import stats

from bench.run import save_case
from verifier.band import HIGHEST_BOUND, IS_RATE, Band
from verifier.calibration import fit
from verifier.detectors import DETECTORS, NAMES, SURPRISE, Floats, Scores, SequenceScores, statistics
from verifier.drift import Drift, watch
from verifier.evidence import ODDS, Evidence, judging, log_start_prior, mix, start, wealth_paths
from verifier.faults import FAULTS, Fault

LENGTH = 200
FITTED = 64
CHUNK = 100
REPEATS = 40
NULLS = ("clustered", "long", "edge")
UNUSED_AT_THE_EDGE = ("cross_entropy_low", "rank_high", "rank_low")
"""Their edges exclude those of the other detectors."""
HONEST = Fault("honest", 1.0, 0.06, 1.0, 0.0, "")
SAMPLING = {"temperature": 1.0}


def simulate(rng: np.random.Generator, streams: int, tokens: int = LENGTH, fault: Fault = HONEST) -> SequenceScores:
    """One sequence of each stream, arrays [streams, tokens]: about 2 % mismatches and 0.05 % support violations."""
    shape = (streams, tokens)
    level = rng.gamma(4.0, 0.25, (streams, 1)) * np.where(_bursts(rng, shape), 2.0, 0.75)
    entropy = np.clip(rng.gamma(2.0, 1.1, shape) + rng.normal(0.0, 0.4, (streams, 1)), 0.01, None)
    mismatch = rng.random(shape) < np.minimum(0.9, 0.0085 * entropy * level * fault.mismatch)
    outside = rng.random(shape) < np.minimum(0.3, 0.00025 * entropy * level * fault.support)
    margin = np.where(mismatch, rng.exponential(fault.margin, shape), 0.0)
    margin[outside] = np.inf
    excess = rng.normal(fault.surprise, 1.2, shape) + rng.normal(0.0, 0.1, (streams, 1))
    return SequenceScores(
        exact_match=margin == 0,
        margin=margin.astype(np.float32),
        logprob=(-entropy - excess).astype(np.float32),
        entropy=entropy.astype(np.float32),
        logit_rank=rng.exponential(entropy).astype(np.int32),
    )


def _bursts(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Two-state Markov chain that spends a fifth of its tokens in bursts of ten on average."""
    turns, now = rng.random(shape), rng.random(shape[0]) < 0.2
    states = np.empty(shape, bool)
    for t in range(shape[1]):
        now = np.where(now, turns[:, t] >= 0.1, turns[:, t] < 0.025)
        states[:, t] = now
    return states


def rows(batch: SequenceScores) -> list[SequenceScores]:
    """Each stream's own sequence."""
    arrays = dataclasses.astuple(batch)
    return [SequenceScores(*(array[i] for array in arrays)) for i in range(len(batch.entropy))]


def calibrated(rng: np.random.Generator) -> Band:
    """A band fitted to simulated honest sequences."""
    return fit(rows(simulate(rng, FITTED)), sampling=SAMPLING)


def edge_sequence(rng: np.random.Generator, band: Band, streams: int, tokens: int = LENGTH) -> SequenceScores:
    """Tokens whose mismatch, margin, tail, support and surprise have exactly the tolerated conditional means."""
    entropy = rng.gamma(2.0, 1.1, (streams, tokens)).astype(np.float32)
    bounds = band.bounds(entropy)
    pulls = np.where(IS_RATE, bounds, 1.0)
    surplus, volume = np.zeros_like(bounds[:, 0]), np.array([band.credibility[name] for name in NAMES])
    drawn = []
    for t in range(tokens):
        allowed = np.minimum(bounds[:, t] + pulls[:, t] * np.maximum(surplus, 0.0) / volume, HIGHEST_BOUND)
        scores = _edge_tokens(rng, dict(zip(NAMES, allowed.T, strict=True)), band, entropy[:, t])
        surplus += statistics(scores, band.cuts) - bounds[:, t]
        volume = volume + pulls[:, t]
        drawn.append(dataclasses.astuple(scores))
    return SequenceScores(*(np.stack(columns, axis=1) for columns in zip(*drawn, strict=True)))


def _edge_tokens(
    rng: np.random.Generator, allowed: Mapping[str, Floats], band: Band, entropy: np.ndarray
) -> SequenceScores:
    """One token of each stream, with these means."""
    draw, outside = rng.random(len(entropy)), np.minimum(allowed["support"], allowed["margin_tail"])
    margin = np.where(draw < allowed["mismatch"], 1e-6, 0.0)
    # the fewest tokens beyond the tail's cut that also use up the mean margin, so that nothing is left unspent
    rest = np.clip((allowed["margin"] - outside) / np.maximum(allowed["margin_tail"] - outside, 1e-9), 0.0, 1.0)
    beyond = np.maximum(band.cuts.tail * 1.0001, rest * band.cuts.margin)
    margin = np.where(draw < np.minimum(allowed["margin_tail"], allowed["mismatch"]), beyond, margin)
    margin = np.where(draw < np.minimum(outside, allowed["mismatch"]), np.inf, margin).astype(np.float32)
    excess = np.where(rng.random(len(entropy)) < allowed["cross_entropy_high"], SURPRISE, -SURPRISE)
    return SequenceScores(margin == 0, margin, -entropy - excess, entropy, np.zeros(len(entropy), np.int32))


def ever_deviates(seed: int, streams: int, tokens: int, null: str, alpha: float) -> dict[str, int]:
    """How many of these honest streams are ever called deviating: by us, by repeated z-tests, by one z-test."""
    rng = np.random.default_rng(seed)
    band = calibrated(rng)
    detectors = band.applicable(SAMPLING)
    if null == "edge":
        detectors = tuple(name for name in detectors if name not in UNUSED_AT_THE_EDGE)
    length = 10 * LENGTH if null == "long" else LENGTH
    wealth = np.full((streams, len(DETECTORS), len(ODDS)), log_start_prior(0))
    alarmed, peeked = np.zeros(streams, bool), np.zeros(streams, bool)
    misses, limit = np.zeros(streams), stats.norm.isf(alpha)
    for j in range(tokens // length):
        batch = edge_sequence(rng, band, streams) if null == "edge" else simulate(rng, streams, length)
        wealth, hits = weigh(wealth, batch, band, detectors, j, alpha)
        alarmed |= hits
        misses += (~batch.exact_match).sum(1)
        expected, count = band.typical["mismatch"], (j + 1) * length
        z = (misses / count - expected) / math.sqrt(expected * (1 - expected) / count)
        peeked |= z > limit
    return {"ever_deviates": int(alarmed.sum()), "z_test_at_every_look": int(peeked.sum()),
            "z_test_once": int((z > limit).sum())}  # fmt: skip


def weigh(
    wealth: Floats, scores: Scores, band: Band, detectors: tuple[str, ...], sequence: int, alpha: float
) -> tuple[Floats, np.ndarray]:
    """`Evidence.update` of many streams: wealth after the sequence, and which streams reached 1/α within it."""
    paths = wealth_paths(wealth, scores, band, judging(scores.entropy.shape[-1], detectors))
    # a mean of wealths reaches 1/α only where one of them does
    hits = paths.max(axis=(-3, -2, -1)) >= -math.log(alpha) - 0.01
    hits[hits] = (mix(paths[hits], sequence + 1) >= -math.log(alpha)).any(-1)
    return np.logaddexp(paths[..., -1, :, :], log_start_prior(sequence + 1)), hits


def delay(seed: int, fault: Fault, good: int, alpha: float) -> tuple[float, float]:
    """Tokens from the change to `deviates` and to a drift alarm, of one stream that was honest for `good` sequences."""
    rng = np.random.default_rng(seed)
    band = calibrated(rng)
    evidence, drift = start(alpha), watch(alpha)
    for scores in rows(simulate(rng, good)) if good else []:
        evidence, drift = evidence.update(scores, band), drift.update(scores, band)
    changed, drift = evidence.tokens, drift.cleared()
    for scores in rows(simulate(rng, 50, fault=fault)):
        if evidence.all.decided_at and drift.alarm_at:
            break
        evidence, drift = evidence.update(scores, band), drift.update(scores, band)
    return _after(changed, evidence), _after(changed, drift)


def _after(changed: int, state: Evidence | Drift) -> float:
    at = state.all.decided_at if isinstance(state, Evidence) else state.alarm_at
    return math.inf if at is None else at - changed


def shares(null: str, streams: int, tokens: int, alpha: float, pool: Executor) -> dict[str, Any]:
    """Share of honest streams that each test ever accuses, and the 95 % interval of ours."""
    sizes = [min(CHUNK, streams - first) for first in range(0, streams, CHUNK)]
    n = len(sizes)
    counts = list(pool.map(ever_deviates, range(n), sizes, [tokens] * n, [null] * n, [alpha] * n))
    totals = {key: sum(count[key] for count in counts) for key in counts[0]}
    interval = stats.binomtest(totals["ever_deviates"], streams).proportion_ci(0.95)
    return {
        "streams": streams, "tokens": tokens, "alpha": alpha,
        **{key: total / streams for key, total in totals.items()},
        "interval_95": [float(interval.low), float(interval.high)],
    }  # fmt: skip


def delays(fault: Fault, good: int, alpha: float, pool: Executor) -> dict[str, Any]:
    """Median and 90 % quantile of tokens to `deviates` and to a drift alarm, over REPEATS changes."""
    found = list(pool.map(delay, range(REPEATS), [fault] * REPEATS, [good] * REPEATS, [alpha] * REPEATS))
    ours, drift = (np.quantile(column, (0.5, 0.9), method="lower").tolist() for column in zip(*found, strict=True))
    return {"fault": fault.name, "deviates": ours, "drift_alarm": drift}


def main() -> None:
    """Print and save false-positive shares and delays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--alpha", type=float, default=1e-3)
    given = parser.parse_args()
    with ProcessPoolExecutor(given.processes) as pool:
        for null in NULLS:
            report({"case": f"honest streams: {null}", **shares(null, given.streams, given.tokens, given.alpha, pool)})
        for good in (0, 50):
            changes = [delays(fault, good, given.alpha, pool) for fault in FAULTS]
            report({"case": f"changes after {good * LENGTH} honest tokens", "repeats": REPEATS, "changes": changes})


def report(case: dict[str, Any]) -> None:
    """Print and save one case."""
    print(json.dumps(case, indent=1), flush=True)
    save_case("evidence", case)


if __name__ == "__main__":
    main()
