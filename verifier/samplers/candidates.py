"""The contracts that an unknown engine is tried against: one for each noise that can be told apart.

Rules whose noise differs by rounding or in one draw of a million are one candidate, and so are engines that draw alike:
`stands_for` names what else a candidate covers.
"""

from __future__ import annotations

from verifier.samplers.torch_cuda import GRID_THREADS

_V1 = "vllm@0.26.0/v1"

_COVERS = {
    "greedy": "every engine at temperature 0",
    _V1: "vLLM V1, TGI and transformers' generate (first row) on a GPU whose grid covers the vocabulary",
    f"{_V1}:fp64=on": "vLLM V1 0.22 and later with use_fp64_gumbel",
    "vllm@0.23.0/v2": "vLLM V2 0.12–0.18 and 0.22–0.23 (eras A, B and D differ in rounding)",
    "vllm@0.21.0/v2": "vLLM V2 0.19–0.21, and 0.22–0.30 with use_fp64_gumbel",
    "vllm@0.26.0/v2": "vLLM V2 0.24–0.30",
    "vllm@0.33.0/v2": "vLLM V2 0.31 and later",
    "vllm@0.33.0/v2:fp64=on": "vLLM V2 0.31 and later with use_fp64_gumbel",
    "vllm@0.29.0/cpu": "vLLM 0.11–0.31 on a CPU, and transformers' generate (batch of one) on a CPU",
    "vllm@0.32.0/cpu": "vLLM 0.32 and later on a CPU",
    "sglang@0.5.8:index=id": "SGLang 0.5.4–0.5.8, drawn by token id",
    "sglang@0.5.8:index=rank": "SGLang 0.5.3–0.5.8, drawn by rank",
    "sglang@0.5.8": "SGLang 0.5.4–0.5.8 in batches that change between id and rank",
    "sglang@0.5.23:index=id": "SGLang 0.5.9 and later, drawn by token id",
    "sglang@0.5.23:index=rank": "SGLang 0.5.9 and later, drawn by rank",
    "sglang@0.5.23": "SGLang 0.5.9 and later in batches that change between id and rank",
    # They differ only where a filter leaves one candidate; what fits both is likelier the newer one.
    "llama.cpp@11549": "llama.cpp since mid-2026, and Ollama 0.30 and later",
    "llama.cpp@7000": "llama.cpp from September 2025 to mid-2026",
    "llama.cpp@6123": "llama.cpp until August 2025",
    "ollama@0.29.0": "Ollama before 0.30 with its Go sampler",
    "lmdeploy": "LMDeploy's PyTorch engine",
    "lmdeploy:shift=-1": "LMDeploy's PyTorch engine, counting one token less",
    "lmdeploy:shift=1": "LMDeploy's PyTorch engine, counting one token more",
    "mlx@0.32.0": "MLX-LM with mlx 0.32.0 and before",
    "mlx@0.32.1": "MLX-LM with mlx 0.32.1 and later",
}

# GPU classes whose grids differ, each by the name of one; H100's is the default.
_GPUS = {threads: gpu for gpu, threads in reversed(GRID_THREADS.items()) if threads != GRID_THREADS["H100"]}


def candidates(width: int | None = None) -> list[str]:
    """Ids of all contracts to try; for logits of `width`, without the GPU classes that draw like the H100 there."""
    wrapped = [gpu for threads, gpu in sorted(_GPUS.items()) if width is None or threads < width]
    if width is not None and width <= GRID_THREADS["H100"]:
        return [*_COVERS, *(f"{_V1}:gpu={gpu}" for gpu in wrapped)]
    # Wider than an H100's grid, a B200 (or whatever covers it all) differs as well.
    return [*_COVERS, *(f"{_V1}:gpu={gpu}" for gpu in dict.fromkeys([*wrapped, *_GPUS.values()]))]


def stands_for(contract_id: str) -> str | None:
    """Which engines and versions a candidate covers, for people; None if the id is no candidate."""
    if "ngram=" in contract_id:
        return "vLLM with speculative decoding by prompt lookup"
    if "drafter=any" in contract_id:
        return "vLLM V2 with speculative decoding"
    found = _COVERS.get(contract_id)
    if found is None and contract_id.startswith(f"{_V1}:gpu="):
        return f"vLLM V1 and TGI on a GPU with the grid of an {contract_id.partition('=')[2]}"
    return found
