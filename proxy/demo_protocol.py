"""What the demo provider says on the wire, as vLLM's OpenAI server does: request fields in, JSON out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.errors import RequestError

MAX_LOGPROBS = 20
INT64 = 1 << 63
RESERVED = {"tokenize", "return_dict", "return_tensors", "add_generation_prompt", "conversation", "tools"}
NOT_OFFERED: Mapping[str, Any] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "min_tokens": 0,
    "logit_bias": {},
}


class Token(Protocol):
    """One sampled token of one choice; see the engine's own class for the fields."""

    @property
    def choice(self) -> int: ...
    @property
    def token_id(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def logprob(self) -> float: ...
    @property
    def top_logprobs(self) -> Sequence[tuple[int, float]]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def stop_reason(self) -> str | int | None: ...


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """The fields of a chat completion request that this provider acts on."""

    model: str
    messages: list[dict[str, Any]]
    template: dict[str, Any]
    sampling: dict[str, Any]
    seed: int | None
    n: int
    max_tokens: int | None
    stop: list[str]
    stop_token_ids: list[int]
    ignore_eos: bool
    stream: bool
    include_usage: bool
    logprobs: bool
    top_logprobs: int
    return_token_ids: bool
    tokens_as_ids: bool


def parse_request(body: Any) -> ChatRequest:
    """Read a request's JSON body; unknown fields are ignored, as vLLM ignores them.

    Raises:
        RequestError: a field is missing, out of range or not offered; the sentence names it.
    """
    if not isinstance(body, dict):
        raise _refused("the body must be a JSON object")
    limits = {"max_tokens": body.get("max_completion_tokens", body.get("max_tokens"))}
    seed = _integer(body, "seed", None, -INT64, INT64 - 1)
    options = body.get("stream_options") or {}
    return ChatRequest(
        model=_text(body, "model"),
        messages=_messages(body.get("messages")),
        template=_template(body),
        sampling=_sampling(body),
        seed=None if seed == -1 else seed,
        n=_integer(body, "n", 1, 1, 128) or 1,
        max_tokens=_integer(limits, "max_tokens", None, 1),
        stop=_stop(body.get("stop")),
        stop_token_ids=_ids(body.get("stop_token_ids")),
        ignore_eos=bool(body.get("ignore_eos")),
        stream=bool(body.get("stream")),
        include_usage=bool(isinstance(options, dict) and options.get("include_usage")),
        logprobs=bool(body.get("logprobs")),
        top_logprobs=(_integer(body, "top_logprobs", 0, 0, MAX_LOGPROBS) or 0) if body.get("logprobs") else 0,
        return_token_ids=bool(body.get("return_token_ids")),
        tokens_as_ids=bool(body.get("return_tokens_as_token_ids")),
    )


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    for name, neutral in NOT_OFFERED.items():
        if body.get(name) not in (None, neutral):
            raise _refused(f"{name} is not offered by this provider: leave it out")
    return {
        "temperature": _number(body, "temperature", 1.0, 0.0),
        "top_p": _number(body, "top_p", 1.0, 1e-9, 1.0),
        "top_k": _integer(body, "top_k", 0, -1),
        "min_p": _number(body, "min_p", 0.0, 0.0, 1.0),
    }


def _number(
    body: Mapping[str, Any], name: str, default: float, low: float = -math.inf, high: float = math.inf
) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _refused(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def _integer(
    body: Mapping[str, Any], name: str, default: int | None, low: int, high: int | None = None
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or value < low or (high is not None and value > high):
        limit = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise _refused(f"{name} must be an integer {limit}, got {value!r}")
    return value


def _text(body: Mapping[str, Any], name: str) -> str:
    if not isinstance(body.get(name), str):
        raise _refused(f"{name} is required and must be a string")
    return str(body[name])


def _messages(value: Any) -> list[dict[str, Any]]:
    listed = value if isinstance(value, list) else []
    if not listed or not all(isinstance(message, dict) and "role" in message for message in listed):
        raise _refused("messages must be a list of at least one object with a role")
    return [{**message, "content": _content(message.get("content"))} for message in listed]


def _content(value: Any) -> str:
    """Text of a message; text parts are joined by newlines, as vLLM does for templates that take strings."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list) or not all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        raise _refused("content must be a string or a list of text parts: this model reads only text")
    return "\n".join(str(part.get("text", "")) for part in value)


def _template(body: Mapping[str, Any]) -> dict[str, Any]:
    extra = body.get("chat_template_kwargs") or {}
    if not isinstance(extra, dict):
        raise _refused("chat_template_kwargs must be an object")
    reserved = RESERVED & extra.keys()
    if reserved:
        raise _refused(f"chat_template_kwargs may not set {', '.join(sorted(reserved))}")
    return {**extra, "tools": body["tools"]} if body.get("tools") else dict(extra)


def _stop(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
        raise _refused("stop must be a string or a list of strings")
    return stops


def _ids(value: Any) -> list[int]:
    ids = value or []
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise _refused("stop_token_ids must be a list of integers")
    return ids


def _refused(message: str) -> RequestError:
    return RequestError(message, code="invalid_request")


def completion(
    request: ChatRequest,
    head: Mapping[str, Any],
    prompt_ids: Sequence[int],
    tokens: Iterable[Token],
    text: Callable[[int], str],
) -> dict[str, Any]:
    """A whole answer; ``head`` holds id, created, model and fingerprint, ``text`` turns one id into text."""
    of_choice: dict[int, list[Token]] = {index: [] for index in range(request.n)}
    for token in tokens:
        of_choice[token.choice].append(token)
    choices: list[dict[str, Any]] = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": "".join(token.text for token in answer),
                "refusal": None,
                "tool_calls": [],
                "reasoning": None,
            },
            "logprobs": logprobs(request, answer, text),
            "finish_reason": answer[-1].finish_reason,
            "stop_reason": answer[-1].stop_reason,
            "token_ids": [token.token_id for token in answer] if request.return_token_ids else None,
        }
        for index, answer in of_choice.items()
    ]
    count = sum(len(answer) for answer in of_choice.values())
    return {
        **head,
        "object": "chat.completion",
        "choices": choices,
        "usage": usage(len(prompt_ids), count),
        "prompt_logprobs": None,
        "prompt_token_ids": list(prompt_ids) if request.return_token_ids else None,
    }


def first_chunk(
    request: ChatRequest, head: Mapping[str, Any], prompt_ids: Sequence[int], choice: int
) -> dict[str, Any]:
    """The event that opens a choice: its role and, if asked for, the prompt's ids."""
    delta = {"role": "assistant", "content": ""}
    opening = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}
    ids = {"prompt_token_ids": list(prompt_ids)} if request.return_token_ids else {}
    return {**head, "object": "chat.completion.chunk", "choices": [opening], **ids}


def chunk(
    request: ChatRequest, head: Mapping[str, Any], token: Token, text: Callable[[int], str]
) -> dict[str, Any]:
    """The event of one token."""
    choice: dict[str, Any] = {
        "index": token.choice,
        "delta": {"content": token.text},
        "logprobs": logprobs(request, [token], text),
        "finish_reason": token.finish_reason,
    }
    if token.finish_reason:
        choice["stop_reason"] = token.stop_reason
    if request.return_token_ids:
        choice["token_ids"] = [token.token_id]
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def usage_chunk(head: Mapping[str, Any], prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The event after the last token of a stream with ``include_usage``."""
    counts = usage(prompt_tokens, completion_tokens)
    return {**head, "object": "chat.completion.chunk", "choices": [], "usage": counts}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts of one request; all choices together."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def logprobs(
    request: ChatRequest, tokens: Sequence[Token], text: Callable[[int], str]
) -> dict[str, Any] | None:
    """OpenAI's logprobs of these tokens; None where the client did not ask."""
    if not request.logprobs:
        return None

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        word = text(token_id)
        name = f"token_id:{token_id}" if request.tokens_as_ids else word
        return {"token": name, "logprob": logprob, "bytes": list(word.encode())}

    content = [
        {**entry(t.token_id, t.logprob), "top_logprobs": [entry(*pair) for pair in t.top_logprobs]}
        for t in tokens
    ]
    return {"content": content}


def error(message: str, *, kind: str, code: int) -> dict[str, Any]:
    """An OpenAI-shaped error."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
