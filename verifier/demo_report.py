"""The demo's result: each provider's match rate and its stream's verdict, as table and JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class UpstreamResult:
    """What the audits say of one provider.

    Args:
        cheat: the truth, for comparison; None for honest.
        verdict, reasons, log_e: of its stream (`storage.models.Stream`).
    """

    name: str
    cheat: str | None
    requests: int
    tokens: int
    exact_matches: int
    verdict: str
    reasons: tuple[str, ...] = ()
    log_e: float = 0.0

    @property
    def exact_match_rate(self) -> float | None:
        """Share of audited tokens that the replayed sampler drew too; None without tokens."""
        return self.exact_matches / self.tokens if self.tokens else None


def as_json(results: Sequence[UpstreamResult]) -> dict[str, Any]:
    """The table as ``--json`` writes it."""
    fields = ("name", "cheat", "requests", "tokens", "exact_match_rate", "verdict")
    return {"upstreams": [{field: getattr(result, field) for field in fields} for result in results]}


def as_table(results: Sequence[UpstreamResult]) -> Table:
    """The table for people."""
    why = "\n".join(f"{result.name}: {', '.join(result.reasons[:2])}" for result in results if result.reasons)
    table = Table(title="What the audits say", caption=why, caption_justify="left")
    for column in ("provider", "cheat"):
        table.add_column(column)
    for column in ("requests", "tokens", "match", "ln e-value"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result), style="red" if result.verdict == "deviates" else None)
    return table


def _cells(result: UpstreamResult) -> list[str]:
    rate = "–" if result.exact_match_rate is None else f"{result.exact_match_rate:.3f}"
    counts = [str(result.requests), str(result.tokens)]
    return [result.name, result.cheat or "none", *counts, rate, f"{result.log_e:.1f}", result.verdict]
