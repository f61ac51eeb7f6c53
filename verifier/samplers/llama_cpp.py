"""llama.cpp's server (and what embeds it: Ollama since 0.30): std::mt19937 and one double per token.

Source: src/llama-sampler.cpp (llama-sampling.cpp until late 2025), common/sampling.cpp, tools/server. Versions are
build numbers, `llama.cpp@6123` for b6123, or those of the Python package, `llama-cpp-python@0.3.16`:

    build        package        rule of the final `dist` sampler
    – 6334       – 0.3.16       softmax sorts all candidates; std::discrete_distribution; no draw from one candidate
    6335 –       0.3.18 –       first candidate, in array order, where the running sum of exp reaches r · sum; the same
    9900 –       0.3.34 –       the same, but a single candidate consumes a draw too
Builds 6335 (PR 15665, end of August 2025) and 9900 (mid-2026) are our placing of dated changes, within some weeks.

r takes words 2j and 2j + 1 of the stream seeded with the low 32 bits of the seed (libstdc++'s generate_canonical);
n > 1: seed + i. The chain at its defaults is top_k → top_p → min_p at temperature 1, then temperature, then dist. top_k
keeps exactly k, top_p the shortest prefix that reaches p, min_p logits ≥ max + ln min_p. Array order is descending once
top_k or top_p < 1 has sorted, else (and min_p keeps it so) the vocabulary's. Equal logits: by id, where llama.cpp's
own order is unspecified. A grammar that rejects a token, and penalties' own chains, are not modelled here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.samplers import eras, mt19937
from verifier.samplers.inverse_cdf import InverseCdfContract, at_least
from verifier.samplers.names import ContractName, render
from verifier.samplers.noise import Integers
from verifier.samplers.ordering import descending, running_mass
from verifier.sampling_params import SamplingParams


def prefix(z: NDArray[np.float32], log_mass: float, params: SamplingParams) -> int:
    """How many of the logits, sorted from the largest down to the k-th, top_p and min_p leave at temperature 1."""
    count = len(z)
    if params.top_p < 1.0:
        masses = running_mass(z, 1.0)
        count = min(count, int(np.searchsorted(masses, params.top_p * masses[-1])) + 1)
    if params.min_p > 0.0:
        count = min(count, at_least(z, 1.0, params.min_p))
    return max(count, 1)


@dataclass(frozen=True)
class LlamaCpp(InverseCdfContract):
    """llama.cpp's contract: `sorts` says whether dist itself sorts, `draws_from_one` whether it always draws."""

    id: str
    sorts: bool = False
    always_draws: bool = True

    @property
    def draws_from_one(self) -> bool:
        return self.always_draws

    def uniforms(self, seed: int, positions: Integers) -> NDArray[np.float64]:
        return mt19937.uniforms(seed, positions)

    def kept(self, row: NDArray[np.float32], log_mass: float, params: SamplingParams) -> NDArray[np.int32]:
        if self.sorts or params.top_k > 0 or params.top_p < 1.0:
            order = descending(row, params.top_k)
            return order[: prefix(row[order], log_mass, params)]
        cut = row.max() + np.log(params.min_p) if params.min_p > 0.0 else -np.inf
        return np.flatnonzero(row >= cut).astype(np.int32)


def contract(name: ContractName) -> LlamaCpp:
    """`llama.cpp[@BUILD]` or `llama-cpp-python[@VERSION]`; without a version, the newest."""
    name.take_options()
    era = eras.era(name.engine, name.version)
    return LlamaCpp(id=render(name), sorts=era == "sorts", always_draws=era == "always draws")
