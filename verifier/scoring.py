"""From logits to scores: what a faithful sampler must have drawn, and how far the claimed token is from it.

Scores of one token (paper: Token-DiFR, arXiv 2511.20621 §4.2), with z the reference's logits, g the contract's noise:
    exact_match    claimed = argmax over the support of z/T + g
    margin         T · (max over the support of (z/T + g) − (z/T + g)[claimed]), in logit units; ∞ outside the support
    prob           probability of the claimed token under the filtered distribution
    logprob        its log-probability under the tempered, unfiltered distribution (seed-free)
    entropy        of that distribution, in nats: what −logprob is expected to be
    edge           rounding may decide whether the claimed or the drawn token is in the support (filters.at_the_edge)
    undrawn        the engine took this token without a draw, because it was the only one left
    logit_rank     how many logits are larger; gumbel_rank: how many noised scores in the support are; 0 is best
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from verifier.masses import masses
from verifier.samplers.contract import SamplerContract
from verifier.samplers.greedy import GREEDY
from verifier.sampling_params import SamplingParams


def _nowhere() -> NDArray[np.bool_]:
    return np.zeros(0, np.bool_)


@dataclass(frozen=True)
class TokenScores:
    """Scores of n tokens, as arrays of length n; `edge` and `undrawn` are False everywhere unless told."""

    token_ids: NDArray[np.int64]
    predicted_ids: NDArray[np.int64]
    prob: NDArray[np.float32]
    logprob: NDArray[np.float32]
    entropy: NDArray[np.float32]
    margin: NDArray[np.float32]
    logit_rank: NDArray[np.int32]
    gumbel_rank: NDArray[np.float32]
    edge: NDArray[np.bool_] = field(default_factory=_nowhere)
    undrawn: NDArray[np.bool_] = field(default_factory=_nowhere)

    def __post_init__(self) -> None:
        for name in ("edge", "undrawn"):
            if len(getattr(self, name)) != len(self.token_ids):
                object.__setattr__(self, name, np.zeros(len(self.token_ids), np.bool_))

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> TokenScores:
        return TokenScores(*(getattr(self, f.name)[rows] for f in fields(self)))

    @property
    def exact_match(self) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = self.token_ids == self.predicted_ids
        return same

    @property
    def inside_support(self) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = np.isfinite(self.margin)
        return inside

    @classmethod
    def join(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """One TokenScores of all parts, in order."""
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    @classmethod
    def empty(cls) -> TokenScores:
        whole, real, rank = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int32)
        return cls(whole, whole, real, real, real, real, rank, real)


def clamp_temperature(params: SamplingParams, lowest: float) -> SamplingParams:
    """Raise a sampling temperature to the engine's lowest one, as the engine does itself."""
    if params.is_greedy or params.temperature >= lowest:
        return params
    return replace(params, temperature=lowest)


def score(
    logits: NDArray[np.float32],
    token_ids: NDArray[np.int64],
    *,
    seed: int,
    positions: NDArray[np.int64],
    params: SamplingParams,
    contract: SamplerContract,
) -> TokenScores:
    """Scores of claimed tokens [R] given their rows of processed logits [R, V], float32.

    The logits have had penalties and biases applied, but not the temperature.
    """
    params = clamp_temperature(params, contract.lowest_temperature)
    heat = 1.0 if params.is_greedy else params.temperature
    sums = masses(logits, heat, token_ids)
    sampler = GREEDY if params.is_greedy else contract
    draws = sampler.draw(logits, sums.log_mass, token_ids, seed=seed, positions=positions, params=params)
    own = logits[np.arange(len(logits)), token_ids]
    return TokenScores(
        token_ids=token_ids,
        predicted_ids=draws.winners,
        prob=draws.prob.astype(np.float32),
        logprob=(own / heat - sums.log_mass).astype(np.float32),
        entropy=sums.entropy,
        margin=draws.margins.astype(np.float32),
        logit_rank=sums.rank,
        gumbel_rank=draws.ahead.astype(np.float32),
        edge=_nowhere() if draws.edge is None else draws.edge,
        undrawn=_nowhere() if draws.undrawn is None else draws.undrawn,
    )
