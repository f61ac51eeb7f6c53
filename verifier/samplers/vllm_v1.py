"""vLLM's model runner V1 on CUDA: an exponential race from a per-request torch generator (torch_cuda.py).

Source: vllm/v1/sample/sampler.py and ops/topk_topp_sampler.py (0.8.5 … 0.33). Position k = output token k, while no
draw was lost to preemption or speculation. Order, filters and ties: filters.py. Temperatures below 0.01 are raised to
it; n > 1 takes seed + i; seed −1 means "no seed". With `use_fp64_gumbel` (0.22 and later) the fill is float64.

With prompt lookup, `:ngram=SHORTEST-LONGEST,drafts=COUNT`, the draws follow from the text (drafters.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from verifier.errors import UnknownContract
from verifier.samplers.drafters import NgramDrafter, drafter_of
from verifier.samplers.names import ContractName, render
from verifier.samplers.torch_cuda import GRID_THREADS, RACE, WRAPPED_RACE, CudaRace, grid_threads

__all__ = ["GRID_THREADS", "RACE", "WRAPPED_RACE", "CudaRace", "SpeculatingRace", "contract"]


@dataclass(frozen=True, kw_only=True)
class SpeculatingRace(CudaRace):
    """A race whose tokens a drafter proposes; `verifier.speculation` replays it, `draw` alone knows no drafts."""

    drafter: NgramDrafter


def contract(name: ContractName) -> CudaRace:
    """`vllm@VERSION/v1[:gpu=CLASS,fp64=on,ngram=SHORTEST-LONGEST,drafts=COUNT]`."""
    options = name.take_options("gpu", "fp64", "ngram", "drafts")
    wide = options.get("fp64", "off")
    if wide not in {"on", "off"}:
        raise UnknownContract(f"fp64={wide} is not known: write fp64=on or fp64=off")
    plain = CudaRace(
        id=render(name),
        grid_threads=grid_threads(options.get("gpu", "H100")),
        lowest_temperature=0.01,
        dtype="float64" if wide == "on" else "float32",
    )
    drafter = drafter_of(options)
    return SpeculatingRace(**vars(plain), drafter=drafter) if drafter else plain
