"""The demo's result: match rates, their intervals and a plain word per provider, as table and JSON. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

MATCH_THRESHOLD = 0.96
"""Exact-match rate between honest and not.

Honest vLLM in bfloat16 on a GPU, replayed in float32 on a CPU, matches .965 to .996 of its tokens; temperature
1.1 for 1.0 matches .93, fp8 weights .90, a hidden system prompt .89, 4-bit weights .71 (the golden files). A
provider deviates when its whole interval lies below, and is consistent when none of it does.
"""

LEAST_TOKENS = 100
"""Fewer tokens decide nothing: those of one answer hang together, and the interval does not know it."""

Z_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class UpstreamResult:
    """What the audits say of one provider. ``cheat`` is the truth, for comparison: None for honest."""

    name: str
    cheat: str | None
    requests: int
    tokens: int
    exact_matches: int

    @property
    def exact_match_rate(self) -> float | None:
        """Share of audited tokens that the replayed sampler drew too; None without tokens."""
        return self.exact_matches / self.tokens if self.tokens else None

    @property
    def verdict(self) -> str:
        """``consistent``, ``deviates``, ``inconclusive`` (too few tokens) or ``unsupported`` (none)."""
        if not self.tokens:
            return "unsupported"
        low, high = wilson_interval(self.exact_matches, self.tokens)
        if self.tokens < LEAST_TOKENS or low < MATCH_THRESHOLD <= high:
            return "inconclusive"
        return "consistent" if low >= MATCH_THRESHOLD else "deviates"


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson 1927); 95 % unless told; ``trials`` at least 1.

    It takes tokens as independent, so it is somewhat too narrow: tokens of one answer are alike.
    """
    rate, spread = successes / trials, z * z / trials
    center = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, center - half), min(1.0, center + half)


def as_json(results: Sequence[UpstreamResult]) -> dict[str, Any]:
    """The table as ``--json`` writes it."""
    fields = ("name", "cheat", "requests", "tokens", "exact_match_rate", "verdict")
    return {"upstreams": [{field: getattr(result, field) for field in fields} for result in results]}


def as_table(results: Sequence[UpstreamResult]) -> Table:
    """The table for people."""
    table = Table(title="What the audits say")
    for column in ("provider", "cheat"):
        table.add_column(column)
    for column in ("requests", "tokens", "match", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result), style="red" if result.verdict == "deviates" else None)
    return table


def _cells(result: UpstreamResult) -> list[str]:
    rate, interval = "–", "–"
    if result.tokens:
        low, high = wilson_interval(result.exact_matches, result.tokens)
        rate, interval = f"{result.exact_match_rate:.3f}", f"{low:.3f}–{high:.3f}"
    counts = [str(result.requests), str(result.tokens)]
    return [result.name, result.cheat or "none", *counts, rate, interval, result.verdict]
