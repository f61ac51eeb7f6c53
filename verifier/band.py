"""The honest band: what a faithful provider's scores may look like, per detector. Pure; JSON both ways.

A band is a composite null hypothesis. With x the statistic of a detector (`verifier.detectors`) at token t, h the
entropy of the reference there, and "past" all tokens before it,

    H₀:  E[x | past] ≤ m + g · max(0, S − M) / (K + G),    m = tolerated[class of h]

for every honest token and every detector, where S, M and G sum x, m and g over the tokens before it in the same answer.

The entropy class makes the bound follow the text: near-ties, and so honest mismatches, are rare where the model is
sure. The second term is what answers may differ from each other by (Bühlmann's credibility formula): an answer whose
tokens have exceeded the bound so far may go on so, the more the longer it is. For rates g = m, and the bound is the
conditional mean of a count whose level is gamma-distributed between answers, with mean 1 and variance 1/K; for
expectations g = 1, and it is that of a normal mean with variance 1/K of a token's. Both terms are known before the
token is drawn, as a bet must be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.detectors import BY_NAME, DETECTORS, ENDING, NAMES, Cuts, Floats
from verifier.sampling_params import SamplingParams

ENTROPY_EDGES = (0.5, 2.0)
"""Nats; they part tokens into sure, middling and open ones."""

HIGHEST_BOUND = 0.999
IS_RATE = np.array([detector.rate for detector in DETECTORS])


def distribution(params: SamplingParams) -> dict[str, float] | None:
    """What of the sampling parameters shapes the tokens' distribution, for `Band.sampling`; None for biased logits."""
    if params.logit_bias or params.allowed_token_ids or params.bad_words_token_ids or params.min_tokens:
        return None
    names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    return {**{name: float(getattr(params, name)) for name in names}, "top_k": float(max(params.top_k, 0))}


@dataclass(frozen=True)
class FalsePositives:
    """Honest blocks that were wrongly called `deviates`, on data that the band was not fitted to.

    `low` and `high` bound the rate at 95 % (Clopper-Pearson): no alarm in n blocks only says less than about 3/n.
    """

    alarms: int
    blocks: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Band:
    """What is tolerated of a stream.

    Args:
        cuts: of the margins.
        entropy_edges: nats, ascending; k edges make k + 1 classes.
        tolerated: per detector the bound of each entropy class, in (0, 1).
        honest: per detector the mean over the calibration's tokens.
        typical: per detector the mean of the tolerated bounds over the calibration's tokens.
        credibility: K, per detector: the events (of rates, by their size) or tokens (of expectations) that an answer's
            own past must hold to weigh as much as the band.
        sequences, tokens: size of the fitted half; 0 for a shipped band.
        sampling: parameters that the calibration was sampled with; expectations hold for these alone.
        scope: what it was calibrated for: reference, contract, token source, hardware.
        held_out: false positives on the other half.
    """

    cuts: Cuts
    tolerated: Mapping[str, tuple[float, ...]]
    honest: Mapping[str, float]
    typical: Mapping[str, float]
    credibility: Mapping[str, float]
    entropy_edges: tuple[float, ...] = ENTROPY_EDGES
    sequences: int = 0
    tokens: int = 0
    sampling: Mapping[str, float] | None = None
    scope: Mapping[str, str] = field(default_factory=dict)
    held_out: FalsePositives | None = None

    @property
    def calibrated(self) -> bool:
        """False for the shipped band."""
        return self.tokens > 0

    def applicable(self, sampling: Mapping[str, float] | None) -> tuple[str, ...]:
        """Detectors that this band can judge under these sampling parameters.

        Filters and the temperature move the expected cross-entropy and rank, so those need the calibration's own.
        """
        same = self.sampling is not None and sampling is not None and dict(self.sampling) == dict(sampling)
        return tuple(detector.name for detector in DETECTORS if same or detector.rate)

    def classes(self, entropy: NDArray[np.float32]) -> NDArray[np.intp]:
        """Entropy class of each token."""
        return np.digitize(entropy, self.entropy_edges)

    def bounds(self, entropy: NDArray[np.float32]) -> Floats:
        """m at an answer's tokens of these entropies [..., n]: float64[..., n, detectors], as in `NAMES`.

        `ending` is judged at the last token alone; before it, its statistic and m are 0, which is no bet.
        """
        bounds = np.asarray(self.table()[self.classes(entropy)])
        bounds[..., :-1, ENDING] = 0.0
        return bounds

    def bounds_within(self, found: Floats, entropy: NDArray[np.float32]) -> Floats:
        """The bound of H₀ at each token of an answer, given those before it.

        Args:
            found: statistics of the tokens, float64[..., n, detectors].
            entropy: of the tokens, [..., n].
        """
        bounds = self.bounds(entropy)
        pull = np.where(IS_RATE, bounds, 1.0)
        surplus = _before(found - bounds)
        np.maximum(surplus, 0.0, out=surplus)
        surplus *= pull
        surplus /= _before(pull) + np.array([self.credibility[name] for name in NAMES])
        return np.asarray(np.minimum(bounds + surplus, HIGHEST_BOUND))

    def design_effect(self, name: str, answer_tokens: float) -> float:
        """How much wider than independent tokens' the sums of answers of this length may spread."""
        return 1.0 + self._volume(name, answer_tokens)

    def bound_on_average(self, name: str, mean: float, answer_tokens: float) -> float:
        """Mean of `bounds_within` over answers of this length whose statistics have this mean: an integral."""
        volume = max(self._volume(name, answer_tokens), 1e-9)
        typical = self.typical[name]
        return typical if mean <= typical else mean + (typical - mean) * math.log1p(volume) / volume

    def _volume(self, name: str, answer_tokens: float) -> float:
        judged = 1.0 if name == NAMES[ENDING] else answer_tokens
        return judged * (self.typical[name] if BY_NAME[name].rate else 1.0) / self.credibility[name]

    def table(self) -> Floats:
        """What is tolerated, float64[classes, detectors]."""
        return np.stack([np.array(self.tolerated[name], np.float64) for name in NAMES], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Band:
        """What `to_dict` gave, also after JSON."""
        held_out = values.get("held_out")
        return cls(
            **{
                **values,
                "tolerated": {name: tuple(bounds) for name, bounds in values["tolerated"].items()},
                "cuts": Cuts(**values["cuts"]),
                "entropy_edges": tuple(values["entropy_edges"]),
                "held_out": FalsePositives(**held_out) if held_out else None,
            }
        )


def _before(x: Floats) -> Floats:
    """Sums over the tokens before each, along the axis of tokens."""
    return np.cumsum(x, axis=-2) - x


def _shipped() -> Band:
    """Wide enough for every honest pair of stacks published for Token-DiFR, among them an MoE model on other hardware
    (match .95, support violations .0024; arXiv 2511.20621 tables 4 and 6); expectations are not judged at all."""
    honest = {"mismatch": 0.05, "margin": 0.03, "margin_tail": 0.01, "ending": 0.02, "support": 0.0024}
    bound = {name: 1.25 * mean for name, mean in honest.items()} | {"ending": 0.2, "support": 0.005}
    return Band(
        cuts=Cuts(margin=1.0, tail=0.5),
        entropy_edges=(),
        tolerated={name: (bound.get(name, 0.999),) for name in NAMES},
        honest={name: honest.get(name, 0.5) for name in NAMES},
        typical={name: bound.get(name, 0.999) for name in NAMES},
        credibility=dict.fromkeys(NAMES, 8.0),
    )


SHIPPED = _shipped()
