"""Which requests no audit could judge, and why. Pure.

What changes prompt, sampler or weights in a way that no contract replays must not be audited: the answer would differ
from the reference's, and an honest provider would be accused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from proxy.protocol import TEXT, GenerationRequest, several_prompts

_NOT_REPLAYABLE: Mapping[str, str] = {
    # OpenAI
    "functions": "legacy_functions",
    "audio": "audio_output",
    "prediction": "predicted_output",
    "web_search_options": "web_search",
    # vLLM, some of them other engines' too
    **dict.fromkeys(
        ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structural_tag"),
        "structured_output",
    ),
    **dict.fromkeys(
        ("allowed_token_ids", "bad_words", "logits_processors", "vllm_xargs", "watermarking"), "custom_logits"
    ),
    "use_beam_search": "beam_search",
    "prompt_embeds": "multimodal_content",
    "echo": "echoed_prompt",
    "truncate_prompt_tokens": "prompt_transformed",
    # SGLang
    "regex": "structured_output",
    "ebnf": "structured_output",
    "custom_logit_processor": "custom_logits",
    "lora_path": "other_weights",
    "session_params": "prompt_transformed",
    # llama.cpp
    "grammar": "structured_output",
    "json_schema": "structured_output",
    "lora": "other_weights",
    **dict.fromkeys(
        ("samplers", "mirostat", "repeat_penalty", "typical_p", "top_n_sigma", "xtc_probability", "dry_multiplier",
         "dynatemp_range"),
        "custom_logits",
    ),
    # OpenRouter
    "top_a": "custom_logits",
    "models": "other_weights",
    **dict.fromkeys(("transforms", "plugins", "preset"), "prompt_transformed"),
    # Fireworks
    "prompt_truncate_len": "prompt_transformed",
}
"""Request fields that change prompt, sampler or weights in ways that no contract replays yet, and the reason recorded
for them."""

_NOT_REPLAYABLE_OFF: Mapping[str, str] = {
    "include_reasoning": "hidden_reasoning",  # vLLM, OpenRouter
    "do_preprocess": "prompt_transformed",  # LMDeploy
}
"""The same of fields that are on unless they are turned off."""


_NEUTRAL: Mapping[str, float] = {
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0,
}
_MODELLED: Mapping[str, frozenset[str]] = {
    "vllm": frozenset(_NEUTRAL), "greedy": frozenset(_NEUTRAL), "huggingface": frozenset({"repetition_penalty"}),
    "sglang": frozenset({"presence_penalty", "frequency_penalty"}),
}
"""By engine of a sampler contract: whose penalties the verifier replays, as its own table says too."""


def unmodelled(sampler: str, sampling: Mapping[str, Any]) -> str | None:
    """`processor_not_modelled` where the effective sampling has a penalty that the contract lacks, or None."""
    known = _MODELLED.get(re.split("[@/:]", sampler.strip(), maxsplit=1)[0], frozenset())
    on = (name for name, neutral in _NEUTRAL.items() if sampling.get(name) not in (None, neutral))
    return None if all(name in known for name in on) else "processor_not_modelled"


def unsupported(request: GenerationRequest) -> str | None:
    """Why no contract can replay this request, or None. Whatever a reference can still judge is left to the
    verifier."""
    body = request.body
    for name, reason in _NOT_REPLAYABLE.items():
        if body.get(name):
            return reason
    for name, reason in _NOT_REPLAYABLE_OFF.items():
        if body.get(name) is False:
            return reason
    response_format = body.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        return "structured_output"
    return _unsupported_text(body) if request.endpoint == TEXT else _unsupported_chat(body)


def _unsupported_chat(body: Mapping[str, Any]) -> str | None:
    if body.get("tool_choice") not in (None, "none", "auto"):
        return "forced_tool_choice"
    if body.get("tool_choice") != "none" and any(map(_is_strict, _listed(body.get("tools")))):
        return "structured_output"
    if (reason := _unsupported_reasoning(body)) is not None:
        return reason
    if body.get("modalities") not in (None, [], ["text"]):
        return "audio_output"
    if not all(_is_text(message) for message in body["messages"]):
        return "multimodal_content"
    return None


def _unsupported_reasoning(body: Mapping[str, Any]) -> str | None:
    orders = body.get("reasoning")  # OpenRouter's
    asked = orders if isinstance(orders, dict) else {}
    if asked.get("exclude") is True:
        return "hidden_reasoning"
    budgets = (body.get("thinking_token_budget"), asked.get("max_tokens"))
    return None if budgets == (None, None) else "custom_logits"


def _is_strict(tool: Any) -> bool:
    """Whether an engine writes calls of this tool by a grammar even where it may call or not: vLLM and SGLang do."""
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and function.get("strict") is True


def _unsupported_text(body: Mapping[str, Any]) -> str | None:
    if body.get("prompt") in (None, "", []):
        return "no_prompt"
    if several_prompts(body):
        return "several_prompts"
    if (body.get("best_of") or 1) > (body.get("n") or 1):
        return "best_of"
    return "suffix" if body.get("suffix") else None


def _is_text(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return True
    return all(isinstance(part, dict) and part.get("type") in ("text", "refusal") for part in content)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
