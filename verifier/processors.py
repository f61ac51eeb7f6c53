"""What engines do to logits before the temperature: allowed ids, biases, minimum length, penalties, bad words.

Order and formulas of vLLM (v1/sample/sampler.py, ops/penalties.py, logits_processor/builtin.py; V2: v1/worker/gpu/
sample/{logit_bias,penalties}.py; 0.8.5 … 0.33). V1 masks bad words before the penalties and V2 after them, which
gives the same logits. Everything depends only on the tokens before the one being drawn, so a prefill can replay it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.sampling_params import SamplingParams


@dataclass(frozen=True)
class History:
    """What stands before the tokens being drawn: the prompt, and the whole claimed output."""

    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    end_token_ids: Sequence[int]


def changes_logits(params: SamplingParams) -> bool:
    """Whether any processor is on."""
    return bool(
        params.logit_bias
        or params.allowed_token_ids
        or params.bad_words_token_ids
        or params.min_tokens
        or _penalizes(params)
    )


_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_OF_VLLM = frozenset({*_PENALTIES, "min_tokens", "bad_words_token_ids"})
_LIKE_VLLM = {
    "vllm": _OF_VLLM, "greedy": _OF_VLLM, "sglang": frozenset(_PENALTIES[1:]), "huggingface": frozenset(_PENALTIES[:1]),
}  # fmt: skip
"""Processors by whose formula each engine draws too; biases and allowed ids are the same everywhere."""


def not_modelled(engine: str, params: SamplingParams) -> str | None:
    """The first processor that is on and whose formula this engine does not share with vLLM, or None.

    llama.cpp counts only the last tokens, SGLang scales only what was drawn, TGI and LMDeploy have rules of their own.
    """
    off = SamplingParams()
    on = [name for name in sorted(_OF_VLLM) if getattr(params, name) != getattr(off, name)]
    return next((name for name in on if name not in _LIKE_VLLM.get(engine, frozenset())), None)


def processed(
    logits: NDArray[np.float32], first: int, history: History, params: SamplingParams
) -> NDArray[np.float32]:
    """Logits [R, V] of output tokens `first` … `first` + R − 1 as the sampler sees them; a copy if anything is on."""
    if not changes_logits(params):
        return logits
    rows: NDArray[np.float32] = logits.copy()
    _allow_only(rows, params.allowed_token_ids)
    for token_id, bias in params.logit_bias.items():
        rows[:, token_id] += np.float32(bias)
    _hold_back_the_end(rows, first, history, params)
    if _penalizes(params):
        for row in range(len(rows)):
            _penalize(rows[row], history.prompt_token_ids, history.output_token_ids[: first + row], params)
    for row in range(len(rows)):
        _forbid_words(rows[row], history.output_token_ids[: first + row], params.bad_words_token_ids)
    return rows


def _penalizes(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _allow_only(rows: NDArray[np.float32], allowed: Sequence[int]) -> None:
    if allowed:
        forbidden = np.ones(rows.shape[1], np.bool_)
        forbidden[list(allowed)] = False
        rows[:, forbidden] = -np.inf


def _hold_back_the_end(
    rows: NDArray[np.float32], first: int, history: History, params: SamplingParams
) -> None:
    """The first `min_tokens` tokens may not end the answer."""
    held = max(0, params.min_tokens - first)
    rows[:held, [*history.end_token_ids, *params.stop_token_ids]] = -np.inf


def _penalize(
    row: NDArray[np.float32], prompt: Sequence[int], output: Sequence[int], params: SamplingParams
) -> None:
    """Repetition scales what stands in prompt or output; frequency and presence look at the output alone."""
    seen = np.unique(np.asarray([*prompt, *output], np.int64))
    scale = np.float32(params.repetition_penalty)
    row[seen] = np.where(row[seen] > 0, row[seen] / scale, row[seen] * scale)
    drawn, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
    row[drawn] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
    row[drawn] -= np.float32(params.presence_penalty)


def _forbid_words(
    row: NDArray[np.float32], output: Sequence[int], words: Sequence[Sequence[int]]
) -> None:
    """The last token of a bad word may not follow the ones before it."""
    for word in words:
        before = list(word[:-1])
        if list(output[len(output) - len(before) :]) == before:
            row[word[-1]] = -np.inf
