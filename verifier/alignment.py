"""From an answer back to the ids that were sampled. Ids that a provider gives are claims: they must spell the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from verifier.errors import Unsupported

REPLACEMENT = "�"


class Tokenizer(Protocol):
    """What alignment needs of a tokenizer."""

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def decode(self, token_ids: list[int], *, special: bool = False) -> str:
        """Text of ids."""
        ...


@dataclass(frozen=True)
class Alignment:
    """Output ids and where they came from: "given" or "retokenized"."""

    token_ids: list[int]
    source: str


def align(choice: Mapping[str, Any], tokenizer: Tokenizer, *, complete: bool) -> Alignment:
    """Output ids of one folded choice; `complete` says that the answer was recorded to its end.

    Raises Unsupported with reason `ids_do_not_match_text`, `tool_call_text` or `reasoning_text`.
    """
    given = choice.get("token_ids")
    if given:
        _check_spelling(given, choice, tokenizer, complete=complete)
        return Alignment(list(given), "given")
    if choice.get("tool_calls"):
        raise Unsupported("tool_call_text", "the answer's tool calls do not say how the model wrote them")
    if choice.get("reasoning"):
        raise Unsupported("reasoning_text", "the answer's reasoning does not say how the model marked it")
    return Alignment(_encoded(choice, tokenizer), "retokenized")


def _encoded(choice: Mapping[str, Any], tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(choice.get("text") or "")
    stopped_by_itself = choice.get("finish_reason") == "stop" and choice.get("stop_reason") is None
    return ids + list(tokenizer.end_token_ids[:1]) if stopped_by_itself else ids


def _check_spelling(
    token_ids: list[int], choice: Mapping[str, Any], tokenizer: Tokenizer, *, complete: bool
) -> None:
    pieces = [choice.get("reasoning"), choice.get("text")]
    shown = tokenizer.decode(token_ids).rstrip(REPLACEMENT)
    if choice.get("tool_calls") or choice.get("reasoning"):
        spelled = all(piece.strip() in shown for piece in pieces if piece)
    else:
        text = (choice.get("text") or "").rstrip(REPLACEMENT)
        cut_by_stop = isinstance(choice.get("stop_reason"), str)
        spelled = (
            shown == text
            or (cut_by_stop and shown.startswith(text))
            or (not complete and (shown.startswith(text) or text.startswith(shown)))
        )
    if not spelled:
        raise Unsupported("ids_do_not_match_text", "the provider's token ids do not spell the text it sent")
