"""From a chat request to the prompt's ids, as a faithful server makes them, and what a server's own ids say instead.

Messages are prepared as vLLM prepares them before it renders the model's chat template. The template writes BOS
itself where the model wants one, so nothing is added to its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from verifier.errors import Unsupported
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
    """

    kind: str
    place: int | None
    tokens: int
    added: str = ""
    missing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For an audit's notes."""
        return {name: value for name, value in vars(self).items() if value not in (None, "")}


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
    return tokenizer.encode(prompt_text(request, tokenizer, at=at))


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
    head = _common_prefix(ours, told)
    tail = _common_prefix(ours[head:][::-1], told[head:][::-1])
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
) -> tuple[list[int], PromptDifference | None]:  # fmt: skip
    """Our prompt's ids and how the server's differ.

    Where the template prints the date, a server whose clock or zone has another day than `at` is no difference.
    Raises Unsupported as `prompt_token_ids` does.
    """
    ids = prompt_token_ids(request, tokenizer, at=at)
    difference = compare(ids, told, prompt_tokens, tokenizer)
    if difference is None or told is None or not tokenizer.prints_date:
        return ids, difference
    for days in (-1, 1):
        other = prompt_token_ids(request, tokenizer, at=at + timedelta(days=days))
        if other == list(told):
            return other, None
    return ids, difference


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


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
