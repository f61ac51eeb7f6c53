"""The bytes that a model wrote, put together again from the parts in which a client gets its answer.

Servers take reasoning and tool calls out of the text by markers of the model's family and do not say what stood
between. The markers come from the model's own chat template: it is rendered with stand-ins for reasoning and content,
and what stands around them is what the model was trained to write. Families whose template drops past reasoning are
known by the marker tokens in their vocabulary.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.errors import Unsupported
from verifier.prefixes import common_prefix
from verifier.spelling import Spelling, utf8
from verifier.tokenization import ChatTokenizer
from verifier.tool_calls import Pieces, written_calls

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LOST = re.compile(b"(?:%s)+" % REPLACEMENT.encode())
_ASKED, _THOUGHT, _SAID = "seedproof-asked", "seedproof-thought", "seedproof-said"

_STOPPED = {"stop", "tool_calls", "function_call", "eos", "eos_token"}  # the last two: Together, TGI

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
        if not self.inferred:
            return np.zeros(len(ends), np.bool_)
        starts = np.concatenate([[0], ends[:-1]])
        stretches = np.array(self.inferred)
        steps = np.zeros(len(ends) + 1, np.int64)
        np.add.at(steps, np.searchsorted(ends, stretches[:, 0], "right"), 1)
        np.add.at(steps, np.searchsorted(starts, stretches[:, 1], "left"), -1)
        touched: NDArray[np.bool_] = np.cumsum(steps[:-1]) > 0
        return touched

    def with_mark(self, start: int, token: int, spelled: bytes) -> AnswerText:
        """The same with one more token at byte `start`, which no client saw."""
        size = len(spelled)
        marks = [(place + size if place >= start else place, known) for place, known in self.marks]
        inferred = ((a + size if a >= start else a, b + size if b > start else b) for a, b in self.inferred)
        data = self.data[:start] + spelled + self.data[start:]
        return AnswerText(data, tuple(sorted([*marks, (start, token)])), tuple(inferred))

    def after_space(self) -> AnswerText:
        """The same behind a space."""
        marks = tuple((place + 1, token) for place, token in self.marks)
        return AnswerText(b" " + self.data, marks, tuple((a + 1, b + 1) for a, b in self.inferred))


def answer_texts(
    choice: Mapping[str, Any], model: ChatTokenizer, *, prompt: str = "", complete: bool = True,
    stop: Sequence[str] = (), special: bool = False,
) -> list[AnswerText]:  # fmt: skip
    """What the model wrote for one folded choice, its end token included; the likeliest first.

    There is more than one where the server may have trimmed the whitespace around the reasoning.

    Args:
        choice: `text`, `reasoning`, `tool_calls`, `finish_reason`, `stop_reason` of a recorded answer.
        model: its tokenizer and template.
        prompt: text of the prompt, whose end may open the reasoning.
        complete: the answer was recorded to its end.
        stop: the request's stop strings.
        special: special tokens were left in the text (vLLM's `skip_special_tokens` false).

    Raises:
        Unsupported: `tool_call_text`, `reasoning_text`, `text_not_unicode`.
    """
    text, reasoning = choice.get("text") or "", choice.get("reasoning") or ""
    calls = written_calls(choice["tool_calls"], text, model) if choice.get("tool_calls") else [[]]
    end = _Ending.of(choice, model, complete=complete, stop=stop)
    written = []
    for markers in _layouts(model, prompt) if reasoning else [_NO_MARKERS]:
        for pieces in calls:
            answer = [*_reasoned(markers, reasoning, text, followed=bool(text or pieces)), (text, True), *pieces]
            written.append(_Writing(model, special=special).all(answer).ended(end))
    if model.spelling.drops_first_space and not written[0].data[:1].isspace():
        written.append(written[0].after_space())
    return list(dict.fromkeys(written))


def _layouts(model: ChatTokenizer, prompt: str) -> list[Markers]:
    """How reasoning may be marked behind this prompt, the likeliest first."""
    markers = reasoning_markers(model)
    if markers is None:
        raise Unsupported("reasoning_text", "neither the template nor the vocabulary shows how reasoning is marked")
    opened = bool(markers.opening.strip()) and prompt.rstrip().endswith(markers.opening.strip())
    return [replace(one, opening="") if opened else one for one in markers.variants()]


def ends_by_token(choice: Mapping[str, Any], *, complete: bool, stop: Sequence[str] = ()) -> bool:
    """Whether the answer certainly ended by an end token of the model's."""
    stopped = complete and choice.get("finish_reason") in _STOPPED
    told = choice.get("stop_reason")
    return stopped and not isinstance(told, str) and (told is not None or not any(stop))


@dataclass(frozen=True)
class _Ending:
    """How an answer ended: by a token (`sure` if certainly), by a stop string that clients do not see, or neither.

    `cut` if its record broke off, perhaps inside a token.
    """

    token: int | None = None
    hidden: str = ""
    sure: bool = True
    cut: bool = False

    @classmethod
    def of(cls, choice: Mapping[str, Any], model: ChatTokenizer, *, complete: bool, stop: Sequence[str]) -> _Ending:
        told = choice.get("stop_reason")
        if not complete:
            return cls(cut=True)
        if choice.get("finish_reason") not in _STOPPED:
            return cls()
        if isinstance(told, str):
            return cls(hidden="" if (choice.get("text") or "").endswith(told) else told)
        if type(told) is int and 0 <= told < len(model.spelling.token_bytes):
            return cls(token=told)
        return cls(token=next(iter(model.end_token_ids), None), sure=not any(stop))


_NO_MARKERS = Markers("", "")


class _Writing:
    """Collects what was seen and what was inferred; marker tokens inside the inferred parts become marks."""

    def __init__(self, model: ChatTokenizer, *, special: bool = False) -> None:
        self._model, self._data, self._special = model, bytearray(), special
        self._marks: list[tuple[int, int]] = []
        self._inferred: list[tuple[int, int]] = []

    def all(self, pieces: Pieces) -> _Writing:
        for text, was_seen in pieces:
            self._seen(text) if was_seen else self._hidden(text)
        return self

    def _seen(self, text: str) -> None:
        if self._special:
            self._marked(text)
            return
        start = len(self._data)
        data = utf8(text)
        self._data += data
        # what stands for bytes that were no text: which bytes, nobody says
        lost = _LOST.finditer(data) if REPLACEMENT in text else ()
        self._inferred += [(start + found.start(), start + found.end()) for found in lost]

    def _hidden(self, text: str) -> None:
        start = len(self._data)
        self._marked(text)
        if len(self._data) > start:
            self._inferred.append((start, len(self._data)))

    def _marked(self, text: str) -> None:
        for piece in _split_at(text, self._model.marker_ids):
            if piece in self._model.marker_ids:
                self._mark(self._model.marker_ids[piece])
            else:
                self._data += utf8(piece)

    def ended(self, end: _Ending) -> AnswerText:
        self._hidden(end.hidden)
        start = len(self._data)
        if end.token is not None and not self._shows(end.token):
            self._mark(end.token)
            self._inferred += [] if end.sure else [(start, len(self._data))]
        if end.cut and start:
            self._inferred.append((start - 1, start))
        return AnswerText(bytes(self._data), tuple(self._marks), tuple(self._inferred))

    def _shows(self, token: int) -> bool:
        """Whether the text that clients saw ends by this special token."""
        return self._special and self._data.endswith(self._model.spelling.token_bytes[token])

    def _mark(self, token: int) -> None:
        self._marks.append((len(self._data), token))
        self._data += self._model.spelling.token_bytes[token]


def _reasoned(markers: Markers, reasoning: str, text: str, *, followed: bool) -> Pieces:
    """The reasoning between its markers; the closing one only where something follows it."""
    opening = _yielding(markers.opening, after=reasoning)
    closing = _yielding(markers.closing, before=reasoning, after=text) if followed else ""
    return [(opening, False), (reasoning, True), (closing, False)]


def _yielding(marker: str, *, before: str = "", after: str = "") -> str:
    """The marker less its own whitespace where the neighbouring text has kept some."""
    if before[-1:].isspace():
        marker = marker.lstrip()
    return marker.rstrip() if after[:1].isspace() else marker


@lru_cache(maxsize=16)
def reasoning_markers(model: ChatTokenizer) -> Markers | None:
    """What the model writes around its reasoning, or None where that cannot be told; kept for the models in use."""
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
    shared = common_prefix(before, head)
    written, prompted = head[shared:], before[shared:]
    if not written and not prompted:  # the prompt itself opens the reasoning; find the marker that closing answers
        return _opened_by_prompt(head, closing, model)
    return Markers(written, closing) if written.strip() else None


def _opened_by_prompt(head: str, closing: str, model: ChatTokenizer) -> Markers | None:
    pieces = _split_at(head, model.marker_ids)
    last = next((n for n in range(len(pieces) - 1, -1, -1) if pieces[n].strip()), None)
    return None if last is None else Markers("".join(pieces[last:]), closing)


def _split_at(text: str, markers: Mapping[str, int]) -> list[str]:
    """The text cut before and after every marker, longest marker first at each place."""
    found = sorted((marker for marker in markers if marker and marker in text), key=len, reverse=True)
    if not found:
        return [text] if text else []
    return [piece for piece in re.split("(" + "|".join(map(re.escape, found)) + ")", text) if piece]
