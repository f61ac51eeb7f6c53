"""Samplers that invert a distribution function: one uniform per token, no noise over the vocabulary.

The kept tokens stand in the engine's own order; the token drawn is the one in whose interval of cumulative probability
the uniform falls. A claimed token's margin is the distance from the uniform to its interval, in probability mass: small
errors of the logits shift all later interval bounds, so it is mass, not logits, that tolerances must be stated in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from verifier.filters import EDGE
from verifier.rows import over_rows
from verifier.samplers.contract import Draws
from verifier.samplers.noise import Integers
from verifier.samplers.ordering import running_mass
from verifier.sampling_params import SamplingParams


@dataclass(frozen=True)
class Inversion:
    """One row: place of the token drawn; of the claimed one its place, margin and probability."""

    winner: int
    claimed: int
    margin: float
    prob: float


def invert(
    masses: NDArray[np.floating[Any]], uniform: float, claimed: int, side: Literal["left", "right"] = "left"
) -> Inversion:
    """Draw by running sums of unnormalized probability, and compare with the claimed place.

    "left" draws the first place whose running sum reaches uniform · total, "right" the first that exceeds it.
    """
    total = masses[-1]
    target = masses.dtype.type(uniform) * total
    winner = min(int(np.searchsorted(masses, target, side=side)), len(masses) - 1)
    low = float(masses[claimed - 1]) if claimed else 0.0
    high = float(masses[claimed])
    distance = max(low - float(target), float(target) - high, 0.0) if winner != claimed else 0.0
    return Inversion(winner, claimed, distance / float(total), (high - low) / float(total))


class InverseCdfContract(ABC):
    """A contract of one uniform per token.

    Subclasses say which uniforms and which order; `sums` is the type in which the engine adds probabilities up, `side`
    as for `invert`, and `draws_from_one` whether a uniform is drawn where only one token is left.
    """

    sums: ClassVar[Any] = np.float64
    side: ClassVar[Literal["left", "right"]] = "left"
    lowest_temperature: ClassVar[float] = 0.0

    @abstractmethod
    def uniforms(self, seed: int, positions: Integers) -> NDArray[np.float64]:
        """The uniforms [R] of a seed at `positions` [R]."""

    @abstractmethod
    def kept(self, row: NDArray[np.float32], log_mass: float, params: SamplingParams) -> NDArray[np.int32]:
        """Ids of the tokens that the filters leave of one row of logits, in the engine's order; at least one."""

    @property
    def draws_from_one(self) -> bool:
        """Whether the engine draws a uniform even where one token is left."""
        return True

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed + choice

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        return np.arange(count, dtype=np.int64)

    def draw(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], claimed: Integers,
        *, seed: int, positions: Integers, params: SamplingParams,
    ) -> Draws:  # fmt: skip
        """Draw each row by its uniform."""
        count = len(logits)
        single = self._single(logits, log_mass, params)
        places = np.asarray(positions, np.int64) - (np.cumsum(single) - single)
        uniforms = self.uniforms(seed, places)
        winners, (margins, prob, ahead) = np.empty(count, np.int64), np.empty((3, count))
        edge = np.zeros(count, np.bool_)

        def run(a: int, b: int) -> None:
            for r in range(a, b):
                ids = self.kept(logits[r], float(log_mass[r]), params)
                ids, edge[r] = with_claimed(ids, logits[r], int(claimed[r]))
                found = self._invert(logits[r], ids, int(claimed[r]), uniforms[r], params.temperature)
                winners[r], margins[r], prob[r] = ids[found.winner], found.margin, found.prob
                ahead[r] = abs(found.winner - found.claimed) if np.isfinite(found.margin) else np.inf

        over_rows(count, run)
        return Draws(winners, margins, prob, ahead, undrawn=single.astype(np.bool_), edge=edge)

    def _invert(
        self, row: NDArray[np.float32], ids: NDArray[np.int32], claimed: int, uniform: float, temperature: float
    ) -> Inversion:
        z = row[ids]
        weights = np.exp((z - z.max()) / np.float32(temperature))
        masses = np.cumsum(weights, dtype=self.sums)
        hits = np.flatnonzero(ids == claimed)
        found = invert(masses, uniform, int(hits[0]) if hits.size else 0, self.side)
        return found if hits.size else Inversion(found.winner, 0, np.inf, 0.0)

    def _single(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams
    ) -> NDArray[np.int64]:
        """1 for each row whose token was taken without drawing."""
        if self.draws_from_one:
            return np.zeros(len(logits), np.int64)
        return np.array([len(self.kept(z, float(m), params)) == 1 for z, m in zip(logits, log_mass, strict=True)], int)


def with_claimed(
    ids: NDArray[np.int32], row: NDArray[np.float32], claimed: int
) -> tuple[NDArray[np.int32], bool]:
    """The kept ids in their order, with the claimed one where it misses them by no more than EDGE; whether it did."""
    lowest = row[ids].min()
    if row[claimed] > lowest or claimed in ids or row[claimed] < lowest - EDGE:
        return ids, False
    in_vocabulary_order = bool((np.diff(ids) > 0).all()) and len(ids) > 1
    place = int(np.searchsorted(ids, claimed)) if in_vocabulary_order else len(ids)
    return np.insert(ids, place, claimed).astype(np.int32), True


def exclusive(z: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Of descending logits, the mass before each; and, last, the whole."""
    return np.concatenate([[0.0], running_mass(z, temperature)])


def at_least(z: NDArray[np.float32], temperature: float, min_p: float) -> int:
    """How many of the descending logits have p ≥ min_p · p_max."""
    return int(np.count_nonzero(z >= z[0] + temperature * np.log(min_p)))
