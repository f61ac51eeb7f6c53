"""Verdicts of streams as JSON, as a table and as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from storage.streams import StreamKey
from verifier.verdict import Verdict

COLUMNS = ("upstream", "model", "sampler", "verdict", "why", "requests", "tokens", "e-value", "mismatches", "tolerated")
LEFT = 5
COLORS = {"deviates": "red", "consistent": "green", "unsupported": "yellow"}


@dataclass(frozen=True)
class StreamReport:
    """One stream and its verdict; `identified` is what was found of its sampler contract, where that was looked for."""

    key: StreamKey
    verdict: Verdict
    identified: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the stream's name, the word as `verdict`, and all of the verdict."""
        detail = self.verdict.to_dict()
        word = detail.pop("word")
        return {**vars(self.key), "verdict": word, **detail, "identified": self.identified}


def as_json(reports: Sequence[StreamReport]) -> dict[str, Any]:
    """What `seedproof report --json` writes."""
    return {"streams": [report.to_dict() for report in reports]}


def as_table(reports: Sequence[StreamReport]) -> Table:
    """For a terminal."""
    table = Table()
    for number, heading in enumerate(COLUMNS):
        table.add_column(heading, justify="left" if number < LEFT else "right")
    for report in reports:
        table.add_row(*_cells(report), style=COLORS.get(report.verdict.word))
    return table


def as_markdown(reports: Sequence[StreamReport]) -> str:
    """A table of all streams, then what is behind each verdict."""
    lines = ["# Verdicts", "", _row(COLUMNS), _row(["---"] * LEFT + ["---:"] * (len(COLUMNS) - LEFT))]
    lines += [_row(_cells(report)) for report in reports]
    for report in reports:
        lines += ["", f"## {_escaped(report.key.upstream)}: {report.verdict.word}", "", *_details(report.verdict)]
    return "\n".join(lines) + "\n"


def _cells(report: StreamReport) -> list[str]:
    verdict = report.verdict
    rate = next((effect for effect in verdict.effects if effect.detector == "mismatch"), None)
    return [
        report.key.upstream, report.key.model, report.key.sampler, verdict.word, ", ".join(verdict.reasons),
        str(verdict.requests), str(verdict.tokens), e_value(verdict),
        f"{rate.mean:.3f} ({rate.low:.3f}–{rate.high:.3f})" if rate else "–",
        f"{rate.tolerated:.3f}" if rate else "–",
    ]  # fmt: skip


def e_value(verdict: Verdict) -> str:
    """Short: 12, or 3e+08."""
    return f"{verdict.e_value:.0f}" if verdict.e_value < 1e5 else f"{verdict.e_value:.0e}"


def _details(verdict: Verdict) -> list[str]:
    lines = [f"- why: {', '.join(verdict.reasons)}" + (f"; {verdict.hint}" if verdict.hint else "")]
    lines.append(f"- p ≤ {verdict.p_value:.2g} at any time of looking (α = {verdict.alpha:g})")
    if verdict.decided_at is not None:
        lines.append(f"- decided after {verdict.decided_at} tokens")
    if verdict.tokens_to_decision is not None:
        lines.append(f"- about {verdict.tokens_to_decision} more tokens to `deviates`, if the rates stay as they are")
    if verdict.skipped:
        lines.append("- skipped: " + ", ".join(f"{reason} {count}" for reason, count in verdict.skipped.items()))
    lines += [f"- assumed: {_escaped(assumption)}" for assumption in verdict.assumptions]
    lines += ["", "| detector | mean (95 %) | honest | tolerated | unit |", "| --- | ---: | ---: | ---: | --- |"]
    lines += [
        f"| {e.detector} | {e.mean:.4f} ({e.low:.4f}–{e.high:.4f}) | {e.honest:.4f} | {e.tolerated:.4f} | {e.unit} |"
        for e in verdict.effects
    ]
    lines += ["", "| fault | shown by now with probability | tokens for 90 % |", "| --- | ---: | ---: |"]
    lines += [f"| {p.fault} | {p.power:.2f} | {p.tokens_for_90_percent or '–'} |" for p in verdict.power]
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Names may be a stranger's: no table cell, heading or HTML begins in them."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
