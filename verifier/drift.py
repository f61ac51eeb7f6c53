"""Has a stream changed lately? A CUSUM of the evidence's own bets: quick, and wrong now and then by design. Pure.

`verifier.evidence` never forgets that it may err only once in a stream's life, so it pays for a late change. A CUSUM
pays nothing: with the bets e of `verifier.evidence`, M ← max(M, 1)·e, restarted at sequences only. M is at most the
Shiryaev-Roberts sum over all starts, whose mean under the band's H₀ is at most the number of sequences begun. So the
average of M over detectors and odds, with an alarm at 1/α, is an e-detector (Shin, Ramdas & Rinaldo 2023):

    expected number of honest sequences until an alarm ≥ 1/α.

An alarm is a reason to look (or to raise the audit rate), not a verdict: over a long life it comes sooner or later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from verifier.band import Band
from verifier.detectors import NAMES, Scores
from verifier.evidence import LOG_SHARES, ODDS, judging, wealth_paths


@dataclass(frozen=True)
class Drift:
    """State of one stream's CUSUM.

    Args:
        alpha: alarms come at least 1/α honest sequences apart on average.
        log_cusum: ln M, per detector for each of ODDS.
        since: per detector and odds the sequence (from 0) at which M last restarted.
        sequences, tokens: seen so far.
        alarm_at: token of the first alarm since the start or the last `cleared`; None for no alarm.
        changed_at: sequence at which the change then seems to have begun.
    """

    alpha: float
    log_cusum: Mapping[str, tuple[float, ...]]
    since: Mapping[str, tuple[int, ...]]
    sequences: int = 0
    tokens: int = 0
    alarm_at: int | None = None
    changed_at: int | None = None

    def update(
        self, scores: Scores, band: Band, detectors: Iterable[str] = NAMES, *, followed: int | None = None
    ) -> Drift:
        """With the tokens of one more sequence, as `Evidence.update`."""
        if not len(scores.entropy):
            return self
        before = np.array([self.log_cusum[name] for name in NAMES])
        since = np.where(before <= 0.0, self.sequences, np.array([self.since[name] for name in NAMES]))
        judged = judging(len(scores.entropy), detectors, followed)
        paths = wealth_paths(np.maximum(before, 0.0), scores, band, judged)
        alarm_at, changed_at = self.alarm_at, self.changed_at
        hits = np.flatnonzero(np.logaddexp.reduce(paths + LOG_SHARES, axis=(1, 2)) >= -math.log(self.alpha))
        if alarm_at is None and len(hits):
            alarm_at = self.tokens + int(hits[0]) + 1
            changed_at = int(since.flat[np.argmax(paths[hits[0]] + LOG_SHARES)])
        return Drift(
            alpha=self.alpha,
            log_cusum={name: tuple(map(float, row)) for name, row in zip(NAMES, paths[-1], strict=True)},
            since={name: tuple(map(int, row)) for name, row in zip(NAMES, since, strict=True)},
            sequences=self.sequences + 1,
            tokens=self.tokens + len(paths),
            alarm_at=alarm_at,
            changed_at=changed_at,
        )

    def cleared(self) -> Drift:
        """Watching afresh after an alarm was seen; counts go on."""
        fresh = watch(self.alpha)
        return Drift(self.alpha, fresh.log_cusum, fresh.since, self.sequences, self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Drift:
        """What `to_dict` gave, also after JSON."""
        rows = {key: {name: tuple(row) for name, row in values[key].items()} for key in ("log_cusum", "since")}
        return cls(**{**values, **rows})


def watch(alpha: float = 1e-3) -> Drift:
    """A stream of which nothing has been seen. Raises ValueError unless 0 < alpha < 1."""
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}; it is a probability between 0 and 1")
    return Drift(
        alpha,
        log_cusum=dict.fromkeys(NAMES, (0.0,) * len(ODDS)),
        since=dict.fromkeys(NAMES, (0,) * len(ODDS)),
    )
