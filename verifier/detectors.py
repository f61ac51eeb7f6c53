"""Detectors: what one token says against the provider, as numbers in [0, 1]. Pure.

Each detector turns the scores of a sequence's n tokens into n numbers whose *mean* an honest provider keeps below a
bound that its calibration band tolerates (`verifier.band`). No single score sees every fault (Token-DiFR, arXiv
2511.20621 §5-6), so they run side by side and `verifier.evidence` averages their evidence:

    mismatch             1 where the claimed token is not the one that the seeded sampler draws
    margin               margin cut at a high honest percentile, over that cut; an infinite margin is 1, never dropped
    margin_tail          1 where the margin lies beyond an honest percentile: more than a near-tie that rounding decides
    ending               1 where an answer's last token is such: it was stopped early, or its stop was made up
    support              1 where the sampling filters forbid the claimed token
    cross_entropy_high   −logprob − entropy, cut to ±SURPRISE nats and moved to [0, 1]: too surprising on average
    cross_entropy_low    1 minus that: not surprising enough (a lower temperature, a tightened top_p)
    rank_high, rank_low  the same of log₂(1 + logit_rank)

The last five need no seed: they hold for whatever noise the provider drew with. An end-of-sequence token is a token
like any other and counts in all of them; `ending` alone looks at one token of an answer, so that a provider who cuts
answers short is seen within a few answers, not lost among their many honest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SURPRISE = 4.0
"""Nats; −logprob − entropy is cut here. Honest tokens spread by about 1.2."""
RANK_BITS = 12.0
"""log₂(1 + logit_rank) is cut here."""


class Scores(Protocol):
    """Scores of a sequence's n tokens, in order: `verifier.scoring.TokenScores` or `SequenceScores`."""

    @property
    def exact_match(self) -> NDArray[np.bool_]: ...
    @property
    def margin(self) -> NDArray[np.float32]: ...
    @property
    def logprob(self) -> NDArray[np.float32]: ...
    @property
    def entropy(self) -> NDArray[np.float32]: ...
    @property
    def logit_rank(self) -> NDArray[np.int32]: ...


@dataclass(frozen=True)
class SequenceScores:
    """The scores that detectors read, of n tokens in order; `margin` is ∞ outside the support."""

    exact_match: NDArray[np.bool_]
    margin: NDArray[np.float32]
    logprob: NDArray[np.float32]
    entropy: NDArray[np.float32]
    logit_rank: NDArray[np.int32]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Sequence[float]]) -> SequenceScores:
        """From an audit's stored arrays (`storage.scores.unpack_scores`). Raises KeyError where one is missing."""
        return cls(
            exact_match=np.asarray(arrays["token_ids"]) == np.asarray(arrays["predicted_ids"]),
            margin=np.asarray(arrays["margin"], np.float32),
            logprob=np.asarray(arrays["logprob"], np.float32),
            entropy=np.asarray(arrays["entropy"], np.float32),
            logit_rank=np.asarray(arrays["logit_rank"], np.int32),
        )


@dataclass(frozen=True)
class Cuts:
    """Honest percentiles of the finite margins, in logits, above 0: where a margin is cut, where the tail begins."""

    margin: float
    tail: float


@dataclass(frozen=True)
class Detector:
    """One way to look at a token.

    Args:
        name: as in the module's table.
        seeded: it reads the seeded noise, so it accuses only where the sampler contract is identified.
        rate: its honest mean is near 0 and is tolerated by a factor; otherwise it is an expectation near the middle of
            [0, 1], tolerated by an addend and bound to the sampling parameters of its calibration.
        weight: its share of the evidence, fixed in advance; the shares of all detectors sum to 1.
        unit: what a mean of 1 − 0 stands for in effects: tokens, logits, nats or bits.
        statistic: scores and cuts → numbers[n] in [0, 1].
    """

    name: str
    seeded: bool
    rate: bool
    weight: float
    unit: str
    statistic: Callable[[Scores, Cuts], Any]


def _margin(scores: Scores, cuts: Cuts) -> Any:
    return np.fmin(scores.margin, cuts.margin) / cuts.margin


def _surprise(scores: Scores) -> Any:
    """Finite even where a logit is −∞: a forbidden token is as surprising as the cut allows."""
    excess = np.nan_to_num(-scores.logprob.astype(np.float64), nan=np.inf) - scores.entropy
    return (np.clip(excess, -SURPRISE, SURPRISE) + SURPRISE) / (2 * SURPRISE)


def _rank(scores: Scores) -> Any:
    return np.minimum(np.log2(1.0 + scores.logit_rank), RANK_BITS) / RANK_BITS


def _ending(scores: Scores, cuts: Cuts) -> Any:
    off = scores.margin > cuts.tail
    off[..., :-1] = False
    return off


DETECTORS = (
    Detector("mismatch", True, True, 0.08, "share of tokens", lambda scores, _: np.logical_not(scores.exact_match)),
    Detector("margin", True, True, 0.18, "logits, cut", _margin),
    Detector("margin_tail", True, True, 0.38, "share of tokens", lambda scores, cuts: scores.margin > cuts.tail),
    Detector("ending", True, True, 0.06, "share of answers", _ending),
    Detector("support", False, True, 0.14, "share of tokens", lambda scores, _: ~np.isfinite(scores.margin)),
    Detector("cross_entropy_high", False, False, 0.04, "nats", lambda scores, _: _surprise(scores)),
    Detector("cross_entropy_low", False, False, 0.04, "nats", lambda scores, _: 1.0 - _surprise(scores)),
    Detector("rank_high", False, False, 0.04, "bits", lambda scores, _: _rank(scores)),
    Detector("rank_low", False, False, 0.04, "bits", lambda scores, _: 1.0 - _rank(scores)),
)
BY_NAME = {detector.name: detector for detector in DETECTORS}
NAMES = tuple(BY_NAME)
ENDING = NAMES.index("ending")
SEED_FREE = tuple(detector.name for detector in DETECTORS if not detector.seeded)


def statistics(scores: Scores, cuts: Cuts) -> Floats:
    """What each detector makes of tokens [..., n]: float64[..., n, detectors] in [0, 1], in the order of `NAMES`."""
    columns = [np.asarray(detector.statistic(scores, cuts), np.float64) for detector in DETECTORS]
    return np.stack(columns, axis=-1)


def in_units(name: str, mean: float, cuts: Cuts) -> float:
    """A detector's mean in its own unit: margins in logits, cross-entropy excess in nats, ranks in bits."""
    if name == "margin":
        return mean * cuts.margin
    value = 1.0 - mean if name.endswith("_low") else mean
    if name.startswith("cross_entropy"):
        return (2 * value - 1) * SURPRISE
    return value * RANK_BITS if name.startswith("rank") else mean
