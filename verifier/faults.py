"""Named faults: what they do to the scores, so how many tokens would show them, and which one a deviation is like.

Pure. A fault is told by its size against an honest provider's own noise: that ratio carries over between models far
better than a rate does (4-bit weights: 15 times the honest mismatches on SmolLM2-135M, 11 times on Llama-3.1-8B in
arXiv 2511.20621 table 6). Real faults of a kind differ; these stand for it. They serve planning and hints, never the
verdict itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scipy.special import ndtr

from verifier.band import Band
from verifier.detectors import BY_NAME, SURPRISE
from verifier.evidence import ODDS, ODDS_PRIOR, log_start_prior

LEAST_MISMATCH = 0.005
LEAST_SUPPORT = 0.0005
MEASURED_BESIDE = 0.018
"""Honest mismatch rate of the pair that the faults were measured on."""
AS_NEAR = 0.5
"""Distances that differ by less do not tell two faults apart: real ones lie up to 1.2 from what stands for them."""
ANSWER_SPREAD = 0.4
"""Standard deviation of a fault's rate between answers, over its mean; measured on golden answers: 0.2 to 0.3."""
ANSWER_TOKENS = 200.0


@dataclass(frozen=True)
class Fault:
    """A kind of deviation.

    Args:
        name: as reports print it.
        mismatch: its mismatch rate over the honest one.
        margin: mean margin of its mismatches, logits; their distribution is taken as exponential.
        support: its support violations over the honest ones; 1 where filters are off.
        surprise: change of −logprob − entropy, nats.
        source: where the numbers come from.
    """

    name: str
    mismatch: float
    margin: float
    support: float
    surprise: float
    source: str


FAULTS = (
    Fault("4-bit weights", 15.0, 0.94, 80.0, 0.16, "measured: SmolLM2-135M, 4-bit round to nearest, groups of 64"),
    Fault("fp8 weights", 5.4, 0.36, 8.0, 0.0, "measured: SmolLM2-135M, vLLM fp8"),
    Fault("fp8 KV cache", 3.0, 0.2, 3.0, 0.02, "published: arXiv 2511.20621 (2 to 4 times); margins assumed"),
    Fault("temperature +0.1", 3.3, 0.14, 17.0, 0.11, "measured: SmolLM2-135M, 1.1 for 1.0"),
    Fault("temperature -0.1", 3.7, 0.41, 1.0, -0.11, "measured: SmolLM2-135M, 1.0 for 1.1"),
    Fault("hidden system prompt", 5.5, 0.44, 8.0, 0.07, "measured: SmolLM2-135M, system prompt left out"),
    Fault("smaller model", 25.0, 1.5, 160.0, 0.3, "assumed: farther than 4-bit weights"),
)


def expected_means(fault: Fault, band: Band) -> dict[str, float]:
    """Per detector that the fault moves, the mean it would have where the band was calibrated."""
    mismatch, support = max(band.honest["mismatch"], LEAST_MISMATCH), max(band.honest["support"], LEAST_SUPPORT)
    return _means_beside(mismatch, support, fault, band)


def _means_beside(mismatch: float, support: float, fault: Fault, band: Band) -> dict[str, float]:
    """The means of a fault beside an honest provider of these rates."""
    mismatch = min(0.9, fault.mismatch * mismatch)
    outside = min(fault.support * support if fault.support > 1 else 0.0, mismatch)
    cut, shift = band.cuts.margin / fault.margin, fault.surprise / (2 * SURPRISE)
    return {
        "mismatch": mismatch,
        "margin": outside + (mismatch - outside) * -math.expm1(-cut) / cut,
        "margin_tail": outside + (mismatch - outside) * math.exp(-band.cuts.tail / fault.margin),
        "support": outside,
        "cross_entropy_high": band.honest["cross_entropy_high"] + shift,
        "cross_entropy_low": band.honest["cross_entropy_low"] - shift,
    }


