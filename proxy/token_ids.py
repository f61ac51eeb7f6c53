"""Token ids in the places where servers put them. They are claims: the verifier checks them against the text.

Where one server sends them whole and another in pieces, `whole` says which; what is no list of ids is no claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True)
class ToldIds:
    """Ids of an answer's tokens: all of them so far (`whole`), or those of this chunk; `source` names the field."""

    token_ids: list[int]
    source: str
    whole: bool


def told_ids(choice: Mapping[str, Any]) -> ToldIds | None:
    """The answer's ids that a choice, whole or of a chunk, brings in another field than vLLM's `token_ids`."""
    meta, raw, delta = (_object(choice.get(name)) for name in ("meta_info", "raw_output", "delta"))
    triples = meta.get("output_token_logprobs")
    litellm = _object(choice.get("provider_specific_fields")) or _object(delta.get("provider_specific_fields"))
    for source, value, whole in (
        ("output_ids", choice.get("output_ids"), True),  # SGLang
        ("meta_info", _seconds(triples), True),  # SGLang's return_meta_info: [logprob, id, text] of each token
        ("raw_output", raw.get("completion_token_ids"), True),  # Fireworks
        ("logprobs.token_ids", _object(choice.get("logprobs")).get("token_ids"), False),  # Together
        ("delta.token_id", _alone(delta.get("token_id")), False),  # Together's streams
        ("provider_specific_fields", litellm.get("token_ids"), False),  # LiteLLM, of a vLLM behind it
    ):
        if is_ids(value):
            return ToldIds(list(value), source, whole)
    return None


def told_beside(chunk: Mapping[str, Any]) -> dict[int, list[int]]:
    """Ids by choice that stand beside the choices, once in an answer: SGLang's `sglext.output_ids`."""
    listed = _object(chunk.get("sglext")).get("output_ids")
    rows = [listed] if is_ids(listed) else listed if isinstance(listed, list) else []
    return {index: list(row) for index, row in enumerate(rows) if is_ids(row)}


def told_prompt_beside(chunk: Mapping[str, Any]) -> list[int] | None:
    """The prompt's ids that stand beside the choices: SGLang's `sglext.input_ids`."""
    listed = _object(chunk.get("sglext")).get("input_ids")
    return list(listed) if is_ids(listed) else None


def told_prompt_ids(choice: Mapping[str, Any]) -> list[int] | None:
    """The prompt's ids that a choice brings: SGLang's and vLLM's text completions, Fireworks."""
    for value in (choice.get("prompt_token_ids"), _object(choice.get("raw_output")).get("prompt_token_ids")):
        if is_ids(value):
            return list(value)
    return None


def is_ids(value: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of token ids with something in it."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in value)
    )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _seconds(value: Any) -> list[Any] | None:
    if not isinstance(value, list):
        return None
    return [row[1] if isinstance(row, list) and len(row) > 1 else None for row in value]


def _alone(value: Any) -> list[Any] | None:
    return None if value is None else [value]
