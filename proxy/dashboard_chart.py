"""The small charts of the overview, as SVG paths: a stream's match rate over time beside what is tolerated. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from storage.history import MatchRate

WIDTH, HEIGHT = 240.0, 48.0
MOST_POINTS = 120
LOWEST = 0.5
"""The axis ends here or lower: match rates under one half are all alike, and near 1 a hundredth counts."""


@dataclass(frozen=True)
class Sparkline:
    """SVG path data: the confidence sequence as an area, the mean and the tolerated rate as lines."""

    band: str
    mean: str
    tolerated: str


def sparkline(told: Sequence[MatchRate]) -> Sparkline | None:
    """Of a stream's past, the oldest first; None for none. Of many points every second one, or fewer, to the last."""
    if not told:
        return None
    told = told[:: -math.ceil(len(told) / MOST_POINTS)][::-1]
    if len(told) == 1:
        told = [told[0], told[0]]
    bottom = min(LOWEST, *(row.match_low for row in told))
    times = [row.at.timestamp() for row in told]
    width = times[-1] - times[0]
    xs = [(t - times[0]) / width * WIDTH if width else WIDTH * i / (len(told) - 1) for i, t in enumerate(times)]

    def line(name: str) -> list[tuple[float, float]]:
        values = [getattr(row, name) for row in told]
        return [(x, HEIGHT * (1 - (y - bottom) / (1 - bottom))) for x, y in zip(xs, values, strict=True)]

    return Sparkline(
        band=_path([*line("match_high"), *reversed(line("match_low"))]) + "Z",
        mean=_path(line("match_mean")),
        tolerated=_path(line("match_tolerated")),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
