"""How often honest streams are called `deviates`, and how soon dishonest ones are: simulated, in NumPy.

    python -m bench.evidence [--streams 10000] [--tokens 10000] [--processes 2]

Honest tokens depend on each other: sequences have their own noise level (gamma), noise comes in bursts (a two-state
Markov chain), entropy and cross-entropy have sequence effects, and mismatches follow the entropy. Two nulls are tried:

    clustered   bands are fitted, by verifier.calibration, to 64 such sequences; fresh streams are judged by them
    edge        the provider uses up the band: each token's conditional mean *equals* the tolerated one

The peers, in the same run, on the same streams and for the same null: a z-test of the mismatch rate against the
tolerated one at the same α, after every sequence, and once at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from scipy import stats

from verifier.band import Band
from verifier.calibration import fit
from verifier.detectors import DETECTORS, NAMES, SURPRISE, Floats, Scores, SequenceScores
from verifier.drift import Drift, watch
from verifier.evidence import ODDS, Evidence, log_start_prior, mix, start, wealth_paths
from verifier.faults import FAULTS, Fault

LENGTH = 200
FITTED = 64
CHUNK = 100
HONEST = Fault("honest", 1.0, 0.06, 1.0, 0.0, "")
SAMPLING = {"temperature": 1.0}


def simulate(rng: np.random.Generator, streams: int, tokens: int = LENGTH, fault: Fault = HONEST) -> SequenceScores:
    """One sequence of each stream, arrays [streams, tokens]: about 2 % mismatches and 0.2 % support violations."""
    shape = (streams, tokens)
    level = rng.gamma(4.0, 0.25, (streams, 1)) * np.where(_bursts(rng, shape), 2.0, 0.75)
    entropy = np.clip(rng.gamma(2.0, 1.1, shape) + rng.normal(0.0, 0.4, (streams, 1)), 0.01, None)
    mismatch = rng.random(shape) < np.minimum(0.9, 0.0085 * entropy * level * fault.mismatch)
    outside = rng.random(shape) < np.minimum(0.3, 0.001 * entropy * level * fault.support)
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


def edge_sequence(rng: np.random.Generator, band: Band, streams: int) -> SequenceScores:
    """Tokens whose mismatch, margin, tail and support have exactly the tolerated conditional means."""
    shape = (streams, LENGTH)
    entropy = rng.gamma(2.0, 1.1, shape).astype(np.float32)
    bounds = dict(zip(NAMES, np.moveaxis(band.bounds(entropy), -1, 0), strict=True))
    draw = rng.random(shape)
    margin = np.where(draw < bounds["mismatch"], 1e-6, 0.0)
    # the fewest tokens beyond the tail's cut that also use up the mean margin, so that nothing is left unspent
    rest = np.clip((bounds["margin"] - bounds["support"]) / (bounds["margin_tail"] - bounds["support"]), 0.0, 1.0)
    beyond = np.maximum(band.cuts.tail * 1.0001, rest * band.cuts.margin)
    margin = np.where(draw < bounds["margin_tail"], beyond, margin)
    margin = np.where(draw < bounds["support"], np.inf, margin)
    high = rng.random(shape) < bounds["cross_entropy_high"]
    excess = np.where(high, SURPRISE, -SURPRISE)
    return SequenceScores(margin == 0, margin.astype(np.float32), -entropy - excess, entropy, np.zeros(shape, np.int32))


def ever_deviates(seed: int, streams: int, tokens: int, null: str, alpha: float) -> dict[str, int]:
    """How many of these honest streams are ever called deviating: by us, by repeated z-tests, by one z-test."""
    rng = np.random.default_rng(seed)
    band = calibrated(rng)
    detectors = band.applicable(SAMPLING)
    used = tuple(n for n in detectors if null == "clustered" or n not in {"cross_entropy_low", "rank_high", "rank_low"})
    wealth = np.full((streams, len(DETECTORS), len(ODDS)), log_start_prior(0))
    alarmed, peeked = np.zeros(streams, bool), np.zeros(streams, bool)
    misses, limit = np.zeros(streams), stats.norm.isf(alpha)
    for j in range(tokens // LENGTH):
        batch = simulate(rng, streams) if null == "clustered" else edge_sequence(rng, band, streams)
        wealth, hits = weigh(wealth, batch, band, used, j, alpha)
        alarmed |= hits
        misses += (~batch.exact_match).sum(1)
        expected, count = band.typical["mismatch"], (j + 1) * LENGTH
        z = (misses / count - expected) / math.sqrt(expected * (1 - expected) / count)
        peeked |= z > limit
    return {"ours": int(alarmed.sum()), "peeking": int(peeked.sum()), "once": int((z > limit).sum())}


def weigh(
    wealth: Floats, scores: Scores, band: Band, detectors: tuple[str, ...], sequence: int, alpha: float
) -> tuple[Floats, np.ndarray]:
    """`Evidence.update` of many streams: wealth after the sequence, and which streams reached 1/α within it."""
    paths = wealth_paths(wealth, scores, band, detectors)
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


def _share(null: str, streams: int, tokens: int, alpha: float, pool: ProcessPoolExecutor) -> dict[str, Any]:
    sizes = [min(CHUNK, streams - first) for first in range(0, streams, CHUNK)]
    n = len(sizes)
    counts = list(pool.map(ever_deviates, range(n), sizes, [tokens] * n, [null] * n, [alpha] * n))
    return {key: sum(count[key] for count in counts) / streams for key in counts[0]}


def main() -> None:
    """Print false-positive shares and delays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--alpha", type=float, default=1e-3)
    given = parser.parse_args()
    began = time.perf_counter()
    with ProcessPoolExecutor(given.processes) as pool:
        for null in ("clustered", "edge"):
            shares = _share(null, given.streams, given.tokens, given.alpha, pool)
            print(f"{null:10} ever deviates, {given.streams} streams x {given.tokens} tokens, α = {given.alpha:g}:")
            print(f"  e-process {shares['ours']:.5f}   z-test at every look {shares['peeking']:.4f}", end="")
            print(f"   z-test once {shares['once']:.4f}   ({time.perf_counter() - began:.0f} s)", flush=True)
        for good in (0, 50):
            print(f"tokens after a change behind {good * LENGTH} honest ones, median of 40 (90 %):")
            for fault in FAULTS:
                found = list(pool.map(delay, range(40), [fault] * 40, [good] * 40, [given.alpha] * 40))
                ours, cusum = (np.quantile(column, (0.5, 0.9), method="lower") for column in zip(*found, strict=True))
                print(f"  {fault.name:22} deviates {ours[0]:5.0f} ({ours[1]:.0f})", end="")
                print(f"   drift alarm {cusum[0]:5.0f} ({cusum[1]:.0f})", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
