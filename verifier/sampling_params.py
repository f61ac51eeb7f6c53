"""How a token was drawn: the sampling parameters of one request, in vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from verifier.errors import InputError

GREEDY_BELOW = 1e-5  # every engine we replay takes a smaller temperature for argmax


@dataclass(frozen=True)
class SamplingParams:
    """Decoding parameters; the defaults mean "off".

    `top_k` 0 or −1 and `top_p` 1 switch those filters off, as the engines' own APIs do.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require(self.temperature >= 0.0, f"temperature {self.temperature} is negative")
        _require(self.top_k >= -1, f"top_k {self.top_k} is below -1")
        _require(0.0 < self.top_p <= 1.0, f"top_p {self.top_p} is not in (0, 1]")
        _require(0.0 <= self.min_p <= 1.0, f"min_p {self.min_p} is not in [0, 1]")
        _require(self.repetition_penalty > 0.0, f"repetition_penalty {self.repetition_penalty} is not positive")

    @property
    def is_greedy(self) -> bool:
        """True where the engine takes the argmax and ignores filters and seed."""
        return self.temperature < GREEDY_BELOW

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Take what a request or a recorded file says, ignoring fields that are not sampling and values of null."""
        known = {f.name for f in fields(cls)}
        chosen = {k: v for k, v in values.items() if k in known and v is not None}
        if "logit_bias" in chosen:
            chosen["logit_bias"] = {int(k): float(v) for k, v in chosen["logit_bias"].items()}
        for name in ("allowed_token_ids", "stop_token_ids"):
            if name in chosen:
                chosen[name] = tuple(int(t) for t in chosen[name])
        return cls(**chosen)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InputError(f"{what}: change the sampling parameters")