def power(
    fault: Fault, band: Band, tokens: float, *, alpha: float, detectors: Iterable[str],
    answer_tokens: float = ANSWER_TOKENS,
) -> float:  # fmt: skip
    """At least how probably this many tokens would have shown the fault: the best single bet's normal approximation.

    Statistics between 0 and 1 are taken as 0/1 ones of the same mean, which grow slowest and spread most; the fault's
    rate is taken to differ between answers, of `answer_tokens` each, by ANSWER_SPREAD.
    """
    if tokens <= 0:
        return 0.0
    means, length = expected_means(fault, band), min(tokens, answer_tokens)
    chances = [
        _chance(means[name], band.bound_on_average(name, means[name], length), name, k, tokens, tokens / length, alpha)
        for name in detectors
        if name in means and means[name] > band.typical[name]
        for k in range(len(ODDS))
    ]
    return max(chances, default=0.0)


def tokens_for(
    fault: Fault, band: Band, *, alpha: float, detectors: Iterable[str], answer_tokens: float = ANSWER_TOKENS,
    chance: float = 0.9,
) -> int | None:  # fmt: skip
    """Tokens after which `power` reaches this chance; None beyond ten million."""
    known: dict[str, Any] = {"alpha": alpha, "detectors": tuple(detectors), "answer_tokens": answer_tokens}
    high = 1
    while power(fault, band, high, **known) < chance:
        high *= 2
        if high > 10_000_000:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(fault, band, middle, **known) >= chance
        low, high = (low, middle) if enough else (middle, high)
    return high


def nearest(means: Mapping[str, float], band: Band) -> tuple[str, ...]:
    """Names of the faults whose expected means are nearest to these (per detector): of several if they are as near.

    The shipped band is wider than any provider's own noise, so under it faults have the size that they were measured
    with. No token outside the support tells nothing: where no filter was asked for, no token can be.
    """
    means = {name: mean for name, mean in means.items() if name != "support" or mean > 0}
    distances = {}
    for fault in FAULTS:
        shipped = _means_beside(MEASURED_BESIDE, LEAST_SUPPORT, fault, band)
        distances[fault.name] = _distance(means, expected_means(fault, band) if band.calibrated else shipped)
    least = min(distances.values())
    ordered = sorted(distances, key=lambda name: distances[name])
    return tuple(name for name in ordered if distances[name] <= least + AS_NEAR)


def price(name: str, k: int, alpha: float) -> float:
    """Nats that one bet must earn alone, from a stream's first sequence on, for the mixture to reach 1/α."""
    return -math.log(alpha) - math.log(BY_NAME[name].weight * ODDS_PRIOR[k]) - log_start_prior(0)


def growth(mean: float, tolerated: float, k: int) -> float:
    """Nats per token that the k-th odds earn on 0/1 statistics of this mean."""
    return mean * math.log(ODDS[k]) - math.log1p((ODDS[k] - 1) * tolerated)


def _chance(mean: float, tolerated: float, name: str, k: int, tokens: float, answers: float, alpha: float) -> float:
    variance = tokens * mean * (1 - mean) + (ANSWER_SPREAD * mean * tokens) ** 2 / answers
    spread = math.log(ODDS[k]) * math.sqrt(max(variance, 1e-12))
    return float(ndtr((tokens * growth(mean, tolerated, k) - price(name, k, alpha)) / spread))


def _distance(seen: Mapping[str, float], fault: Mapping[str, float]) -> float:
    return sum((_place(name, seen[name]) - _place(name, mean)) ** 2 for name, mean in fault.items() if name in seen)


def _place(name: str, mean: float) -> float:
    """Rates on the log-odds scale, expectations in tenths of a nat: a unit of each tells faults apart about as well."""
    if not BY_NAME[name].rate:
        return mean * 2 * SURPRISE / 0.1
    mean = min(max(mean, 1e-4), 1 - 1e-4)
    return math.log(mean / (1 - mean))
