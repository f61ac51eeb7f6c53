"""Honest and faulty per-token scores for tests of verdicts, from the benchmark's own simulation."""

import numpy as np

from bench.evidence import SAMPLING, rows, simulate
from verifier.band import Band
from verifier.calibration import fit
from verifier.detectors import NAMES, Cuts, SequenceScores
from verifier.faults import FAULTS, Fault

BY_NAME = {fault.name: fault for fault in FAULTS}


def honest(seed: int, count: int, tokens: int = 200) -> list[SequenceScores]:
    """Sequences of an honest provider."""
    return rows(simulate(np.random.default_rng(seed), count, tokens))


def faulty(seed: int, count: int, fault: str | Fault, tokens: int = 200) -> list[SequenceScores]:
    """Sequences of a provider with a named fault."""
    chosen = BY_NAME[fault] if isinstance(fault, str) else fault
    return rows(simulate(np.random.default_rng(seed), count, tokens, chosen))


def fitted(seed: int = 100) -> Band:
    """A band of 64 honest sequences."""
    return fit(honest(seed, 64), sampling=SAMPLING)


def flat_band(**changes) -> Band:
    """One entropy class, 2 % tolerated of every rate, any rank, no surprise on average, answers all alike."""
    means = dict.fromkeys(NAMES, 0.02) | {"cross_entropy_high": 0.5, "cross_entropy_low": 0.5}
    means |= {"rank_high": 0.999, "rank_low": 0.999}
    known = {
        "cuts": Cuts(1.0, 0.5), "entropy_edges": (), "tolerated": {name: (m,) for name, m in means.items()},
        "honest": means, "typical": means, "credibility": dict.fromkeys(means, 1e9),
        "sequences": 50, "tokens": 10_000, "sampling": SAMPLING,
    }  # fmt: skip
    return Band(**{**known, **changes})
