"""Argmax decoding: the contract of every engine at temperature 0, where the seed plays no part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.samplers.contract import Draws
from verifier.samplers.noise import Integers
from verifier.sampling_params import SamplingParams


@dataclass(frozen=True)
class Greedy:
    """token = argmax of the processed logits; the first index wins ties."""

    id: str = "greedy"
    lowest_temperature: float = 0.0

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        return np.zeros(count, np.int64)

    def draw(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], claimed: Integers,
        *, seed: int, positions: Integers, params: SamplingParams,
    ) -> Draws:  # fmt: skip
        """The argmax; a claimed token's margin is the difference of the logits."""
        rows = np.arange(len(logits))
        winners = logits.argmax(1)
        own = logits[rows, claimed]
        return Draws(
            winners=winners,
            margins=(logits[rows, winners] - own).astype(np.float64),
            prob=(winners == claimed).astype(np.float64),
            ahead=(logits > own[:, None]).sum(1).astype(np.float64),
        )


GREEDY = Greedy()
