"""Sampler contracts: which noise an engine adds to its logits, by engine, version and runner.

Each engine is one short file: its formula, its versions, its source. `contract("vllm@0.26.0/v2")` finds one by id.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache

from verifier.errors import UnknownContract
from verifier.samplers import vllm_v1, vllm_v2
from verifier.samplers.contract import SamplerContract
from verifier.samplers.greedy import GREEDY
from verifier.samplers.names import ContractName, parse

__all__ = ["SamplerContract", "contract"]

ENGINES = ("vllm", "greedy")


@cache
def contract(contract_id: str) -> SamplerContract:
    """The sampler contract of an id such as `vllm@0.26.0/v2`; raises UnknownContract with the way out."""
    name = parse(contract_id)
    if name.engine == "vllm":
        return _vllm(name)
    if name.engine == "greedy":
        name.take_options()
        return GREEDY
    near = get_close_matches(name.engine, ENGINES, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known engines are {', '.join(ENGINES)}."
    raise UnknownContract(f"no sampler contract for engine {name.engine!r}: {hint}")


def _vllm(name: ContractName) -> SamplerContract:
    runner = name.runner or ("v1" if name.version and name.version < (0, 25) else "v2")
    full = ContractName(name.engine, name.version, runner, name.options)
    if runner == "v1":
        return vllm_v1.contract(full)
    if runner == "v2":
        return vllm_v2.contract(full)
    raise UnknownContract(f"vLLM has no runner {runner!r}: write vllm@VERSION/v1 or vllm@VERSION/v2")
