"""Figures of an evaluation, as PNG and SVG: tokens to `deviates`, and AUC by number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from verifier.evaluate import Judged


def save_plots(suspects: Sequence[Judged], directory: Path) -> list[Path]:
    """Draw both figures into a directory, which is made; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = {"tokens_to_deviates": _decisions(suspects), "auc": _areas(suspects)}
    return [path for name, figure in figures.items() for path in _saved(figure, directory / name)]


def _decisions(suspects: Sequence[Judged]) -> Figure:
    figure, axes = _figure("tokens", "share of streams called `deviates`")
    for suspect in suspects:
        total = len(suspect.tokens_to_deviates)
        decided = sorted(n for n in suspect.tokens_to_deviates if n is not None)
        shares = [(k + 1) / total for k in range(len(decided))]
        across, up = [1, *decided, max(suspect.tokens, 2)], [0, *shares, len(decided) / total]
        axes.step(across, up, where="post", label=_name(suspect))
    axes.legend()
    return figure


def _areas(suspects: Sequence[Judged]) -> Figure:
    figure, axes = _figure("tokens per batch", "AUC (solid), pAUC at FPR ≤ 1 % (dashed)")
    for suspect in suspects:
        found = suspect.separation
        (line,) = axes.plot([int(n) for n in found.auc], list(found.auc.values()), "o-", label=_name(suspect))
        axes.plot([int(n) for n in found.pauc], list(found.pauc.values()), "o--", color=line.get_color())
    axes.legend()
    return figure


def _figure(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up, xscale="log", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    return figure, axes


def _name(suspect: Judged) -> str:
    return Path(suspect.file.partition("@")[0]).stem


def _saved(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path)
    return paths
