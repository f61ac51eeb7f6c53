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

MAX_CHOICES = 128
"""Of OpenAI's API; without a bound one request could claim any amount of memory in the record."""

_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_INTEGERS = ("seed", "top_k", "n", "max_tokens", "max_completion_tokens", "min_tokens")
_BOOLEANS = ("stream", "return_token_ids")


@dataclass(frozen=True)
class ChatRequest:
    """A chat completion request: the JSON object as the client sent it, and the fields that routing needs."""

    body: dict[str, Any]
    model: str
    stream: bool
    n: int


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


def parse_chat(body: bytes) -> ChatRequest:
    """Read a chat completion request.

    Raises:
        RequestError: 400, invalid JSON, or a field that the proxy reads has a wrong type.
    """
    value = parse_object(body)
    model = value.get("model")
    if not isinstance(model, str) or not model:
        raise RequestError("'model' must be a non-empty string", code="invalid_type", param="model")
    if not isinstance(value.get("messages"), list):
        raise RequestError("'messages' must be an array", code="invalid_type", param="messages")
    _check_types(value)
    n = value.get("n")
    if n is not None and not 1 <= n <= MAX_CHOICES:
        raise RequestError(f"'n' must be from 1 to {MAX_CHOICES}", code="invalid_value", param="n")
    return ChatRequest(body=value, model=model, stream=value.get("stream") is True, n=n or 1)


def serialise(request: ChatRequest, changes: Mapping[str, Any]) -> bytes:
    """The body for the provider: the client's with `changes` in place of its own fields.

    Raises:
        RequestError: 400, nested too deeply to be written again.
    """
    try:
        return orjson.dumps({**request.body, **changes})
    except TypeError as error:
        raise RequestError("the request body is nested too deeply", code="invalid_json") from error


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
