"""torch's CUDA `exponential_` as a race: what vLLM's V1 runner, TGI and transformers on a GPU draw from.

Source: ATen/native/cuda/DistributionTemplates.h and ATen/core/TransformationHelper.h (torch 2.13, 2.14), curand's
Philox. token = argmax p/q, q ~ Exp(1); in Gumbel units g = −ln q. The k-th draw of a fresh generator is Philox at
counter offset k, so output token j of an undisturbed request has position j.

A fill of N values runs on a grid of S threads (S = 256 · SMs · ⌊threads per SM / 256⌋). While N ≤ S, value i is word
0 of Philox(seed; k, 0, i, 0) on every GPU; beyond, thread i mod S serves several values from its block's other lanes:
four float32 values a block, or two float64 values of two words each. Row b of a tensor [B, V] holds values b·V + v of
N = B·V.
q = −__logf(x): the GPU's float32 logarithm is approximate (|Δg| ≈ 3.6e-7/q), which no CPU reproduces to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.errors import UnknownContract
from verifier.samplers.arithmetic import LOW32, SHIFT32, ZERO, exact_float, exact_float53, kernel, log, philox4x32
from verifier.samplers.contract import RaceContract
from verifier.samplers.noise import Floats, GumbelNoise, Integers, RaceResult

# Threads of one full grid: 256 · SMs · ⌊max threads per SM / 256⌋.
GRID_THREADS = {
    "H100": 270336, "H200": 270336, "H100-PCIe": 233472, "A100": 221184, "B200": 303104, "V100": 163840,
    "RTX5090": 261120, "RTX4090": 196608, "L40S": 218112, "L4": 89088, "A10": 110592, "RTX3090": 125952,
    "A6000": 129024, "T4": 40960,
}  # fmt: skip

_ONE, _TWO, _21 = np.uint64(1), np.uint64(2), np.uint64(21)
_ALMOST_ONE = np.float32(1.0 - 2.0**-24)


@kernel
def _key(seed, position, setting):
    return seed & LOW32, seed >> SHIFT32, position, setting


@kernel
def _word(k0, k1, k2, k3, v):
    return philox4x32(k0, k1, k2 & LOW32, k2 >> SHIFT32, v & LOW32, ZERO)[0]


@kernel
def _round(i, threads):
    # ⌊i/S⌋ in floating point (AVX2 has no integer division): (i + ½)/S is never whole, so adding 1.5·2^52
    # rounds (i + ½)/S − ½ to the whole number below it.
    quotient = (exact_float(i) + 0.5) / exact_float(threads) - 0.5
    return np.float64(quotient + 6755399441055744.0).view(np.uint64) & LOW32


@kernel
def _either(one, other, bit):
    """`other` where the bit is set; a mask, because a choice of Philox's words would keep the loop from vectorizing."""
    return one ^ ((one ^ other) & (bit * LOW32))


@kernel
def _wrapped_word(k0, k1, k2, k3, v):
    """`setting` (k3) holds S in its low half and the row's first value in its high half."""
    threads, i = k3 & LOW32, v + (k3 >> SHIFT32)
    round_ = _round(i, threads)
    counter = k2 + (round_ >> _TWO)
    w = philox4x32(k0, k1, counter & LOW32, counter >> SHIFT32, i - round_ * threads, ZERO)
    low, high = round_ & _ONE, (round_ >> _ONE) & _ONE
    return _either(_either(w[0], w[1], low), _either(w[2], w[3], low), high)


@kernel
def _wide_word(k0, k1, k2, k3, v):
    """The 53 bits of curand's double, wrapped like `_wrapped_word`."""
    threads, i = k3 & LOW32, v + (k3 >> SHIFT32)
    round_ = _round(i, threads)
    counter = k2 + (round_ >> _ONE)
    w = philox4x32(k0, k1, counter & LOW32, counter >> SHIFT32, i - round_ * threads, ZERO)
    odd = round_ & _ONE
    return _either(w[0], w[2], odd) ^ (_either(w[1], w[3], odd) << _21)


