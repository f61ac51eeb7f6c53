"""The bytes that a model wrote, put together again from the parts in which a client gets its answer.

Servers take reasoning and tool calls out of the text by markers of the model's family and do not say what stood
between. The markers come from the model's own chat template: it is rendered with stand-ins for reasoning and content,
and what stands around them is what the model was trained to write. Families whose template drops past reasoning are
known by the marker tokens in their vocabulary.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.errors import Unsupported
from verifier.spelling import Spelling, utf8
from verifier.tokenization import ChatTokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
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


@dataclass(frozen=True)
class Markers:
    """What a model writes before and after its reasoning."""

    opening: str
    closing: str

    def variants(self) -> list[Markers]:
        """These markers with the whitespace of the template, with one newline before the content, and with none."""
        bare = Markers(self.opening.strip(), self.closing.strip())
        return [self, Markers(self.opening, self.closing.rstrip() + "\n"), bare]


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


def answer_texts(
    choice: Mapping[str, Any], model: ChatTokenizer, *, prompt: str = "", complete: bool = True,
    stop: Sequence[str] = (),
) -> list[AnswerText]:  # fmt: skip
    """What the model wrote for one folded choice, its end token included; the likeliest first.

    There is more than one where the server may have trimmed the whitespace around the reasoning.

    Args:
        choice: `text`, `reasoning`, `tool_calls`, `finish_reason`, `stop_reason` of a recorded answer.
        model: its tokenizer and template.
        prompt: text of the prompt, whose end may open the reasoning.
        complete: the answer was recorded to its end.
        stop: the request's stop strings.

    Raises:
        Unsupported: `tool_call_text`, `reasoning_text`, `text_not_unicode`.
    """
    text = choice.get("text") or ""
    calls = _tool_call_text(choice["tool_calls"], text, model) if choice.get("tool_calls") else ""
    end = _Ending.of(choice, model, complete=complete, stop=stop)
    if not choice.get("reasoning"):
        return [_Writing(model).seen(text).hidden(calls).ended(end)]
    markers = reasoning_markers(model)
    if markers is None:
        raise Unsupported("reasoning_text", "neither the template nor the vocabulary shows how reasoning is marked")
    opened = bool(markers.opening.strip()) and prompt.rstrip().endswith(markers.opening.strip())
    written = []
    for variant in markers.variants():
        writing = _reasoned(_Writing(model), variant, choice["reasoning"], text, opened=opened)
        answer = writing.hidden(calls).ended(end)
        written += [answer] if answer not in written else []
    return written


def ends_by_token(choice: Mapping[str, Any], *, complete: bool, stop: Sequence[str] = ()) -> bool:
    """Whether the answer certainly ended by an end token of the model's."""
    stopped = complete and choice.get("finish_reason") in ("stop", "tool_calls")
    told = choice.get("stop_reason")
    return stopped and not isinstance(told, str) and (told is not None or not any(stop))


@dataclass(frozen=True)
class _Ending:
    """How an answer ended: by a token, by a stop string that clients do not see, or neither; `sure` if certain."""

    token: int | None = None
    hidden: str = ""
    sure: bool = True

    @classmethod
    def of(cls, choice: Mapping[str, Any], model: ChatTokenizer, *, complete: bool, stop: Sequence[str]) -> _Ending:
        told = choice.get("stop_reason")
        if not complete or choice.get("finish_reason") not in ("stop", "tool_calls"):
            return cls()
        if isinstance(told, str):
            return cls(hidden="" if (choice.get("text") or "").endswith(told) else told)
        if type(told) is int and 0 <= told < len(model.spelling.token_bytes):
            return cls(token=told)
        return cls(token=next(iter(model.end_token_ids), None), sure=not any(stop))


class _Writing:
    """Collects what was seen and what was inferred; marker tokens inside the inferred parts become marks."""

    def __init__(self, model: ChatTokenizer) -> None:
        self._model, self._data = model, bytearray()
        self._marks: list[tuple[int, int]] = []
        self._inferred: list[tuple[int, int]] = []

    def seen(self, text: str) -> _Writing:
        start = len(self._data)
        self._data += utf8(text)
        # what stands for bytes that were no text: which bytes, nobody says
        for lost in re.finditer(f"{REPLACEMENT}+", text) if REPLACEMENT in text else ():
            place = start + len(text[: lost.start()].encode())
            self._inferred.append((place, place + len(lost[0].encode())))
        return self

    def hidden(self, text: str) -> _Writing:
        start = len(self._data)
        for piece in _split_at(text, self._model.marker_ids):
            if piece in self._model.marker_ids:
                self._mark(self._model.marker_ids[piece])
            else:
                self._data += utf8(piece)
        if len(self._data) > start:
            self._inferred.append((start, len(self._data)))
        return self

    def ended(self, end: _Ending) -> AnswerText:
        self.hidden(end.hidden)
        start = len(self._data)
        if end.token is not None:
            self._mark(end.token)
            self._inferred += [] if end.sure else [(start, len(self._data))]
        return AnswerText(bytes(self._data), tuple(self._marks), tuple(self._inferred))

    def _mark(self, token: int) -> None:
        self._marks.append((len(self._data), token))
        self._data += self._model.spelling.token_bytes[token]


def _reasoned(writing: _Writing, markers: Markers, reasoning: str, text: str, *, opened: bool) -> _Writing:
    if not opened:
        writing.hidden(_yielding(markers.opening, after=reasoning))
    writing.seen(reasoning)
    if text:
        writing.hidden(_yielding(markers.closing, before=reasoning, after=text)).seen(text)
    return writing


def _yielding(marker: str, *, before: str = "", after: str = "") -> str:
    """The marker less its own whitespace where the neighbouring text has kept some."""
    if before[-1:].isspace():
        marker = marker.lstrip()
    return marker.rstrip() if after[:1].isspace() else marker


def reasoning_markers(model: ChatTokenizer) -> Markers | None:
    """What the model writes around its reasoning, or None where that cannot be told."""
    shown = _shown_markers(model)
    if shown is not None:
        return shown
    for opening, closing in _FAMILIES:
        tokens = [piece for piece in _split_at(opening + closing, model.marker_ids) if piece in model.marker_ids]
        if len(tokens) >= 2:
            return Markers(opening, closing)
    return None


def _shown_markers(model: ChatTokenizer) -> Markers | None:
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


def _opened_by_prompt(head: str, closing: str, model: ChatTokenizer) -> Markers | None:
    pieces = _split_at(head, model.marker_ids)
    last = next((n for n in range(len(pieces) - 1, -1, -1) if pieces[n].strip()), None)
    return None if last is None else Markers("".join(pieces[last:]), closing)


def _tool_call_text(calls: Sequence[Mapping[str, Any]], text: str, model: ChatTokenizer) -> str:
    """Tool calls in the template's syntax: recoverable where it writes their arguments as they were sent."""
    told = [_parsed(call) for call in calls]
    asked: list[dict[str, Any]] = [{"role": "user", "content": _ASKED}]
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
