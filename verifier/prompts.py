"""From a chat request to the prompt's ids, as a faithful server makes them, and what a server's own ids say instead.

Messages are prepared as vLLM prepares them before it renders the model's chat template. The template writes BOS
itself where the model wants one, so nothing is added to its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from verifier.errors import Unsupported
from verifier.prefixes import common_prefix, common_suffix
from verifier.tokenization import ChatTokenizer

_LOOP_OVER_PARTS = re.compile(r"\{%-?\s*for\s+\w+\s+in\s+(?:message|m|msg)(?:\.content|\[['\"]content['\"]\])")
_GUESS_TOKENS = 400  # of a hidden span that are shown to people


@dataclass(frozen=True)
class PromptDifference:
    """How the server's prompt differs from the one that the messages give.

    Attributes:
        kind: `bos` (only a BOS more or less), `inserted` (something was added), `removed`, `changed`,
            or `count` (only the number of tokens is known).
        place: index of the first differing id; None where only a count is known.
        tokens: number of ids more (or, negative, less) than ours.
        added, missing: text that only the server's, or only our prompt has.
        guess: what else the server may have rendered: with it our prompt would be the same, or as long.
    """

    kind: str
    place: int | None
    tokens: int
    added: str = ""
    missing: str = ""
    guess: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For an audit's notes."""
        return {name: value for name, value in vars(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class Prompt:
    """What a faithful server feeds its model, and what the server says that it fed.

    Attributes:
        token_ids, text: ours.
        difference: between the two, None where there is none.
        told: the server's own ids where they differ and are known.
    """

    token_ids: list[int]
    text: str
    difference: PromptDifference | None = None
    told: list[int] | None = None


def prompt_text(request: Mapping[str, Any], tokenizer: ChatTokenizer, *, at: datetime | None = None) -> str:
    """The text that a faithful server feeds its model for a chat request made at the time `at`.

    Reads vLLM's fields `messages`, `tools`, `documents`, `add_generation_prompt`, `continue_final_message`,
    `chat_template_kwargs` and `reasoning_effort`.

    Raises:
        Unsupported: `prompt_not_renderable`, `prompt_not_text`, or `prompt_template_in_request`.
    """
    if request.get("chat_template"):
        raise Unsupported("prompt_template_in_request", "the request brings its own chat template")
    continuing = bool(request.get("continue_final_message"))
    generating = request.get("add_generation_prompt")
    kwargs = dict(request.get("chat_template_kwargs") or {})
    if request.get("reasoning_effort") is not None:
        kwargs.setdefault("reasoning_effort", request["reasoning_effort"])
    return tokenizer.render(
        template_messages(request.get("messages") or [], tokenizer),
        tools=_tools(request),
        documents=request.get("documents"),
        add_generation_prompt=not continuing if generating is None else bool(generating),
        continue_final_message=continuing,
        template_kwargs=kwargs,
        at=at,
    )


def prompt_token_ids(request: Mapping[str, Any], tokenizer: ChatTokenizer, *, at: datetime | None = None) -> list[int]:
    """Ids of `prompt_text`. Raises Unsupported as it does, or with `text_not_unicode`."""
    return tokenizer.encode(prompt_text(request, tokenizer, at=at), special=bool(request.get("add_special_tokens")))


def template_messages(messages: Sequence[Mapping[str, Any]], tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """Messages as templates take them: content as text, tool calls' arguments as objects."""
    keeps_parts = _LOOP_OVER_PARTS.search(tokenizer.template) is not None
    return [_prepared(message, keeps_parts=keeps_parts) for message in messages]


def compare(
    ours: Sequence[int], told: Sequence[int] | None, prompt_tokens: int | None, tokenizer: ChatTokenizer
) -> PromptDifference | None:
    """How the server's prompt (its ids, or only `usage.prompt_tokens`) differs from ours; None if it does not."""
    if told is None:
        extra = 0 if prompt_tokens is None else prompt_tokens - len(ours)
        return PromptDifference("count", None, extra) if extra else None
    if list(told) == list(ours):
        return None
    head = common_prefix(list(ours), list(told))
    tail = common_suffix(list(ours), list(told), min(len(ours), len(told)) - head)
    added, missing = told[head : len(told) - tail], ours[head : len(ours) - tail]
    return PromptDifference(
        _kind(list(added), list(missing), head, tokenizer.bos_token_id),
        head,
        len(told) - len(ours),
        _shown(added, tokenizer),
        _shown(missing, tokenizer),
    )


def faithful_prompt(
    request: Mapping[str, Any], tokenizer: ChatTokenizer, *, at: datetime,
    told: Sequence[int] | None = None, prompt_tokens: int | None = None,
) -> Prompt:  # fmt: skip
    """The prompt of a chat request, and how the server's differs.

    Where the template prints the date, a server whose clock or zone has another day than `at` is no difference.
    Raises Unsupported as `prompt_token_ids` does.
    """
    text = prompt_text(request, tokenizer, at=at)
    special = bool(request.get("add_special_tokens"))
    prompt = compared(tokenizer.encode(text, special=special), text, told, prompt_tokens, tokenizer)
    if prompt.difference is None:
        return prompt
    if told is not None and tokenizer.prints_date:
        for days in (-1, 1):
            other = prompt_text(request, tokenizer, at=at + timedelta(days=days))
            ids = tokenizer.encode(other, special=special)
            if ids == list(told):
                return Prompt(ids, other)
    guess = _guess(request, prompt, prompt_tokens, tokenizer, at)
    return replace(prompt, difference=replace(prompt.difference, guess=guess))


def compared(
    token_ids: list[int], text: str, told: Sequence[int] | None, prompt_tokens: int | None, tokenizer: ChatTokenizer
) -> Prompt:
    """A prompt with what the server's differs by."""
    difference = compare(token_ids, told, prompt_tokens, tokenizer)
    return Prompt(token_ids, text, difference, list(told) if difference and told else None)


def _guess(
    request: Mapping[str, Any], prompt: Prompt, prompt_tokens: int | None, tokenizer: ChatTokenizer, at: datetime
) -> str:
    """Which other rendering of the request has the server's ids (or, where only that is known, its length)."""
    for name, changed in _other_renderings(request):
        try:
            ids = prompt_token_ids(changed, tokenizer, at=at)
        except Unsupported:
            continue
        if ids == prompt.told if prompt.told is not None else len(ids) == prompt_tokens:
            return name
    return ""


def _other_renderings(request: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    kwargs, messages = request.get("chat_template_kwargs") or {}, request.get("messages") or []
    for thinking in (False, True):
        other = {**kwargs, "enable_thinking": thinking, "thinking": thinking}
        yield f"enable_thinking={str(thinking).lower()}", {**request, "chat_template_kwargs": other}
    yield "without chat_template_kwargs", {**request, "chat_template_kwargs": None, "reasoning_effort": None}
    yield "without tools", {**request, "tools": None}
    yield "without system prompt", {**request, "messages": [m for m in messages if m.get("role") != "system"]}
    yield "without generation prompt", {**request, "add_generation_prompt": False}
    yield "last message not continued", {**request, "continue_final_message": False, "add_generation_prompt": True}


def _tools(request: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    tools = request.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise Unsupported("prompt_not_renderable", "tools are not a list of objects")
    return tools or None


def _prepared(message: Any, *, keeps_parts: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise Unsupported("prompt_not_renderable", "a message is not an object")
    prepared = dict(message)
    prepared["content"] = _content(message.get("content"), keeps_parts=keeps_parts)
    if message.get("tool_calls"):
        prepared["tool_calls"] = [_with_object_arguments(call) for call in message["tool_calls"]]
    return prepared


def _content(content: Any, *, keeps_parts: bool) -> Any:
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    if any(not isinstance(part, Mapping) or not isinstance(part.get("text"), str) for part in content):
        raise Unsupported("prompt_not_text", "a message has content that is not text")
    parts = [{"type": "text", "text": part["text"]} for part in content]
    return parts if keeps_parts else "\n".join(part["text"] for part in parts)


def _with_object_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _kind(added: list[int], missing: list[int], place: int, bos: int | None) -> str:
    if bos is not None and place <= 1 and [bos] in (added, missing) and not (added and missing):
        return "bos"
    if added and missing:
        return "changed"
    return "inserted" if added else "removed"


def _shown(token_ids: Sequence[int], tokenizer: ChatTokenizer) -> str:
    try:
        text = tokenizer.decode(list(token_ids[:_GUESS_TOKENS]), special=True)
    except (OverflowError, TypeError, ValueError, IndexError):  # ids that no vocabulary has
        return f"{len(token_ids)} ids that the tokenizer does not know"
    return text + ("…" if len(token_ids) > _GUESS_TOKENS else "")

