"""Prompts of `/v1/completions`: texts or token ids, one or many, as vLLM 0.26 reads them (entrypoints/openai)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verifier.errors import Unsupported
from verifier.prompts import Prompt, compared
from verifier.tokenization import ChatTokenizer

_NOT_REPLAYABLE = {"suffix": "fill_in_the_middle", "prompt_embeds": "prompt_not_text", "use_beam_search": "beam_search"}


def completion_prompts(
    request: Mapping[str, Any], tokenizer: ChatTokenizer, *, told: Sequence[Sequence[int] | None] = (),
    prompt_tokens: int | None = None,
) -> list[Prompt]:  # fmt: skip
    """The prompts of one request, in its order.

    Args:
        request: `prompt` is a text, a list of ids, or a list of either; `add_special_tokens` as vLLM's (default true).
        told: the server's own ids of each prompt, where it sent them.
        prompt_tokens: the server's count of all of them together.

    Raises:
        Unsupported: `prompt_not_text`, `text_not_unicode`, `fill_in_the_middle`, `beam_search`.
    """
    for name, reason in _NOT_REPLAYABLE.items():
        if request.get(name):
            raise Unsupported(reason, f"the request has {name}")
    asked = _prompts(request.get("prompt"))
    count = prompt_tokens if len(asked) == 1 else None  # of several, nobody knows which one has more
    return [
        compared(*_ids_and_text(prompt, request, tokenizer), told[n] if n < len(told) else None, count, tokenizer)
        for n, prompt in enumerate(asked)
    ]


def without_echo(choice: Mapping[str, Any], prompt: Prompt) -> dict[str, Any]:
    """The choice of a request with `echo`, less its prompt; ids are the answer's alone as they are.

    Raises Unsupported("echo_differs") where the text does not begin with the prompt.
    """
    text = choice.get("text") or ""
    if not text.startswith(prompt.text):
        raise Unsupported("echo_differs", "the answer does not begin with the prompt that it was to echo")
    entries = choice.get("logprobs")
    return {
        **choice,
        "text": text[len(prompt.text) :],
        "logprobs": entries[len(prompt.token_ids) :] if entries else entries,
    }


def _prompts(value: Any) -> list[str | list[int]]:
    """One prompt or many, each a text or a list of ids."""
    if isinstance(value, str) or _is_ids(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(one, str) or _is_ids(one) for one in value):
        return value
    raise Unsupported("prompt_not_text", "the prompt is neither text nor token ids")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def _ids_and_text(
    prompt: str | list[int], request: Mapping[str, Any], tokenizer: ChatTokenizer
) -> tuple[list[int], str]:
    if isinstance(prompt, list):
        return prompt, tokenizer.decode(prompt) if max(prompt) < len(tokenizer) else ""
    return tokenizer.encode(prompt, special=request.get("add_special_tokens", True) is not False), prompt
