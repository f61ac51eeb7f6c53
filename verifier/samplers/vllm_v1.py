"""vLLM's model runner V1 on CUDA: an exponential race from a per-request torch generator.

Source: vllm/v1/sample/ops/topk_topp_sampler.py (0.8.5 … 0.33) and torch's ATen/native/cuda/DistributionTemplates.h and
ATen/core/TransformationHelper.h (2.13, 2.14). token = argmax p/q, q ~ Exp(1); in Gumbel units g = −ln q. The k-th
draw of a fresh generator is Philox at counter offset k, so output token j of an undisturbed request has position j.

A fill of V values runs on a grid of S threads (S = 256 · SMs · ⌊threads per SM / 256⌋). While V ≤ S, value i is word 0
of Philox(seed; k, 0, i, 0) on every GPU; beyond, thread i mod S serves several values from its block's other lanes.
q = −__logf(x): the GPU's logarithm is approximate (|Δg| ≈ 3.6e-7/q), which no CPU reproduces to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.errors import UnknownContract
from verifier.samplers.arithmetic import LOW32, SHIFT32, ZERO, exact_float, kernel, log, philox4x32
from verifier.samplers.contract import RaceContract
from verifier.samplers.names import ContractName, render
from verifier.samplers.noise import Floats, GumbelNoise, Integers, RaceResult

# Threads of one full grid: 256 · SMs · ⌊max threads per SM / 256⌋.
GRID_THREADS = {
    "H100": 270336, "H200": 270336, "H100-PCIe": 233472, "A100": 221184, "B200": 303104, "V100": 163840,
    "RTX5090": 261120, "RTX4090": 196608, "L40S": 218112, "L4": 89088, "A10": 110592, "RTX3090": 125952,
    "A6000": 129024, "T4": 40960,
}  # fmt: skip

_TWO, _THREE, _LOW8 = np.uint64(2), np.uint64(3), np.uint64(255)
_ALMOST_ONE = np.float32(1.0 - 2.0**-24)


@kernel
def _key(seed, position, setting):
    return seed & LOW32, seed >> SHIFT32, position, setting


@kernel
def _word(k0, k1, k2, k3, v):
    return philox4x32(k0, k1, k2 & LOW32, k2 >> SHIFT32, v & LOW32, ZERO)[0]


@kernel
def _wrapped_word(k0, k1, k2, k3, v):
    # ⌊v/S⌋ in floating point (AVX2 has no integer division): (v + ½)/S is never whole, so adding 1.5·2^52
    # rounds (v + ½)/S − ½ to the whole number below it.
    quotient = (exact_float(v) + 0.5) / exact_float(k3) - 0.5
    round_ = np.float64(quotient + 6755399441055744.0).view(np.uint64) & _LOW8
    thread = v - round_ * k3
    counter = k2 + (round_ >> _TWO)
    w = philox4x32(k0, k1, counter & LOW32, counter >> SHIFT32, thread & LOW32, ZERO)
    lane = round_ & _THREE
    low = w[0] if lane == ZERO else w[1]
    high = w[2] if lane == _TWO else w[3]
    return low if lane < _TWO else high


@kernel
def _gumbel(word):
    x = np.float32(np.float32(exact_float(word)) * np.float32(2.0**-32) + np.float32(2.0**-33))
    q = np.float32(-log(np.float64(x))) if x < _ALMOST_ONE else np.float32(2.0**-24)
    return -log(np.float64(q))


RACE = GumbelNoise(_key, _word, _gumbel, top_word=2**32 - 1, dtype=np.float64)
WRAPPED_RACE = GumbelNoise(_key, _wrapped_word, _gumbel, top_word=2**32 - 1, dtype=np.float64)


@dataclass(frozen=True)
class CudaRace(RaceContract):
    """Contract of vLLM's V1 runner on one class of GPU.

    Args:
        id: the contract's full name.
        grid_threads: S of the GPU; it matters only to vocabularies wider than S.
    """

    id: str
    grid_threads: int = GRID_THREADS["H100"]
    lowest_temperature: float = 0.01

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed + choice

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        return np.arange(count, dtype=np.int64)

    def gumbel(self, seeds: Integers, positions: Integers, columns: Integers, width: int) -> Floats:
        """Noise [R, C] of token ids `columns` [C] at each (seed, position) [R]; `width` is the logits' width V."""
        offsets = np.asarray(positions) * self._blocks_per_draw(width)
        if width <= self.grid_threads:
            return RACE.rows(seeds, offsets, columns)
        # Most entries still lie on the first round of the grid, where the plain kernel is several times faster.
        first = np.asarray(columns) < self.grid_threads
        out = np.empty((len(seeds), len(columns)), RACE.dtype)
        out[:, first] = RACE.rows(seeds, offsets, np.asarray(columns)[first])
        out[:, ~first] = WRAPPED_RACE.rows(seeds, offsets, np.asarray(columns)[~first], self.grid_threads)
        return out

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        width = logits.shape[1]
        noise = RACE if width <= self.grid_threads else WRAPPED_RACE
        offsets = np.asarray(positions) * self._blocks_per_draw(width)
        return noise.race(logits, cuts, temperatures, claimed, seeds, offsets, self.grid_threads)

    def _blocks_per_draw(self, width: int) -> int:
        """Philox blocks by which one fill of `width` values advances the generator (its offset / 4)."""
        return (width - 1) // (4 * self.grid_threads) + 1


def contract(name: ContractName) -> CudaRace:
    """`vllm@VERSION/v1[:gpu=CLASS]`."""
    gpu = name.take_options("gpu").get("gpu", "H100")
    if gpu not in GRID_THREADS:
        raise UnknownContract(f"GPU class {gpu!r} is not known: use one of {', '.join(GRID_THREADS)}")
    return CudaRace(id=render(name), grid_threads=GRID_THREADS[gpu])
