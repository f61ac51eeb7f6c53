"""transformers' `generate(do_sample=True)`: torch.multinomial of one sample, a race on the global generator.

Source: transformers 5.23 generation/logits_process.py and utils.py; ATen/native/Distributions.cpp. The race fills
the whole [batch, V] tensor, so a row's noise depends on its place: `huggingface/cuda:row=1,batch=4,gpu=A100` or
`huggingface/cpu:row=0,batch=1`. `set_seed(seed)` must precede the call, and nothing else may draw; position j is output
token j. A beam or a returned sequence is a row, not another seed.

Order: temperature → top_k (ties with the k-th stay) → top_p (exclusive cumulative probability among those < p) → min_p
(p ≥ min_p · p_max).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from verifier.errors import UnknownContract
from verifier.filters import Support, support
from verifier.samplers.contract import RaceContract
from verifier.samplers.names import ContractName, render
from verifier.samplers.torch_cpu import CpuRace
from verifier.samplers.torch_cuda import CudaRace, grid_threads
from verifier.sampling_params import SamplingParams


def min_p_last(logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams) -> Support:
    """Support of logits [R, V] where min_p follows top_p: it then raises the cut, but top_p knew nothing of it."""
    kept = support(logits, log_mass, replace(params, min_p=0.0))
    if params.min_p <= 0.0:
        return kept
    heat = params.temperature
    cuts = np.maximum(kept.cuts, (logits.max(1) + heat * np.log(params.min_p)).astype(np.float32))
    masses = [np.logaddexp.reduce(z[z >= cut].astype(np.float64) / heat) for z, cut in zip(logits, cuts, strict=True)]
    return Support(cuts, np.array(masses))


class _Generate(RaceContract):
    def support(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams
    ) -> Support:
        return min_p_last(logits, log_mass, params)

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed


@dataclass(frozen=True)
class GenerateOnCuda(_Generate, CudaRace):
    """Contract of `generate` on a CUDA device."""


@dataclass(frozen=True)
class GenerateOnCpu(_Generate, CpuRace):
    """Contract of `generate` on a CPU."""


def contract(name: ContractName) -> GenerateOnCuda | GenerateOnCpu:
    """`huggingface[@VERSION]/cuda|cpu[:row=ROW,batch=BATCH,gpu=CLASS]`."""
    if name.runner not in {"cuda", "cpu"}:
        raise UnknownContract("where does generate run? Write huggingface/cuda or huggingface/cpu")
    options = name.take_options("row", "batch", *(["gpu"] if name.runner == "cuda" else []))
    row, batch = options.get("row", "0"), options.get("batch", "1")
    if not (row.isdecimal() and batch.isdecimal() and int(row) < int(batch)):
        raise UnknownContract(f"row={row} of batch={batch} is no row: rows count from 0 and lie below the batch size")
    if name.runner == "cpu":
        return GenerateOnCpu(id=render(name), row=int(row), batch=int(batch))
    threads = grid_threads(options.get("gpu", "H100"))
    return GenerateOnCuda(id=render(name), grid_threads=threads, row=int(row), batch=int(batch))