@kernel
def _exponential(word):
    x = np.float32(np.float32(exact_float(word)) * np.float32(2.0**-32) + np.float32(2.0**-33))
    return np.float32(-log(np.float64(x))) if x < _ALMOST_ONE else np.float32(2.0**-24)


@kernel
def _gumbel(word):
    return -log(np.float64(_exponential(word)))


@kernel
def _gumbel_bfloat16(word):
    bits = np.float32(_exponential(word)).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return -log(np.float64(np.uint32(rounded).view(np.float32)))


@kernel
def _gumbel_float16(word):
    q = _exponential(word)
    bits = np.float32(q).view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    # Below 2^−14 float16 steps by 2^−24, which is also float32's step in [½, 1).
    tiny = np.float32(np.float32(q + np.float32(0.5)) - np.float32(0.5))
    return -log(np.float64(np.uint32(rounded).view(np.float32) if q >= np.float32(2.0**-14) else tiny))


@kernel
def _gumbel_float64(word):
    x = exact_float53(word) * 2.0**-53 + 2.0**-54
    return -log(-log(x) if x < 1.0 - 2.0**-53 else 2.0**-53)


RACE = GumbelNoise(_key, _word, _gumbel, top_word=2**32 - 1, dtype=np.float64)
WRAPPED_RACE = GumbelNoise(_key, _wrapped_word, _gumbel, top_word=2**32 - 1, dtype=np.float64)
WRAPPED = {
    "float32": WRAPPED_RACE,
    "float64": GumbelNoise(_key, _wide_word, _gumbel_float64, top_word=2**53 - 1, dtype=np.float64),
    "bfloat16": GumbelNoise(_key, _wrapped_word, _gumbel_bfloat16, top_word=2**32 - 1, dtype=np.float64),
    "float16": GumbelNoise(_key, _wrapped_word, _gumbel_float16, top_word=2**32 - 1, dtype=np.float64),
}


@dataclass(frozen=True)
class CudaRace(RaceContract):
    """A race on torch's CUDA generator; position k is the k-th fill of a tensor [batch, V], of which we are one row.

    Args:
        id: the contract's full name.
        grid_threads: S of the GPU; it matters only to fills of more than S values.
        dtype: of the tensor filled.
    """

    id: str
    grid_threads: int = GRID_THREADS["H100"]
    lowest_temperature: float = 0.0
    dtype: str = "float32"
    row: int = 0
    batch: int = 1

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed + choice

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        return np.arange(count, dtype=np.int64)

    def gumbel(self, seeds: Integers, positions: Integers, columns: Integers, width: int) -> Floats:
        """Noise [R, C] of token ids `columns` [C] at each (seed, position) [R]; `width` is the logits' width V."""
        noise, offsets, setting = self._fill(positions, width)
        return noise.rows(seeds, offsets, columns, setting)

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        noise, offsets, setting = self._fill(positions, logits.shape[1])
        return noise.race(logits, cuts, temperatures, claimed, seeds, offsets, setting)

    def _fill(self, positions: Integers, width: int) -> tuple[GumbelNoise, Integers, int]:
        """The noise of our row, the Philox block each draw starts at, and the noise's setting."""
        values = self.batch * width
        plain = self.dtype == "float32" and self.row == 0 and width <= self.grid_threads
        lanes = 2 if self.dtype == "float64" else 4
        blocks = (values - 1) // (lanes * self.grid_threads) + 1
        setting = self.grid_threads | self.row * width << 32
        return (RACE if plain else WRAPPED[self.dtype]), np.asarray(positions) * blocks, setting


def grid_threads(gpu: str) -> int:
    """S of a GPU class; raises UnknownContract naming those known."""
    if gpu not in GRID_THREADS:
        raise UnknownContract(f"GPU class {gpu!r} is not known: use one of {', '.join(GRID_THREADS)}")
    return GRID_THREADS[gpu]
