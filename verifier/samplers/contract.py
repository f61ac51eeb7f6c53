"""What the verifier asks of an engine's sampler, and the part that all Gumbel-like engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from verifier.filters import Support, at_the_edge, softened, support
from verifier.samplers.noise import Floats, GumbelNoise, Integers, RaceResult
from verifier.sampling_params import SamplingParams


@dataclass(frozen=True)
class Draws:
    """What a sampler draws from R rows of logits, and how far a claimed token is from being drawn.

    Attributes:
        winners: the token drawn.
        margins: 0 where the claimed token is drawn, infinite where it may not be; else how much is missing: in logit
            units for Gumbel-like samplers, in probability mass for those that invert a distribution function.
        prob: probability of the claimed token under the filtered distribution.
        ahead: how many tokens of the support score higher than the claimed one; infinite outside the support. Where
            a distribution function is inverted: how many tokens lie from the claimed one to the one drawn.
        undrawn: rows for which the engine drew nothing, because one token was left; None is none of them.
        edge: rows where rounding may decide which tokens the filters leave (`filters.at_the_edge`); None is nowhere.
            A claimed token that misses the support by as little is drawn for as if it were inside.
    """

    winners: NDArray[np.int64]
    margins: NDArray[np.float64]
    prob: NDArray[np.float64]
    ahead: NDArray[np.float64]
    undrawn: NDArray[np.bool_] | None = None
    edge: NDArray[np.bool_] | None = None

    @property
    def skipped(self) -> int:
        """How many rows were undrawn: the positions of all later rows of the request are lower by as many."""
        return 0 if self.undrawn is None else int(self.undrawn.sum())


class SamplerContract(Protocol):
    """An engine's promise of how a token follows from logits, seed and position. Called again, it draws the same."""

    @property
    def id(self) -> str:
        """`ENGINE[@VERSION][/RUNNER][:key=value,…]`, as configuration and audits name it."""
        ...

    @property
    def lowest_temperature(self) -> float:
        """A temperature below this, but not greedy, is raised to it (vLLM: 0.01)."""
        ...

    def choice_seed(self, seed: int, choice: int) -> int:
        """Seed of the choice-th answer of one request (n > 1)."""
        ...

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        """Noise positions [count] of the output tokens 0 … count − 1."""
        ...

    def draw(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], claimed: Integers,
        *, seed: int, positions: Integers, params: SamplingParams,
    ) -> Draws:  # fmt: skip
        """Draw from processed, untempered logits [R, V] of one request, in order, at non-greedy `params`.

        `log_mass` [R] is log Σ exp(logit/T) of each row, which the caller has anyway.
        """
        ...


class RaceContract(ABC):
    """token = argmax over the support of logits/T + noise(seed, position, token); the filters are vLLM's by default."""

    @abstractmethod
    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        """Winner of logits/T + noise per row of logits [R, V], among entries with logit ≥ cut."""

    def support(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams
    ) -> Support:
        """Which entries of logits [R, V] may be drawn."""
        return support(logits, log_mass, params)

    def draw(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], claimed: Integers,
        *, seed: int, positions: Integers, params: SamplingParams,
    ) -> Draws:  # fmt: skip
        """Draw by filtering, then racing."""
        heat = params.temperature
        kept = self.support(logits, log_mass, params)
        heats, seeds = np.full(len(logits), heat), np.full(len(logits), seed, np.int64)
        own = logits[np.arange(len(logits)), claimed]
        cuts = softened(kept.cuts, own)
        race = self.race(logits, cuts, heats, claimed, seeds, positions)
        inside = own >= cuts
        return Draws(
            winners=race.winners,
            margins=heat * race.leads,
            prob=np.where(inside, np.exp(own / heat - kept.log_mass), 0.0),
            ahead=np.where(inside, race.ahead, np.inf),
            edge=at_the_edge(logits, kept.cuts, np.asarray(claimed, np.int64), race.winners),
        )


@dataclass(frozen=True)
class GumbelContract(RaceContract):
    """A contract whose noise is a function of (seed, position, token id).

    Args:
        id: the contract's full name.
        noise: the compiled noise family.
        absolute: positions count from the prompt's start (V2, SGLang) rather than from the first output token (V1).
        choice_step: what the engine adds to the seed for each further choice of n > 1.
    """

    id: str
    noise: GumbelNoise = field(repr=False)
    absolute: bool = True
    choice_step: int = 1
    lowest_temperature: float = 0.0

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed + self.choice_step * choice

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        first = prompt_length - 1 if self.absolute else 0
        return np.arange(first, first + count, dtype=np.int64)

    def gumbel(self, seeds: Integers, positions: Integers, columns: Integers, width: int) -> Floats:
        """Noise [R, C] of token ids `columns` [C] at each (seed, position) [R]; `width` is the logits' width V."""
        return self.noise.rows(seeds, positions, columns)

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        return self.noise.race(logits, cuts, temperatures, claimed, seeds, positions)
