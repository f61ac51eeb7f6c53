"""What the verifier asks of an engine's sampler: which noise, at which position, for which choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from verifier.samplers.noise import Floats, GumbelNoise, Integers, RaceResult


class SamplerContract(Protocol):
    """An engine's promise: token = argmax over the support of logits/T + noise(seed, position, token)."""

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

    def gumbel(self, seeds: Integers, positions: Integers, columns: Integers, width: int) -> Floats:
        """Noise [R, C] of token ids `columns` [C] at each (seed, position) [R]; `width` is the logits' width V."""
        ...

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        """Winner of logits/T + noise per row of logits [R, V], among entries with logit ≥ cut."""
        ...


@dataclass(frozen=True)
class GumbelContract:
    """A contract whose noise is a function of (seed, position, token id).

    Args:
        id: the contract's full name.
        noise: the compiled noise family.
        absolute: positions count from the prompt's start (V2, SGLang) rather than from the first output token (V1).
        choice_step: what the engine adds to the seed for each further choice of n > 1.
        lowest_temperature: a temperature below this, but not greedy, is raised to it (vLLM: 0.01).
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
        return self.noise.rows(seeds, positions, columns)

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        return self.noise.race(logits, cuts, temperatures, claimed, seeds, positions)
