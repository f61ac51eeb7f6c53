"""Sampler contracts: which noise an engine adds to its logits, by engine, version and runner.

Each engine is one short file: its formula, its versions, its source. `contract("vllm@0.26.0/v2")` finds one by id,
`assumption` says where an id reaches beyond the versions that were read, `candidates` lists what an unknown engine is
tried against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from verifier.errors import UnknownContract
from verifier.samplers import huggingface, llama_cpp, lmdeploy, mlx, ollama, sglang, tgi, vllm_cpu, vllm_v1, vllm_v2
from verifier.samplers.candidates import candidates, stands_for
from verifier.samplers.contract import SamplerContract
from verifier.samplers.eras import era
from verifier.samplers.greedy import GREEDY, Greedy
from verifier.samplers.names import ContractName, parse

__all__ = ["SamplerContract", "assumption", "candidates", "contract", "stands_for"]


@dataclass(frozen=True)
class Engine:
    """How an engine is called, who makes its contracts, and the newest version whose sources were read."""

    title: str
    contract: Callable[[ContractName], SamplerContract]
    newest: tuple[int, ...] | None = None


@cache
def contract(contract_id: str) -> SamplerContract:
    """The sampler contract of an id such as `vllm@0.26.0/v2`; raises UnknownContract with the way out."""
    name = parse(contract_id)
    if name.engine not in ENGINES:
        near = get_close_matches(name.engine, ENGINES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known engines are {', '.join(ENGINES)}."
        raise UnknownContract(f"no sampler contract for engine {name.engine!r}: {hint}")
    if name.runner and name.engine not in {"vllm", "huggingface"}:
        raise UnknownContract(f"{name.engine} has no runners: write {contract_id.replace('/' + name.runner, '')}")
    return ENGINES[name.engine].contract(name)


def assumption(contract_id: str) -> str | None:
    """What is taken for granted where an id names no version, or a newer one than was read; None otherwise."""
    name = parse(contract_id)
    engine = ENGINES[name.engine]
    if engine.newest is None:
        return None
    newest = ".".join(map(str, engine.newest))
    if name.version is None:
        return f"No {engine.title} version is named: the rules of {newest} are assumed"
    if name.version[: len(engine.newest)] <= engine.newest:
        return None
    version = ".".join(map(str, name.version))
    return f"{engine.title} {version} is newer than any version read ({newest}): the rules of {newest} are assumed"


def _vllm(name: ContractName) -> SamplerContract:
    runner = name.runner or era("vllm", name.version) or "v1"
    full = ContractName(name.engine, name.version, runner, name.options)
    if runner == "v1":
        return vllm_v1.contract(full)
    if runner == "v2":
        return vllm_v2.contract(full)
    if runner == "cpu":
        return vllm_cpu.contract(full)
    raise UnknownContract(
        f"vLLM has no runner {runner!r}: write vllm@VERSION/v1, vllm@VERSION/v2 or vllm@VERSION/cpu"
    )


def _greedy(name: ContractName) -> Greedy:
    name.take_options()
    return GREEDY


ENGINES = {
    "vllm": Engine("vLLM", _vllm, (0, 33)),
    "sglang": Engine("SGLang", sglang.contract, (0, 5, 23)),
    "llama.cpp": Engine("llama.cpp", llama_cpp.contract, (11549,)),
    "llama-cpp-python": Engine("llama-cpp-python", llama_cpp.contract, (0, 3, 36)),
    "ollama": Engine("Ollama", ollama.contract, (0, 30)),
    "huggingface": Engine("transformers", huggingface.contract),
    "tgi": Engine("TGI", tgi.contract),
    "lmdeploy": Engine("LMDeploy", lmdeploy.contract),
    "mlx": Engine("MLX", mlx.contract, (0, 32, 1)),
    "greedy": Engine("greedy decoding", _greedy),
}
