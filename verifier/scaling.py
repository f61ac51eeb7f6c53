"""How many workers a reference's backlog asks for. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

DRAIN_SECONDS = 60.0
"""A backlog is to be gone within this time, if workers can be had."""
LATE_SECONDS = 120.0
"""With a job that has waited for longer, one more worker is asked for whatever the backlog says."""
CALM = timedelta(minutes=5)
"""So long fewer workers must do before any is let go: loading a reference again costs minutes."""


@dataclass(frozen=True)
class Demand:
    """What waits for one reference: tokens of due jobs (prompts and answers), and how long the oldest has waited."""

    tokens: float
    oldest_seconds: float


@dataclass(frozen=True)
class Scale:
    """How many workers a reference is to have, and since when fewer would do."""

    workers: int = 0
    calm_since: datetime | None = None

    def after(self, wanted: int, now: datetime) -> Scale:
        """Up at once; down to what was wanted only after it was so for CALM."""
        if wanted >= self.workers:
            return Scale(wanted)
        since = self.calm_since or now
        return Scale(wanted) if now - since >= CALM else Scale(self.workers, since)


def workers_wanted(
    demand: Demand, *, running: int, tokens_per_second: float | None, least: int, most: int
) -> int:
    """Workers that drain the backlog in DRAIN_SECONDS, one more than run where jobs are late; from `least` to `most`.

    Args:
        demand: of one reference.
        running: workers that it has.
        tokens_per_second: of one worker, as measured; before that, one worker is tried.
    """
    if demand.tokens <= 0:
        return least
    wanted = 1 if not tokens_per_second else math.ceil(demand.tokens / (tokens_per_second * DRAIN_SECONDS))
    if demand.oldest_seconds > LATE_SECONDS and tokens_per_second:
        wanted = max(wanted, running + 1)
    return min(max(wanted, least, 1), most)


def shared_out(wanted: Mapping[str, int], demands: Mapping[str, Demand], most: int) -> dict[str, int]:
    """Workers of each reference, no more than wanted and `most` in all: one each in turn, the longest waiting first.

    So no reference is left without one for good, even where there are more references than workers.
    """
    order = sorted(wanted, key=lambda name: (-demands[name].oldest_seconds, name))
    given = dict.fromkeys(wanted, 0)
    while sum(given.values()) < min(most, sum(wanted.values())):
        for name in order:
            if given[name] < wanted[name] and sum(given.values()) < most:
                given[name] += 1
    return given
