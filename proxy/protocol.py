"""The few OpenAI fields that the proxy reads, parsed and typed; unknown fields pass through. Pure.

A body is parsed and written anew, never patched: of duplicate keys only the last one remains, so the provider
cannot read another `seed` than we wrote. NaN, numbers beyond a double and lone surrogates are refused with
the parser's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.errors import RequestError

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"

MAX_CHOICES = 128
"""Of OpenAI's API; without a bound one request could claim any amount of memory in the record."""
MAX_PROMPTS = 2048
"""Of one text completion; so many answers can be told apart by their index."""

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = ("seed", "top_k", "n", "best_of", "max_tokens", "max_completion_tokens", "min_tokens")
_BOOLEANS = ("stream", "return_token_ids", "echo")


@dataclass(frozen=True)
class GenerationRequest:
    """A request for a chat or a text completion: the JSON object as the client sent it, and the fields that routing
    needs. `choices` is one more than the highest index that its answer's choices may have."""

    endpoint: str
    body: dict[str, Any]
    model: str
    stream: bool
    choices: int


def parse_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RequestError: 400, not valid JSON or not an object.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise RequestError("the request body must be a JSON object", code="invalid_json")
    return value


def parse(endpoint: str, body: bytes) -> GenerationRequest:
    """Read a request for `CHAT` or `TEXT`.

    Raises:
        RequestError: 400, invalid JSON, or a field that the proxy reads has a wrong type.
    """
    value = parse_object(body)
    model = value.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("'model' must be a non-empty string", code="invalid_type", param="model")
    prompts = _messages(value) if endpoint == CHAT else _prompts(value)
    _check_types(value)
    n = value.get("n")
    if n is not None and not 1 <= n <= MAX_CHOICES:
        raise RequestError(f"'n' must be from 1 to {MAX_CHOICES}", code="invalid_value", param="n")
    return GenerationRequest(endpoint, value, model, value.get("stream") is True, (n or 1) * prompts)


def serialise(request: GenerationRequest, changes: Mapping[str, Any]) -> bytes:
    """The body for the provider: the client's with `changes` in place of its own fields.

    Raises:
        RequestError: 400, nested too deeply to be written again.
    """
    try:
        return orjson.dumps({**request.body, **changes})
    except TypeError as error:
        raise RequestError("the request body is nested too deeply", code="invalid_json") from error


def several_prompts(body: Mapping[str, Any]) -> bool:
    """Whether a text completion asks for the continuations of more than one prompt."""
    prompt = body.get("prompt")
    return isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)


def _messages(value: Mapping[str, Any]) -> int:
    if not isinstance(value.get("messages"), list):
        raise RequestError("'messages' must be an array", code="invalid_type", param="messages")
    return 1


def _prompts(value: Mapping[str, Any]) -> int:
    """How many prompts there are: a text, a list of token ids, or a list of either."""
    prompt = value.get("prompt", "")
    if not isinstance(prompt, (str, list)):
        message = "'prompt' must be a string, an array of token ids, or an array of either"
        raise RequestError(message, code="invalid_type", param="prompt")
    if not several_prompts(value):
        return 1
    if len(prompt) > MAX_PROMPTS:
        message = f"'prompt' must not hold more than {MAX_PROMPTS} prompts"
        raise RequestError(message, code="invalid_value", param="prompt")
    return len(prompt)


def _check_types(value: Mapping[str, Any]) -> None:
    for names, types, word in (
        (_NUMBERS, (int, float), "a number"),
        (_INTEGERS, (int,), "an integer"),
        (_BOOLEANS, (bool,), "a boolean"),
    ):
        for name in names:
            field = value.get(name)
            if field is None:
                continue
            if not isinstance(field, types) or (isinstance(field, bool) and bool not in types):
                raise RequestError(f"{name!r} must be {word}", code="invalid_type", param=name)
