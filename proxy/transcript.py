"""Folds a provider's answer, a JSON body or stream chunks, into one Completion. Pure.

The provider is an attacker: every value is a claim, of which only the known fields of the right types are
kept, and only within bounds. What does not fit ends the folding with `malformed`; it never raises, and it
never touches the bytes that the client receives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.sse import SSEFramer
from proxy.token_ids import MAX_TOKEN_ID, told_beside, told_ids, told_prompt_beside, told_prompt_ids

MAX_RECORDED_BYTES = 64 * 2**20
_MAX_ERROR_TEXT = 2000
_CLAIMS = ("id", "model", "system_fingerprint", "provider")
"""What an answer says of itself, once; a router names the `provider` that it chose."""


class _MalformedError(Exception):
    """Raised and caught inside this module."""


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    token_ids: list[int] | None = None
    ids_from: str | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Transcript:
    """The copy of one answer, of a chat or (`text`) of a text completion. Feed it the provider's bytes as they
    come, `end` it if they all came, then `finish`.

    `malformed` says that the answer broke the protocol, `truncated` that it outgrew the limits, `ended`
    that every choice seen has its finish reason, and `empty` that no choice has anything in it.
    """

    def __init__(
        self, *, event_stream: bool, choices: int, text: bool = False, max_bytes: int = MAX_RECORDED_BYTES
    ) -> None:
        self._framer = SSEFramer() if event_stream else None
        self._of_text = text
        self._body: list[bytes] = []
        self._room = max_bytes
        self._limit = choices
        self._choices: dict[int, _Choice] = {}
        self._head: dict[str, Any] = dict.fromkeys(
            ("id", "model", "system_fingerprint", "prompt_token_ids", "usage", "error")
        )
        self._done = False
        self.malformed = False
        self.truncated = False

    @property
    def done(self) -> bool:
        """Whether the stream has said that it is over."""
        return self._done

    @property
    def keeping(self) -> bool:
        return not (self._done or self.malformed or self.truncated)

    @property
    def ended(self) -> bool:
        choices = self._choices.values()
        return bool(choices) and all(choice.finish_reason is not None for choice in choices)

    @property
    def empty(self) -> bool:
        return not any(
            choice.text or choice.reasoning or choice.refusal or choice.tool_calls or choice.token_ids
            or choice.finish_reason is not None
            for choice in self._choices.values()
        )

    @property
    def error(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._head["error"]
        return found

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the answer."""
        if self._done or self.malformed or self.truncated:
            return
        self._room -= len(chunk)
        if self._room < 0:
            self.truncated = True
        elif self._framer is None:
            self._body.append(chunk)
        else:
            for data in self._framer.feed(chunk):
                self._event(data)
            self.truncated = self._framer.overflowed

    def end(self) -> None:
        """All bytes have come."""
        if self._framer is None and not self.truncated:
            self._fold(b"".join(self._body))

    def finish(self) -> dict[str, Any]:
        """The Completion: what has come so far, whole or not."""
        self._body.clear()
        prompt = self._head["prompt_token_ids"]
        choices = [_folded(index, self._choices[index], prompt) for index in sorted(self._choices)]
        return {**self._head, "choices": choices}

    def _event(self, data: bytes) -> None:
        if self._done or self.malformed:
            return
        if data.strip() == b"[DONE]":
            # what follows is no part of the answer
            self._done = True
        else:
            self._fold(data)

    def _fold(self, data: bytes) -> None:
        try:
            self._add(orjson.loads(data))
        except (orjson.JSONDecodeError, _MalformedError):
            self.malformed = True

    def _add(self, chunk: Any) -> None:
        if not isinstance(chunk, dict):
            raise _MalformedError
        for name in _CLAIMS:
            if self._head.get(name) is None and isinstance(chunk.get(name), str):
                self._head[name] = chunk[name]
        if self._head["prompt_token_ids"] is None and chunk.get("prompt_token_ids") is not None:
            self._head["prompt_token_ids"] = _token_ids(chunk["prompt_token_ids"])
        if isinstance(chunk.get("usage"), dict):
            self._head["usage"] = _counts(chunk["usage"])
        if chunk.get("error") is not None:
            self._head["error"] = error_object(chunk["error"])
        for position, choice in enumerate(_listed(chunk.get("choices"))):
            self._add_choice(position, choice)
        self._add_beside(chunk)

    def _add_beside(self, chunk: dict[str, Any]) -> None:
        for index, ids in told_beside(chunk).items():
            if index in self._choices:
                self._choices[index].token_ids, self._choices[index].ids_from = ids, "sglext"
        self._head["prompt_token_ids"] = self._head["prompt_token_ids"] or told_prompt_beside(chunk)

    def _add_choice(self, position: int, value: Any) -> None:
        if not isinstance(value, dict):
            raise _MalformedError
        index = value.get("index", position)
        if type(index) is not int or not 0 <= index < self._limit:
            raise _MalformedError
        choice = self._choices.setdefault(index, _Choice())
        if self._of_text:
            self._add_text(choice, value)
        else:
            self._add_chat(choice, value)
        self._add_ids(choice, value)
        logprobs = value.get("logprobs")
        if isinstance(logprobs, dict):
            _add_logprobs(choice, _as_of_chat(logprobs) if "tokens" in logprobs else logprobs)
        choice.finish_reason = _text(value.get("finish_reason")) or choice.finish_reason
        if type(value.get("stop_reason")) in (str, int):
            choice.stop_reason = value["stop_reason"]

    def _add_ids(self, choice: _Choice, value: dict[str, Any]) -> None:
        if value.get("token_ids") is not None:
            choice.token_ids = _extended(choice.token_ids or [], _token_ids(value["token_ids"]))
        elif (told := told_ids(value)) is not None:
            known = [] if told.whole else choice.token_ids or []
            choice.token_ids, choice.ids_from = _extended(known, told.token_ids), told.source
        choice.prompt_token_ids = choice.prompt_token_ids or told_prompt_ids(value)
        if self._head["prompt_token_ids"] is None:
            self._head["prompt_token_ids"] = choice.prompt_token_ids

    def _add_chat(self, choice: _Choice, value: dict[str, Any]) -> None:
        delta = value.get("message" if self._framer is None else "delta")
        if isinstance(delta, dict):
            _add_delta(choice, delta)
        elif delta is not None:
            raise _MalformedError

    def _add_text(self, choice: _Choice, value: dict[str, Any]) -> None:
        text = _text(value.get("text"))
        if text:
            choice.text.append(text)


