"""Ollama: its own Go sampler before 0.30, llama.cpp's server since (llama_cpp.py, newest era).

Source: sample/samplers.go and sample/transforms.go before commit 9db4bdba (2026-05-29). One math/rand/v2 PCG a request,
NewPCG(seed, seed xor 0x9E3779B9); r = Float32() (24 bits). topK sorts descending (exactly k) → temperature → softmax →
topP (the shortest prefix whose sum exceeds p) → minP (p ≥ min_p · p_max) → first token whose float32 running sum
reaches r · the last sum. Temperature 0 is greedy and draws nothing; a grammar that rejects a token draws twice. Seed −1
means "no seed". The API returns no token ids and one choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from verifier.samplers import eras
from verifier.samplers.inverse_cdf import InverseCdfContract, at_least
from verifier.samplers.llama_cpp import LlamaCpp
from verifier.samplers.names import ContractName, render
from verifier.samplers.noise import Integers
from verifier.samplers.ordering import descending, running_mass
from verifier.sampling_params import SamplingParams

_LOW64, _LOW128 = 2**64 - 1, 2**128 - 1
_MULTIPLIER = 2549297995355413924 << 64 | 4865540595714422341
_INCREMENT = 6364136223846793005 << 64 | 1442695040888963407
_CHEAP = 0xDA942042E4DD58B5


def pcg(seed1: int, seed2: int) -> Iterator[int]:
    """The 64-bit words of Go's rand.NewPCG(seed1, seed2): PCG-DXSM of 128 bits."""
    state = (seed1 & _LOW64) << 64 | seed2 & _LOW64
    while True:
        state = (state * _MULTIPLIER + _INCREMENT) & _LOW128
        high, low = state >> 64, state & _LOW64
        high ^= high >> 32
        high = high * _CHEAP & _LOW64
        high ^= high >> 48
        yield high * (low | 1) & _LOW64


def prefix(z: NDArray[np.float32], log_mass: float, params: SamplingParams) -> int:
    """How many of the logits, sorted from the largest down to the k-th, topP and minP leave."""
    count, heat = len(z), params.temperature
    if params.top_p < 1.0:
        masses = running_mass(z, heat)
        count = min(count, int(np.searchsorted(masses, params.top_p * masses[-1], side="right")) + 1)
    if params.min_p > 0.0:
        count = min(count, at_least(z, heat, params.min_p))
    return max(count, 1)


@dataclass(frozen=True)
class OllamaGo(InverseCdfContract):
    """Contract of Ollama's Go sampler."""

    id: str
    sums: ClassVar[type] = np.float32

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed

    def uniforms(self, seed: int, positions: Integers) -> NDArray[np.float64]:
        stream = pcg(seed, seed ^ 0x9E3779B9)
        top24 = [next(stream) >> 32 & 0xFFFFFF for _ in range(int(np.max(positions, initial=-1)) + 1)]
        return np.array(top24, np.float64)[np.asarray(positions)] / 2**24

    def kept(self, row: NDArray[np.float32], log_mass: float, params: SamplingParams) -> NDArray[np.int32]:
        order = descending(row, params.top_k)
        return order[: prefix(row[order], log_mass, params)]


def contract(name: ContractName) -> OllamaGo | LlamaCpp:
    """`ollama[@VERSION]`; without a version, the newest."""
    name.take_options()
    if eras.era("ollama", name.version) == "go":
        return OllamaGo(id=render(name))
    return LlamaCpp(id=render(name))
