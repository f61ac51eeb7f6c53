"""LMDeploy's PyTorch engine: one Philox uniform per (seed, position). TurboMind draws otherwise and is not replayed.

Source: lmdeploy/pytorch/engine/logits_process.py and kernels/cuda/multinomial_sampling.py. u = R(w0) of Philox keyed by
the low 32 bits of the seed at counter `offset` (Triton's tl.rand), with offset = the number of tokens of the sequence,
so prompt length + j; R folds a word to 31 bits and scales it to [0, 1). A template may make it one more or less:
`:shift=1` or `:shift=-1`. On the descending row: temperature → top_k (exactly k) → top_p (exclusive cumulative
probability among the k ≤ p) → min_p (p ≥ min_p · p_max) → the token with cum_prev < u ≤ cum, the first for u = 0.
Equal logits: by id. All choices share the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.errors import UnknownContract
from verifier.samplers.arithmetic import LOW32, ZERO, exact_float, kernel, philox4x32
from verifier.samplers.inverse_cdf import InverseCdfContract, at_least, exclusive
from verifier.samplers.names import ContractName, render
from verifier.samplers.noise import Integers
from verifier.samplers.ordering import descending
from verifier.sampling_params import SamplingParams

_HALF, _STEP = np.uint64(0x80000000), np.float32(4.6566127342e-10)


@kernel
def _uniform(seed, offset):
    w = philox4x32(seed, ZERO, offset & LOW32, ZERO, ZERO, ZERO)[0]
    folded = LOW32 - w if w >= _HALF else w
    return np.float32(np.float32(exact_float(folded)) * _STEP)


@njit(error_model="numpy")
def _uniforms(seed, offsets):
    out = np.empty(offsets.size)
    for i in range(offsets.size):
        out[i] = _uniform(seed, np.uint64(offsets[i]))
    return out


def prefix(z: NDArray[np.float32], log_mass: float, params: SamplingParams) -> int:
    """How many of the logits, sorted from the largest down to the k-th, top_p and min_p leave."""
    count, heat = len(z), params.temperature
    if params.top_p < 1.0:
        masses = exclusive(z, heat)
        count = int(np.searchsorted(masses[:-1], params.top_p * masses[-1], side="right"))
    if params.min_p > 0.0:
        count = min(count, at_least(z, heat, params.min_p))
    return max(count, 1)


@dataclass(frozen=True)
class LMDeploy(InverseCdfContract):
    """LMDeploy's contract; `shift` is added to prompt length + j."""

    id: str
    shift: int = 0

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        first = prompt_length + self.shift
        return np.arange(first, first + count, dtype=np.int64)

    def uniforms(self, seed: int, positions: Integers) -> NDArray[np.float64]:
        found: NDArray[np.float64] = _uniforms(np.uint64(seed & 0xFFFFFFFF), np.asarray(positions, np.int64))
        return found

    def kept(self, row: NDArray[np.float32], log_mass: float, params: SamplingParams) -> NDArray[np.int32]:
        order = descending(row, params.top_k)
        return order[: prefix(row[order], log_mass, params)]


def contract(name: ContractName) -> LMDeploy:
    """`lmdeploy[@VERSION][:shift=-1|0|1]`."""
    shift = name.take_options("shift").get("shift", "0")
    if shift not in {"-1", "0", "1"}:
        raise UnknownContract(f"shift={shift} is not known: use shift=-1, shift=0 or shift=1")
    return LMDeploy(id=render(name), shift=int(shift))
