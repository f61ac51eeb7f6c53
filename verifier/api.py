"""`verify_outputs`, the drop-in for token-difr 0.1.1's function of that name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from verifier.errors import InputError
from verifier.references import check_place, open_reference
from verifier.replay import Claim, replay
from verifier.samplers import SamplerContract, contract
from verifier.sampling_params import SamplingParams
from verifier.sequences import (
    SamplingMethod,
    TokenMetrics,
    TokenSequence,
    compute_metrics_summary,
    token_metrics,
)

# What vLLM's V1 runner drew when token-difr 0.1.1 was published, and what its users' stored outputs hold.
DEFAULT_SAMPLER = "vllm@0.11.0/v1"


def verify_outputs(
    outputs: Sequence[TokenSequence],
    model_name: str,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    max_model_len: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    vllm_kwargs: Mapping[str, Any] | None = None,
    sampling_method: SamplingMethod = SamplingMethod.VLLM_GUMBEL_MAX,
    gpu_memory_utilization: float = 0.7,
    verbose: bool = True,
    seeds: Sequence[int] | None = None,
    sampler: str = DEFAULT_SAMPLER,
    device: str | None = None,
    backend: str = "transformers",
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
) -> list[list[TokenMetrics]]:
    """Replay the sampling of `outputs` on a trusted model and say, token by token, what matches.

    Args:
        outputs: prompts and claimed outputs as token ids; an empty output gives an empty list.
        model_name: directory of the trusted model.
        temperature: 0 means greedy.
        top_k: 0 or −1 means off.
        top_p: 1 means off.
        seed: of every sequence, unless `seeds` gives one for each.
        max_model_len: longest prompt + output allowed; by default what the model itself allows.
        dtype: of the model's weights.
        vllm_kwargs: for the vLLM backend only.
        sampling_method: kept for token-difr's callers; `sampler` says more.
        gpu_memory_utilization: for the vLLM backend only.
        verbose: print a summary.
        seeds: one seed per sequence.
        sampler: contract id, e.g. `vllm@0.26.0/v2`.
        device: where the model runs; by default the GPU where there is one.
        backend: `transformers`; `vllm` to score inside a vLLM engine on the GPU; or `vllm-logprobs`, which is slow
            and asks nothing of vLLM's version.
        min_p, repetition_penalty, presence_penalty, frequency_penalty: as in the request.

    Raises:
        InputError: an argument, or one of the sequences (named by its index), cannot be used.
        ReferenceModelError: the model cannot be loaded or does not fit.
    """
    if sampling_method is not SamplingMethod.VLLM_GUMBEL_MAX:
        raise InputError(f"{sampling_method} is not a sampling method: name the engine by `sampler` instead")
    if seeds is not None and len(seeds) != len(outputs):
        raise InputError(f"{len(seeds)} seeds for {len(outputs)} outputs: give one seed per output")
    place = device or _best_device()
    check_place(backend, place)
    if vllm_kwargs and not backend.startswith("vllm"):
        warnings.warn("vllm_kwargs are for the vLLM backend; this run uses transformers", stacklevel=2)
    if not any(sequence.output_token_ids for sequence in outputs):
        return [[] for _ in outputs]
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    rules = contract(sampler)
    engine = {"vllm_kwargs": vllm_kwargs, "gpu_memory_utilization": gpu_memory_utilization}
    reference = open_reference(
        model_name, backend=backend, device=place, dtype=dtype, max_model_len=max_model_len, **engine
    )
    claims = _claims(outputs, [seed] * len(outputs) if seeds is None else seeds, params, rules)
    limit = min(max_model_len or reference.max_length, reference.max_length)
    for number, sequence in enumerate(outputs):
        if sequence.output_token_ids:
            reference.check(number, sequence, limit)
    results = [token_metrics(scores) for scores in replay(reference, claims)]
    if verbose:
        _print_summary(results)
    return results


def _claims(
    outputs: Sequence[TokenSequence], seeds: Sequence[int], params: SamplingParams, rules: SamplerContract
) -> list[Claim]:
    as_lists = [TokenSequence(list(s.prompt_token_ids), list(s.output_token_ids)) for s in outputs]
    return [Claim(sequence, seed, params, rules) for sequence, seed in zip(as_lists, seeds, strict=True)]


def _best_device() -> str:
    return "cuda" if torch.cuda.device_count() else "cpu"


def _print_summary(results: list[list[TokenMetrics]]) -> None:
    summary = compute_metrics_summary(results)
    lines = [
        "Verification Summary:",
        f"  Total tokens: {summary['total_tokens']}",
        f"  Exact match rate: {summary['exact_match_rate']:.2%}",
        f"  Average probability: {summary['avg_prob']:.4f}",
        f"  Average margin: {summary['avg_margin']:.4f}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
