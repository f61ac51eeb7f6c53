"""Recorded outputs in files: one JSON object a line, in the format of the golden set.

Fields: `messages`, `prompt_token_ids`, `output_token_ids`, `text`, `finish_reason`, `seed`, `choice` (0 if absent), and
the sampling parameters by vLLM's names (`temperature`, `top_k`, …); a parameter that is absent is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from verifier.errors import InputError
from verifier.sampling_params import SamplingParams
from verifier.sequences import TokenSequence

NO_SEED = -1
"""What vLLM, llama.cpp and Ollama take for "draw a seed yourself"."""


@dataclass(frozen=True)
class Recording:
    """One recorded answer; `seed` is the request's, None where none was given (or NO_SEED)."""

    messages: list[dict[str, Any]]
    sequence: TokenSequence
    text: str | None
    finish_reason: str | None
    seed: int | None
    choice: int
    params: SamplingParams


def read_recordings(
    path: Path, *, overrides: Mapping[str, Any] | None = None, limit: int | None = None
) -> list[Recording]:
    """The first `limit` recordings of a file; `overrides` replace the file's own fields. Raises InputError."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a file of recorded outputs") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    chosen = {name: value for name, value in (overrides or {}).items() if value is not None}
    return [_recording(f"{path}:{number}", line, chosen) for number, line in numbered[:limit]]


def _recording(where: str, line: bytes, overrides: Mapping[str, Any]) -> Recording:
    try:
        fields = {**orjson.loads(line), **overrides}
        return Recording(
            messages=fields.get("messages") or [],
            sequence=TokenSequence(_ids(fields["prompt_token_ids"]), _ids(fields["output_token_ids"])),
            text=fields.get("text"),
            finish_reason=fields.get("finish_reason"),
            seed=None if fields.get("seed") == NO_SEED else fields.get("seed"),
            choice=int(fields.get("choice") or 0),
            params=SamplingParams.from_fields(fields),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} is not a recorded output ({error}): see verifier/recordings.py") from error


def _ids(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError("token ids must be a list of integers")
    return values
