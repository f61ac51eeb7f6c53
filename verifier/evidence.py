"""Evidence against a stream that may be looked at after every token. Pure; its state is JSON.

The bet. For a statistic x ∈ [0, 1] of one token and its tolerated mean m, and odds θ > 1,

    e = (1 + (θ − 1)·x) / (1 + (θ − 1)·m)          is linear in x, so E[e | past] ≤ 1 wherever E[x | past] ≤ m.

For x ∈ {0, 1} it is the likelihood ratio that multiplies the odds of m by θ (Wald); for bounded means it is betting
with the fraction (θ − 1)/(1 + (θ − 1)m) (Waudby-Smith & Ramdas 2024, JRSS-B 86:1). Products of bets are
non-negative supermartingales under the band's H₀, so by Ville's inequality

    P(a stream within its band ever reaches E ≥ 1/α) ≤ α,          for every α, at any and all times of looking.

It needs no independence of tokens, only the bound on each conditional mean (`verifier.band`), which lets the tokens of
one answer share a level that is drawn anew for the next.

The mixture. E averages over detectors (weights of `verifier.detectors`), over θ ∈ ODDS (a discrete cousin of the
beta-binomial mixture: it adapts to an unknown alternative), and over the sequence j at which the provider turned bad,
with prior π₀ = 3/4, π_j = 1/(4j(j+1)): that is a Shiryaev-Roberts recursion whose restarts have total weight 1, so
it stays an e-process (Shin, Ramdas & Rinaldo 2023 on e-detectors). A change after 100 honest sequences costs about
ln(40,000) ≈ 11 nats more to prove, instead of all the confidence that the honest past has built. An average of
e-processes is one, whatever the dependence between them; the parts of any subset of detectors are too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaln

from verifier.band import Band
from verifier.detectors import DETECTORS, ENDING, NAMES, SEED_FREE, Floats, Scores, statistics

ODDS = (1.5, 3.0, 7.0, 20.0, 80.0)
ODDS_PRIOR = (0.1, 0.2, 0.35, 0.25, 0.1)
LOG_SHARES: Floats = np.log(np.outer([detector.weight for detector in DETECTORS], ODDS_PRIOR))
"""Prior of each detector and odds; together they are 1."""
_SEED_FREE_ROWS = np.array([name in SEED_FREE for name in NAMES])


def log_bets(scores: Scores, band: Band) -> Floats:
    """Log of the bets on every token of an answer: float64[..., n, detectors, odds] of scores [..., n]."""
    more = np.array(ODDS) - 1.0
    found = statistics(scores, band.cuts)
    gain = np.log1p(more * found[..., None])
    gain -= np.log1p(more * band.bounds_within(found, scores.entropy)[..., None])
    return np.asarray(gain)


def log_start_prior(sequence: int) -> float:
    """ln π_j: prior that the provider turned bad at this sequence (from 0)."""
    return -math.log(4.0 * sequence * (sequence + 1)) if sequence else math.log(0.75)


def _log_unspent(starts: int) -> float:
    """ln of the prior mass of the starts to come, once this many (at least 1) have been allowed for."""
    return -math.log(4.0 * starts)


def judging(tokens: int, detectors: Iterable[str], followed: int | None = None) -> NDArray[np.bool_]:
    """Which detectors judge each of an answer's tokens: bool[tokens, detectors], in the order of `NAMES`.

    Args:
        detectors: those that can judge this answer at all (`Band.applicable`).
        followed: tokens from the start that follow the seeded noise; seeded detectors judge no others. None for all.
    """
    judged = np.tile(np.isin(NAMES, tuple(detectors)), (tokens, 1))
    if followed is not None:
        judged[followed:] &= _SEED_FREE_ROWS
    return judged


def wealth_paths(log_wealth: Floats, scores: Scores, band: Band, judged: NDArray[np.bool_]) -> Floats:
    """Log-wealth after each token of one more sequence.

    Args:
        log_wealth: float64[..., detectors, odds] before it, this start allowed for.
        scores: arrays [..., n]; leading axes are streams that are weighed side by side.
        band: the one of the whole stream.
        judged: from `judging`; a detector makes no bet on a token that it does not judge.

    Returns:
        float64[..., n, detectors, odds]
    """
    bets = log_bets(scores, band)
    bets *= judged[..., None]
    paths = np.cumsum(bets, axis=-3, out=bets)
    paths += log_wealth[..., None, :, :]
    return paths


def mix(paths: Floats, starts: int, rows: Any = slice(None)) -> Floats:
    """ln E after each token, float64[..., n], of paths [..., n, detectors, odds].

    Args:
        paths: from `wealth_paths`.
        starts: how many starts the paths allow for; the prior of the rest lies idle.
        rows: detectors to count; the others' shares are left out.
    """
    shares = LOG_SHARES[rows]
    idle = _log_unspent(starts) + np.logaddexp.reduce(shares, axis=None)
    return np.asarray(np.logaddexp(np.logaddexp.reduce(paths[..., rows, :] + shares, axis=(-2, -1)), idle))


@dataclass(frozen=True)
class Total:
    """The e-value of some detectors: now, its highest so far, and the token at which it first reached 1/α."""

    log_e: float = 0.0
    peak: float = 0.0
    decided_at: int | None = None

    def after(self, log_e: Floats, tokens: int, alpha: float) -> Total:
        """With the e-values after each of the next tokens; `tokens` came before them."""
        hits = np.flatnonzero(log_e >= -math.log(alpha))
        decided = tokens + int(hits[0]) + 1 if len(hits) else None
        return Total(float(log_e[-1]), max(self.peak, float(log_e.max())), self.decided_at or decided)


@dataclass(frozen=True)
class Evidence:
    """State of one stream, of audits in the order of their exchanges. `replay` gives the same numbers again.

    Args:
        alpha: a stream within its band ever reaches 1/α with at most this probability.
        sequences, tokens: seen so far.
        log_wealth: per detector one log-wealth for each of ODDS, starts allowed for up to the next sequence.
        counts: per detector the tokens (of `ending`, the answers) judged; `sums` of its statistic and `bounds` of what
            was tolerated there.
        all: the e-value of all detectors; seed_free: of those alone that hold under any sampler.
    """

    alpha: float
    log_wealth: Mapping[str, tuple[float, ...]]
    counts: Mapping[str, int]
    sums: Mapping[str, float]
    bounds: Mapping[str, float]
    sequences: int = 0
    tokens: int = 0
    all: Total = Total()
    seed_free: Total = Total()

    def update(
        self, scores: Scores, band: Band, detectors: Iterable[str] = NAMES, *, followed: int | None = None
    ) -> Evidence:
        """With the tokens of one more sequence; an empty one changes nothing.

        Args:
            scores: of one audit, tokens in order.
            band: the same throughout a stream.
            detectors, followed: as for `judging`.
        """
        if not len(scores.entropy):
            return self
        starts, judged = self.sequences + 1, judging(len(scores.entropy), detectors, followed)
        found, tolerated = statistics(scores, band.cuts), band.bounds(scores.entropy)
        paths = wealth_paths(np.array([self.log_wealth[name] for name in NAMES]), scores, band, judged)
        ended = np.logaddexp(paths[-1], log_start_prior(starts))
        return replace(
            self,
            sequences=starts,
            tokens=self.tokens + len(found),
            log_wealth={name: tuple(map(float, row)) for name, row in zip(NAMES, ended, strict=True)},
            counts=self._plus(self.counts, np.where(np.arange(len(NAMES)) == ENDING, judged[-1], judged.sum(0))),
            sums=self._plus(self.sums, (judged * found).sum(0)),
            bounds=self._plus(self.bounds, (judged * tolerated).sum(0)),
            all=self.all.after(mix(paths, starts), self.tokens, self.alpha),
            seed_free=self.seed_free.after(mix(paths, starts, _SEED_FREE_ROWS), self.tokens, self.alpha),
        )

    def log_e_of(self, name: str) -> float:
        """One detector's own log e-value now, before its share; it may fall below 0."""
        wealth = np.logaddexp.reduce(np.add(self.log_wealth[name], np.log(ODDS_PRIOR)))
        return float(np.logaddexp(wealth, _log_unspent(self.sequences + 1)))

    @staticmethod
    def _plus(totals: Mapping[str, Any], more: Any) -> dict[str, Any]:
        return {name: totals[name] + value.item() for name, value in zip(NAMES, more, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evidence:
        """What `to_dict` gave, also after JSON."""
        wealth = {name: tuple(row) for name, row in values["log_wealth"].items()}
        totals = {name: Total(**values[name]) for name in ("all", "seed_free")}
        return cls(**{**values, "log_wealth": wealth, **totals})


def start(alpha: float = 1e-3) -> Evidence:
    """A stream of which nothing has been seen: its e-value is 1. Raises ValueError unless 0 < alpha < 1."""
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}; it is a probability between 0 and 1")
    wealth = (log_start_prior(0),) * len(ODDS)
    return Evidence(
        alpha=alpha,
        log_wealth=dict.fromkeys(NAMES, wealth),
        counts=dict.fromkeys(NAMES, 0),
        sums=dict.fromkeys(NAMES, 0.0),
        bounds=dict.fromkeys(NAMES, 0.0),
    )


def replay(
    audits: Iterable[Scores], band: Band, *, alpha: float = 1e-3, detectors: Iterable[str] = NAMES
) -> Evidence:
    """Evidence of audits from the start; the same number as from updates one by one."""
    evidence, detectors = start(alpha), tuple(detectors)
    for scores in audits:
        evidence = evidence.update(scores, band, detectors)
    return evidence


def confidence_sequence(
    total: float, count: float, *, alpha: float = 0.05, prior: tuple[float, float] = (0.5, 0.5)
) -> tuple[float, float]:
    """Means p of numbers in [0, 1] that their sum does not refute, at all times at once with probability 1 − α.

    Beta-binomial mixture (Robbins 1970; Howard, Ramdas, McAuliffe & Sekhon 2021, Ann. Stat. 49:2): the p with
    B(a + S, b + n − S)/B(a, b) < p^S (1−p)^(n−S) / α. It is exact for 0/1, and holds for any numbers in [0, 1], as
    the likelihood ratio is convex in them. For dependent tokens divide both arguments by the design effect.

    Args:
        total: S, between 0 and `count`.
        count: n; 0 gives (0, 1).
        alpha: error probability.
        prior: a, b of the mixture; (1/2, 1/2) is Jeffreys'.
    """
    if count <= 0:
        return 0.0, 1.0
    (a, b), misses = prior, count - total
    mixture = float(betaln(a + total, b + misses) - betaln(a, b)) + math.log(alpha)

    def surplus(p: float) -> float:
        return mixture - total * math.log(p) - misses * math.log1p(-p)

    edge, centre = 1e-15, min(max(total / count, 1e-12), 1 - 1e-12)
    low = brentq(surplus, edge, centre) if surplus(edge) > 0 else 0.0
    high = brentq(surplus, centre, 1 - edge) if surplus(1 - edge) > 0 else 1.0
    return float(low), float(high)
