"""The bytes that a model wrote, put together again from the parts in which a client gets its answer.

Servers take reasoning and tool calls out of the text by markers of the model's family and do not say what stood
between. The markers come from the model's own chat template: it is rendered with stand-ins for reasoning and content,
and what stands around them is what the model was trained to write. Families whose template drops past reasoning are
known by the marker tokens in their vocabulary.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from verifier.errors import Unsupported
from verifier.spelling import Spelling, utf8

_ASKED, _THOUGHT, _SAID = "seedproof-asked", "seedproof-thought", "seedproof-said"

_FAMILIES = (
    ("<think>\n", "\n</think>\n\n"),  # DeepSeek R1, Qwen 3, GLM, SmolLM3
    ("[THINK]", "[/THINK]"),  # Mistral's Magistral
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),  # Cohere
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),  # gpt-oss
    ("<|channel>thought\n", "<channel|>"),  # Gemma 4
)
"""What stands before and after the reasoning, for templates that do not show it; the first one whose marker
tokens are in the vocabulary is taken."""


class ChatModel(Protocol):
    """What is asked of a tokenizer with a chat template."""

    @property
    def spelling(self) -> Spelling:
        """How its ids spell bytes."""
        ...

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, the likeliest first."""
        ...

    @property
    def marker_ids(self) -> Mapping[str, int]:
        """Ids of the added tokens by their content."""
        ...

    def render(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> str:
        """The chat template's text. Raises Unsupported("prompt_not_renderable")."""
        ...


@dataclass(frozen=True)
class Markers:
    """What a model writes before and after its reasoning."""

    opening: str
    closing: str


@dataclass(frozen=True)
class AnswerText:
    """An answer as bytes; `marks` are the places [(offset, id)] at which one certain id spells what stands there.

    `inferred` are the stretches [(start, end)] that no client saw and that follow from the model's template.
    """

    data: bytes
    marks: tuple[tuple[int, int], ...] = ()
    inferred: tuple[tuple[int, int], ...] = ()

    def token_ids(self, spelling: Spelling, start: int = 0) -> list[int]:
        """The tokenizer's own ids of everything from byte `start` on. Raises Unsupported("text_not_spellable")."""
        ids: list[int] = []
        for place, token in self.marks[bisect_left(self.marks, (start, -1)) :]:
            ids += spelling.encode_bytes(self.data[start:place])
            ids.append(token)
            start = place + len(spelling.token_bytes[token])
        return ids + spelling.encode_bytes(self.data[start:])

    def allows(self, spelled: bytes, start: int) -> bool:
        """Whether a token of these bytes may stand at byte `start`: it spells the text and swallows no mark."""
        if not spelled or not self.data.startswith(spelled, start):
            return False
        after = bisect_left(self.marks, (start, -1))
        return after == len(self.marks) or start + len(spelled) <= self.marks[after][0]

    def inferred_tokens(self, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which tokens, given the bytes at which each ends, spell anything that was inferred."""
        starts = np.concatenate([[0], ends[:-1]])
        touched = np.zeros(len(ends), np.bool_)
        for start, end in self.inferred:
            touched |= (starts < end) & (ends > start)
        return touched


def answer_text(choice: Mapping[str, Any], model: ChatModel, *, opened: bool = False, complete: bool = True) -> AnswerText:
    """What the model wrote for one folded choice, its end token included.

    Args:
        choice: `text`, `reasoning`, `tool_calls`, `finish_reason`, `stop_reason` of a recorded answer.
        model: its tokenizer and template.
        opened: the prompt already ends in the marker that opens the reasoning.
        complete: the answer was recorded to its end.

    Raises:
        Unsupported: `tool_call_text`, `reasoning_text`, `text_not_unicode`.
    """
    writing = _Writing(model)
    reasoning, text = choice.get("reasoning"), choice.get("text") or ""
    if reasoning:
        _write_reasoning(writing, reasoning, text, opened=opened)
    writing.seen(text)
    if choice.get("tool_calls"):
        writing.hidden(_tool_call_text(choice["tool_calls"], text, model))
    end = _end_token(choice, model, complete=complete)
    if end is not None:
        writing.mark(end)
    return writing.answer()


class _Writing:
    """Collects what was seen and what was inferred; marker tokens inside the inferred parts become marks."""

    def __init__(self, model: ChatModel) -> None:
        self._model, self._data = model, bytearray()
        self._marks: list[tuple[int, int]] = []
        self._inferred: list[tuple[int, int]] = []

    def seen(self, text: str) -> None:
        self._data += utf8(text)

    def hidden(self, text: str) -> None:
        start = len(self._data)
        for piece in _split_at(text, self._model.marker_ids):
            if piece in self._model.marker_ids:
                self.mark(self._model.marker_ids[piece])
            else:
                self.seen(piece)
        if len(self._data) > start:
            self._inferred.append((start, len(self._data)))

    def mark(self, token: int) -> None:
        self._marks.append((len(self._data), token))
        self._data += self._model.spelling.token_bytes[token]

    def answer(self) -> AnswerText:
        return AnswerText(bytes(self._data), tuple(self._marks), tuple(self._inferred))


def _write_reasoning(writing: _Writing, reasoning: str, text: str, *, opened: bool) -> None:
    markers = reasoning_markers(writing._model)
    if markers is None:
        raise Unsupported("reasoning_text", "neither the template nor the vocabulary shows how reasoning is marked")
    if not opened:
        writing.hidden(_yielding(markers.opening, after=reasoning))
    writing.seen(reasoning)
    if text:
        writing.hidden(_yielding(_yielding(markers.closing, after=text), before=reasoning))


def _yielding(marker: str, *, before: str = "", after: str = "") -> str:
    """The marker less its own whitespace where the neighbouring text has kept some."""
    if before[-1:].isspace():
        marker = marker.lstrip()
    return marker.rstrip() if after[:1].isspace() else marker


def reasoning_markers(model: ChatModel) -> Markers | None:
    """What the model writes around its reasoning, or None where that cannot be told."""
    shown = _shown_markers(model)
    if shown is not None:
        return shown
    for opening, closing in _FAMILIES:
        tokens = [piece for piece in _split_at(opening + closing, model.marker_ids) if piece in model.marker_ids]
        if len(tokens) >= 2:
            return Markers(opening, closing)
    return None


def _shown_markers(model: ChatModel) -> Markers | None:
    asked = [{"role": "user", "content": _ASKED}]
    answered = [*asked, {"role": "assistant", "content": _SAID, "reasoning_content": _THOUGHT}]
    try:
        before = model.render(asked)
        whole = model.render(answered, add_generation_prompt=False)
    except Unsupported:
        return None
    head, thought, rest = whole.partition(_THOUGHT)
    closing, said, _ = rest.partition(_SAID)
    if not thought or not said or not closing.strip():
        return None
    shared = _common_prefix(before, head)
    written, prompted = head[shared:], before[shared:]
    if not written and not prompted:  # the prompt itself opens the reasoning; find the marker that closing answers
        return _opened_by_prompt(head, closing, model)
    return Markers(written, closing) if written.strip() else None


def _opened_by_prompt(head: str, closing: str, model: ChatModel) -> Markers | None:
    pieces = _split_at(head, model.marker_ids)
    last = next((n for n in range(len(pieces) - 1, -1, -1) if pieces[n].strip()), None)
    return None if last is None else Markers("".join(pieces[last:]), closing)


def opens_reasoning(prompt: str, model: ChatModel) -> bool:
    """Whether this prompt's text ends in the marker that opens the reasoning."""
    markers = reasoning_markers(model)
    return markers is not None and prompt.rstrip().endswith(markers.opening.strip())


def _tool_call_text(calls: Sequence[Mapping[str, Any]], text: str, model: ChatModel) -> str:
    """Tool calls in the template's syntax: recoverable where the arguments are plain JSON that it writes the same way."""
    told = [_parsed(call) for call in calls]
    asked = [{"role": "user", "content": _ASKED}]
    answered = [*asked, {"role": "assistant", "content": text, "tool_calls": told}]
    try:
        before = model.render(asked)
        whole = model.render(answered, add_generation_prompt=False)
    except Unsupported as error:
        raise Unsupported("tool_call_text", "the chat template cannot write these tool calls") from error
    written = whole[_common_prefix(before, whole) :]
    if before != whole[: len(before)] or (text and text not in written):
        raise Unsupported("tool_call_text", "the chat template does not write tool calls as a continuation")
    syntax = written.partition(text)[2] if text else written
    for end in model.end_token_ids:
        marker = model.spelling.token_bytes[end].decode(errors="replace")
        syntax = syntax.rpartition(marker)[0] if marker and marker in syntax else syntax
    if any(str(call["function"].get("name")) not in syntax for call in calls):
        raise Unsupported("tool_call_text", "the chat template leaves the tool calls out")
    if any(call["function"]["arguments"] not in syntax for call in calls):
        raise Unsupported("tool_call_text", "the template writes the arguments otherwise than they were sent")
    return syntax


def _parsed(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as templates take it, with its arguments as an object."""
    function = call.get("function") or {}
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError as error:
        raise Unsupported("tool_call_text", "the arguments of a tool call are not JSON") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _end_token(choice: Mapping[str, Any], model: ChatModel, *, complete: bool) -> int | None:
    """The end token that the model sampled, where it ended by itself."""
    stopped_by = choice.get("stop_reason")
    if not complete or choice.get("finish_reason") not in ("stop", "tool_calls") or isinstance(stopped_by, str):
        return None
    if type(stopped_by) is int:
        return stopped_by if 0 <= stopped_by < len(model.spelling.token_bytes) else None
    return next(iter(model.end_token_ids), None)


def _split_at(text: str, markers: Mapping[str, int]) -> list[str]:
    """The text cut before and after every marker, longest marker first at each place."""
    found = sorted((marker for marker in markers if marker and marker in text), key=len, reverse=True)
    pieces, plain, place = [], 0, 0
    while place < len(text):
        marker = next((marker for marker in found if text.startswith(marker, place)), None)
        if marker is None:
            place += 1
            continue
        pieces += [text[plain:place], marker]
        place = plain = place + len(marker)
    return [piece for piece in [*pieces, text[plain:]] if piece]


def _common_prefix(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