def error_object(value: Any) -> dict[str, Any]:
    """A provider's error in OpenAI's four fields, each short."""
    fields = value if isinstance(value, dict) else {"message": value}
    return {name: _scalar_text(fields.get(name)) for name in ("message", "type", "param", "code")}


def _scalar_text(value: Any) -> str | None:
    return str(value)[:_MAX_ERROR_TEXT] if isinstance(value, (str, int, float)) else None


def _add_delta(choice: _Choice, delta: dict[str, Any]) -> None:
    # vLLM and OpenRouter say `reasoning`, DeepSeek and older vLLM `reasoning_content`; some send both with
    # equal text
    reasoning = delta.get("reasoning")
    for parts, value in (
        (choice.text, delta.get("content")),
        (choice.reasoning, delta.get("reasoning_content") if reasoning is None else reasoning),
        (choice.refusal, delta.get("refusal")),
    ):
        text = _text(value)
        if text:
            parts.append(text)
    for position, call in enumerate(_listed(delta.get("tool_calls"))):
        _add_tool_call(choice, position, call)


def _add_tool_call(choice: _Choice, position: int, value: Any) -> None:
    if not isinstance(value, dict):
        raise _MalformedError
    index = value.get("index")
    index = position if index is None else index
    function = value.get("function") or {}
    if type(index) is not int or not isinstance(function, dict):
        raise _MalformedError
    call = choice.tool_calls.setdefault(index, {"id": None, "type": None, "name": None, "arguments": []})
    for name, source in (("id", value), ("type", value), ("name", function)):
        call[name] = call[name] or _text(source.get(name))
    call["arguments"].append(_text(function.get("arguments")) or "")


def _add_logprobs(choice: _Choice, value: dict[str, Any]) -> None:
    entries = [_logprob(entry) for entry in _listed(value.get("content"))]
    if entries or value.get("content") is not None:
        choice.logprobs = _extended(choice.logprobs or [], entries)


def _as_of_chat(value: dict[str, Any]) -> dict[str, Any]:
    """The logprobs of a text completion, parallel lists, as entries of a chat's."""
    tokens, numbers, tops = (_listed(value.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if len(numbers) != len(tokens) or (tops and len(tops) != len(tokens)):
        raise _MalformedError
    entries = []
    for place, token in enumerate(tokens):
        top = (tops[place] if tops else None) or {}
        if not isinstance(top, dict):
            raise _MalformedError
        others = [{"token": other, "logprob": number} for other, number in top.items()]
        entries.append({"token": token, "logprob": numbers[place], "top_logprobs": others})
    return {"content": entries}


def _logprob(value: Any) -> dict[str, Any]:
    entry = _token_logprob(value)
    entry["top_logprobs"] = [_token_logprob(top) for top in _listed(value.get("top_logprobs"))]
    return entry


def _token_logprob(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("token"), str):
        raise _MalformedError
    logprob, octets = value.get("logprob"), value.get("bytes")
    if logprob is not None and type(logprob) not in (int, float):
        raise _MalformedError
    if octets is not None and not (
        isinstance(octets, list) and all(type(octet) is int and 0 <= octet < 256 for octet in octets)
    ):
        raise _MalformedError
    entry = {"token": value["token"], "logprob": logprob, "bytes": octets}
    # llama.cpp's server names the token here and nowhere else
    return entry if value.get("id") is None else {**entry, "id": _token_ids([value["id"]])[0]}


def _token_ids(value: Any) -> list[int]:
    ids = _listed(value)
    if not all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in ids):
        raise _MalformedError
    return ids


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in usage.items() if type(value) is int}
    nested = {
        name: {key: count for key, count in value.items() if type(count) is int}
        for name, value in usage.items() if isinstance(value, dict)
    }
    return {**flat, **nested}


def _folded(index: int, choice: _Choice, prompt: list[int] | None) -> dict[str, Any]:
    calls = [
        {
            "id": call["id"], "type": call["type"] or "function",
            "function": {"name": call["name"], "arguments": "".join(call["arguments"])},
        }
        for _, call in sorted(choice.tool_calls.items())
    ]
    return {
        "index": index,
        "text": "".join(choice.text),
        "reasoning": "".join(choice.reasoning) or None,
        "tool_calls": calls or None,
        "refusal": "".join(choice.refusal) or None,
        "token_ids": choice.token_ids,
        "logprobs": choice.logprobs,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        **({"ids_from": choice.ids_from} if choice.ids_from else {}),
        # of a request with several prompts
        **({"prompt_token_ids": choice.prompt_token_ids} if choice.prompt_token_ids not in (None, prompt) else {}),
    }


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _MalformedError
    return value


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _MalformedError
    return value


def _extended(items: list[Any], more: list[Any]) -> list[Any]:
    items.extend(more)
    return items
