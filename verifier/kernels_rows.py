"""What the scoring kernel and its twin take: one noise family, and per row the claim and its sampling parameters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

COLUMNS = ("winner", "margin", "prob", "logprob", "entropy", "logit_rank", "gumbel_rank", "flags")
"""Columns of a float32 result [R, 8]; whole numbers in them stay below 2^24, so nothing is lost.

`flags` is 1 where rounding may decide the support, plus 2 where the engine drew nothing (TokenScores.edge, .undrawn).
"""


class Noise(IntEnum):
    """Noise families that can be made in registers from (seed, position, token id)."""

    GREEDY = 0
    CUDA_RACE = 1
    VLLM_A = 2
    VLLM_B = 3
    VLLM_C = 4
    VLLM_D = 5
    VLLM_E = 6
    VLLM_F = 7
    SGLANG_059 = 8
    SGLANG_0518 = 9


REACH = {
    Noise.GREEDY: 1e-3, Noise.CUDA_RACE: 17.0, Noise.VLLM_A: 17.0, Noise.VLLM_B: 17.0, Noise.VLLM_C: 45.0,
    Noise.VLLM_D: 17.0, Noise.VLLM_E: 22.0, Noise.VLLM_F: 23.0, Noise.SGLANG_059: 1e30, Noise.SGLANG_0518: 23.0,
}  # fmt: skip
"""More than the largest noise of each family: −ln of its smallest exponential (2^−24 of a float32 uniform below 1,
2^−31, 2^−33, 2^−64); SGLang's older one is unbounded."""


@dataclass(frozen=True)
class KernelRows:
    """Claims of R rows that share one noise family.

    Args:
        noise: the family.
        threads: values that one grid of torch's CUDA generator fills at a time; for CUDA_RACE only.
        claimed, seeds, positions: [R], int64.
        top_k: [R], int64; 0 is off.
        temperature, top_p, min_p: [R], float32; temperatures are positive (1 for greedy rows).
        edge: logits by which a claimed token may miss the cut (filters.EDGE).
    """

    noise: Noise
    threads: int
    claimed: NDArray[np.int64]
    seeds: NDArray[np.int64]
    positions: NDArray[np.int64]
    top_k: NDArray[np.int64]
    temperature: NDArray[np.float32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    edge: float

    def __len__(self) -> int:
        return len(self.claimed)

    def filtered(self, width: int) -> NDArray[np.bool_]:
        """Rows [R] that a filter may take something from, of logits `width` wide."""
        found: NDArray[np.bool_] = (
            ((self.top_k > 0) & (self.top_k < width)) | (self.top_p < 1.0) | (self.min_p > 0.0)
        ) & (self.noise != Noise.GREEDY)
        return found

    def wholes(self, width: int, device: torch.device) -> torch.Tensor:
        """claimed, seeds, positions, top_k (0 where it is off) as int64 [4, R] on the device, in one transfer."""
        top_k = np.where(self.top_k < width, self.top_k, 0)
        return sent(np.stack([self.claimed, self.seeds, self.positions, top_k]).astype(np.int64), device)

    def reals(self, device: torch.device) -> torch.Tensor:
        """temperature, top_p, and min_p as a distance of logits (−∞ is off), as float32 [3, R] on the device."""
        with np.errstate(divide="ignore"):
            drop = self.temperature.astype(np.float64) * np.log(self.min_p.astype(np.float64))
        return sent(np.stack([self.temperature, self.top_p, drop]).astype(np.float32), device)


def sent(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """The array on the device; a GPU does not wait for it."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
