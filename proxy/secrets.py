"""Keeping secrets out of what is recorded: by their value, wherever it turns up. Pure.

A provider may echo a key in any field of its answer, and a client may send its own in a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

SHORTEST = 12
"""Shorter "keys" are the placeholders of local set-ups (none, EMPTY, sk-test), which ordinary text contains."""
REDACTED = "[redacted]"
_IDS = ("token_ids", "prompt_token_ids", "bytes")
"""Long lists of which the transcript has made sure that they are integers."""


def holds_secret(value: Any, secrets: Sequence[str]) -> bool:
    """Whether any string in a JSON value contains one of the secrets."""
    worth = [secret for secret in secrets if len(secret) >= SHORTEST]
    return bool(worth) and any(secret in text for text in _strings(value) for secret in worth)


def cleared(value: Any, secrets: Sequence[str]) -> Any:
    """The JSON value with every secret replaced, in keys too."""
    if isinstance(value, str):
        for secret in secrets:
            if len(secret) >= SHORTEST:
                value = value.replace(secret, REDACTED)
        return value
    if isinstance(value, dict):
        return {cleared(key, secrets): cleared(item, secrets) for key, item in value.items()}
    return [cleared(item, secrets) for item in value] if isinstance(value, list) else value


def _strings(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            if key not in _IDS:
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
