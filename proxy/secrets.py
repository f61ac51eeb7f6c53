"""Keeping secrets out of what is recorded and told: by their value, wherever it turns up. Pure.

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


class Mask:
    """Puts as many asterisks in a secret's place, in bytes that come in pieces. An end of a piece that may be the
    secret's beginning is held back until the next one; of all other bytes none waits."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret.encode() if secret is not None and len(secret) >= SHORTEST else b""
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """What may be told by now."""
        if not self._secret:
            return piece
        data = self._held + piece
        if self._secret in data:
            data = data.replace(self._secret, b"*" * len(self._secret))
        place = self._beginning(data)
        self._held = data[place:]
        return data[:place]

    def end(self) -> bytes:
        """The rest: no more bytes come."""
        rest, self._held = self._held, b""
        return rest

    def _beginning(self, data: bytes) -> int:
        """Where an end of the data begins that is also the secret's beginning; the data's end if there is none."""
        first = self._secret[:1]
        place = data.find(first, max(0, len(data) - len(self._secret) + 1))
        while place >= 0 and not self._secret.startswith(data[place:]):
            place = data.find(first, place + 1)
        return place if place >= 0 else len(data)


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
