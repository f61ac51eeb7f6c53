"""MLX-LM's server: keys split from one global Threefry key, which a request's seed resets.

Source: mlx/random.cpp, backend/common of mlx 0.31 … 0.32 and mlx_lm/sample_utils.py. Versions are MLX's own; draw j
uses the j-th split of the key made of the seed's high and low word. Requests with a seed are not batched.

    mlx          token
    – 0.32.0     argmax(logprobs/T + g), g = −ln(−ln u) in float32, u = min(bits·2^−32, 1 − 2^−24): noise depends on V
    0.32.1 –     first id whose float32 running sum of exp(x − max), in vocabulary order, exceeds u · sum

Filters act on log-probabilities at temperature 1, before it: top_p (exclusive cumulative probability from the top < p)
→ min_p (p ≥ min_p · p_max) → top_k. Ties at an edge stay in, where MLX's partition picks. All choices share the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.filters import Support
from verifier.samplers import eras
from verifier.samplers.arithmetic import LOW32, SHIFT32, ZERO, exact_float, kernel, log
from verifier.samplers.contract import RaceContract
from verifier.samplers.inverse_cdf import InverseCdfContract, at_least, exclusive
from verifier.samplers.names import ContractName, render
from verifier.samplers.noise import Floats, GumbelNoise, Integers, RaceResult
from verifier.samplers.ordering import prefix_support
from verifier.samplers.threefry import array_word, keys, threefry2x32
from verifier.sampling_params import SamplingParams

_LARGEST = np.float32(1.0 - 2.0**-24)


@kernel
def _key(seed, position, setting):
    return seed >> SHIFT32, seed & LOW32, setting, ZERO


@kernel
def _word(k0, k1, k2, k3, v):
    return array_word(k0, k1, k2, v)


@kernel
def _uniform(word):
    u = np.float32(np.float32(exact_float(word)) * np.float32(2.0**-32))
    return u if u < _LARGEST else _LARGEST


@kernel
def _gumbel(word):
    u = _uniform(word)
    inner = np.float32(-log(np.float64(u)))
    return np.float32(-log(np.float64(inner))) if u > np.float32(0.0) else np.float32(-np.inf)


THREEFRY = GumbelNoise(_key, _word, _gumbel, top_word=2**32 - 1)


@njit(error_model="numpy")
def _first_uniforms(own):
    out = np.empty(own.size)
    for i in range(own.size):
        out[i] = _uniform(threefry2x32(own[i] >> SHIFT32, own[i] & LOW32, ZERO, ZERO)[0])
    return out


def prefix(z: NDArray[np.float32], log_mass: float, params: SamplingParams) -> int:
    """How many of the row's descending logits top_p, min_p and top_k leave at temperature 1."""
    count = len(z)
    if params.top_p < 1.0:
        masses = exclusive(z, 1.0)
        count = int(np.searchsorted(masses[:-1], params.top_p * masses[-1]))
    if params.min_p > 0.0:
        count = min(count, at_least(z, 1.0, params.min_p))
    return max(min(count, params.top_k) if params.top_k > 0 else count, 1)


def mlx_support(logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams) -> Support:
    """What mlx-lm's filters leave of logits [R, V]."""
    return prefix_support(logits, log_mass, params, prefix, top_k_first=False)


@dataclass(frozen=True)
class MlxGumbel(RaceContract):
    """Contract of MLX through 0.32.0."""

    id: str
    lowest_temperature: float = 0.0

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        return np.arange(count, dtype=np.int64)

    def support(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams
    ) -> Support:
        return mlx_support(logits, log_mass, params)

    def gumbel(self, seeds: Integers, positions: Integers, columns: Integers, width: int) -> Floats:
        """Noise [R, C] of token ids `columns` [C] at each (seed, position) [R]; `width` is the logits' width V."""
        return THREEFRY.rows(_draw_keys(seeds, positions), positions, columns, width)

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        own = _draw_keys(seeds, positions)
        return THREEFRY.race(logits, cuts, temperatures, claimed, own, positions, logits.shape[1])


@dataclass(frozen=True)
class MlxCdf(InverseCdfContract):
    """Contract of MLX 0.32.1 and later."""

    id: str
    sums: ClassVar[Any] = np.float32
    side: ClassVar[Literal["left", "right"]] = "right"

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed

    def uniforms(self, seed: int, positions: Integers) -> NDArray[np.float64]:
        found: NDArray[np.float64] = _first_uniforms(keys(seed, positions))
        return found

    def kept(self, row: NDArray[np.float32], log_mass: float, params: SamplingParams) -> NDArray[np.int32]:
        cut = mlx_support(row[None], np.array([log_mass]), params).cuts[0]
        return np.flatnonzero(row >= cut).astype(np.int32)


def _draw_keys(seeds: Integers, positions: Integers) -> NDArray[np.uint64]:
    seeds, positions = np.asarray(seeds), np.asarray(positions)
    out = np.empty(len(positions), np.uint64)
    for seed in np.unique(seeds):
        out[seeds == seed] = keys(int(seed), positions[seeds == seed])
    return out


def contract(name: ContractName) -> MlxGumbel | MlxCdf:
    """`mlx[@VERSION]`; without a version, the newest."""
    name.take_options()
    if eras.era("mlx", name.version) == "gumbel":
        return MlxGumbel(id=render(name))
    return MlxCdf(id=render(name))
