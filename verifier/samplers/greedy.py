"""Argmax decoding: the contract of every engine at temperature 0, where the seed plays no part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.samplers.noise import Floats, Integers, RaceResult


@dataclass(frozen=True)
class Greedy:
    """token = argmax of the processed logits; the first index wins ties."""

    id: str = "greedy"
    lowest_temperature: float = 0.0

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        return np.zeros(count, np.int64)

    def gumbel(self, seeds: Integers, positions: Integers, columns: Integers, width: int) -> Floats:
        return np.zeros((len(seeds), len(columns)), np.float32)

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        rows = np.arange(len(logits))
        winners = logits.argmax(1)
        own = logits[rows, claimed]
        ahead = (logits > own[:, None]).sum(1)
        leads = (logits[rows, winners] - own) / np.asarray(temperatures, np.float64)
        return RaceResult(winners, leads, ahead)
