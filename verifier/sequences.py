"""The field's vocabulary: token sequences in, token metrics out (names and meanings of token-difr 0.1.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from verifier.scoring import TokenScores


class SamplingMethod(Enum):
    """How the outputs were sampled. Ours takes a sampler contract instead; this names the seed package's one."""

    VLLM_GUMBEL_MAX = "vllm_gumbel_max"


@dataclass
class TokenSequence:
    """A prompt and its generated output as token ids."""

    prompt_token_ids: list[int]
    output_token_ids: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> TokenSequence:
        """Create from a dictionary."""
        return cls(prompt_token_ids=d["prompt_token_ids"], output_token_ids=d["output_token_ids"])


@dataclass
class TokenMetrics:
    """Scores of one token; `margin` and `gumbel_rank` are infinite outside the support."""

    exact_match: bool
    prob: float
    margin: float
    logit_rank: float
    gumbel_rank: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> TokenMetrics:
        """Create from a dictionary."""
        return cls(**{name: d[name] for name in cls.__dataclass_fields__})


def token_metrics(scores: TokenScores) -> list[TokenMetrics]:
    """One TokenMetrics per token of `scores`."""
    columns = zip(
        scores.exact_match.tolist(),
        scores.prob.tolist(),
        scores.margin.tolist(),
        scores.logit_rank.astype(float).tolist(),
        scores.gumbel_rank.tolist(),
        strict=True,
    )
    return [TokenMetrics(*values) for values in columns]


def compute_metrics_summary(results: Iterable[Iterable[TokenMetrics]]) -> dict[str, Any]:
    """Means over all tokens of verify_outputs' result; zeros when there are none."""
    tokens = [metrics for sequence in results for metrics in sequence]
    count = len(tokens)
    means = {
        "exact_match_rate": sum(t.exact_match for t in tokens),
        "avg_prob": sum(t.prob for t in tokens),
        "avg_margin": sum(t.margin for t in tokens),
        "avg_logit_rank": sum(t.logit_rank for t in tokens),
        "avg_gumbel_rank": sum(t.gumbel_rank for t in tokens),
    }
    return {"total_tokens": count, **{name: total / count if count else 0.0 for name, total in means.items()}}
