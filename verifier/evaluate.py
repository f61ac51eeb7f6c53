"""How well verdicts part honest from suspect recordings: false positives, tokens to `deviates`, AUC. Pure.

Prompts are the unit of the split: every other prompt of the honest files calibrates, and no suspect answer to one of
these prompts is judged. Batches for AUC hold whole answers in random order, cut at n tokens; n is at most a tenth of
the smaller pool, since batches that hold most of their pool are all alike and make any score look sharp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from verifier.band import Band
from verifier.detectors import NAMES, Floats, SequenceScores, statistics
from verifier.evidence import log_bets, log_start_prior, mix
from verifier.stream_state import AuditedAnswer, StreamState
from verifier.verdict import Verdict

MOST_STREAMS = 64
BATCHES = 1000
BATCH_TOKENS = (10, 30, 100, 300, 1000, 3000, 10_000)
LARGEST_SHARE = 0.1
LOW_FALSE_POSITIVES = 0.01


@dataclass(frozen=True)
class Answer:
    """One recorded answer, scored."""

    prompt: tuple[int, ...]
    audited: AuditedAnswer

    @property
    def scores(self) -> SequenceScores:
        """Of all its tokens."""
        assert self.audited.scores is not None
        return self.audited.scores


@dataclass(frozen=True)
class Separation:
    """Of batches of n tokens: areas under the ROC curve, per n.

    Args:
        auc: of the e-value that verdicts are made of; 0.5 tells nothing apart.
        pauc: its part at false-positive rates up to 1 %, scaled so that 1 is perfect and 0.005 is chance.
        by_detector: AUC of each detector's plain mean.
    """

    auc: dict[str, float] = field(default_factory=dict)
    pauc: dict[str, float] = field(default_factory=dict)
    by_detector: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """One file's answers, judged.

    Args:
        tokens_to_deviates: per stream, starting at each answer (or every few) in turn; None for undecided.
        median_tokens_to_deviates: None where most streams end undecided.
    """

    file: str
    sampler: str
    requests: int
    tokens: int
    exact_match_rate: float
    verdict: Verdict
    tokens_to_deviates: list[int | None]
    separation: Separation = field(default_factory=Separation)

    @property
    def median_tokens_to_deviates(self) -> float | None:
        median = float(np.median([math.inf if n is None else n for n in self.tokens_to_deviates] or [math.inf]))
        return median if math.isfinite(median) else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the verdict's word stands beside the whole of it."""
        values = {**asdict(self), **asdict(self.separation)}
        del values["separation"]
        word, detail = self.verdict.word, self.verdict.to_dict()
        median = self.median_tokens_to_deviates
        return {**values, "verdict": word, "detail": detail, "median_tokens_to_deviates": median}


def split(honest: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    """Answers to every other prompt, to fit a band to, and the rest."""
    order: dict[tuple[int, ...], int] = {}
    for answer in honest:
        order.setdefault(answer.prompt, len(order))
    halves: tuple[list[Answer], list[Answer]] = ([], [])
    for answer in honest:
        halves[order[answer.prompt] % 2].append(answer)
    return halves


def unfitted(answers: Sequence[Answer], fitted: Sequence[Answer]) -> list[Answer]:
    """The answers to prompts that the band was not fitted to; all, where there is no other."""
    known = {answer.prompt for answer in fitted}
    return [answer for answer in answers if answer.prompt not in known] or list(answers)


def judge_file(
    file: str, sampler: str, answers: Sequence[Answer], band: Band, *, alpha: float = 1e-3,
    identified: Mapping[str, Any] | None = None,
) -> Judged:  # fmt: skip
    """The verdict on a file's answers as one stream, and how soon streams that begin elsewhere in it deviate.

    Args:
        file, sampler: their names, for the result.
        identified: what the answers said of their contract, as `StreamState.verdict` takes it.
    """
    state = StreamState.begun(alpha)
    for answer in answers:
        state = state.after(answer.audited, band)
    matches = np.concatenate([answer.scores.exact_match for answer in answers])
    return Judged(
        file=file,
        sampler=sampler,
        requests=len(answers),
        tokens=len(matches),
        exact_match_rate=float(matches.mean()),
        verdict=state.verdict(band, identified),
        tokens_to_deviates=[
            _decided_at(answers, begin, band, alpha)
            for begin in range(0, len(answers), math.ceil(len(answers) / MOST_STREAMS))
        ],
    )


def _decided_at(answers: Sequence[Answer], begin: int, band: Band, alpha: float) -> int | None:
    state = StreamState.begun(alpha)
    for answer in (*answers[begin:], *answers[:begin]):
        state = state.after(answer.audited, band)
        if state.convicted:
            return state.evidence.all.decided_at
        if state.evidence.seed_free.decided_at is not None:
            return state.evidence.seed_free.decided_at
    return None


def separation(
    honest: Sequence[Answer], suspect: Sequence[Answer], band: Band, rng: np.random.Generator
) -> Separation:
    """AUC and pAUC by number of tokens, over batches drawn with `rng`."""
    known = [set(band.applicable(answers[0].audited.sampling)) for answers in (honest, suspect)]
    pools = [_Pool.of(answers, band, known[0] & known[1]) for answers in (honest, suspect)]
    most = LARGEST_SHARE * min(len(pool.means) for pool in pools)
    result = Separation(by_detector={name: {} for name in NAMES})
    for tokens in (n for n in BATCH_TOKENS if n <= most):
        (good, good_means), (bad, bad_means) = (pool.batches(tokens, rng) for pool in pools)
        result.auc[str(tokens)] = auc(good, bad)
        result.pauc[str(tokens)] = partial_auc(good, bad)
        for k, name in enumerate(NAMES):
            result.by_detector[name][str(tokens)] = auc(good_means[:, k], bad_means[:, k])
    return result


def auc(honest: Floats, suspect: Floats) -> float:
    """Probability that a suspect batch scores higher than an honest one, ties counted half (Mann & Whitney 1947)."""
    ranks = rankdata(np.concatenate([honest, suspect]))[len(honest) :]
    return float((ranks.sum() - len(suspect) * (len(suspect) + 1) / 2) / (len(honest) * len(suspect)))


def partial_auc(honest: Floats, suspect: Floats, highest: float = LOW_FALSE_POSITIVES) -> float:
    """Mean true-positive rate over false-positive rates from 0 to `highest`, along the ROC curve with straight ties."""
    levels = np.unique(np.concatenate([honest, suspect]))[::-1]
    false = np.concatenate([[0.0], 1 - np.searchsorted(np.sort(honest), levels) / len(honest)])
    true = np.concatenate([[0.0], 1 - np.searchsorted(np.sort(suspect), levels) / len(suspect)])
    inside = np.searchsorted(false, highest, side="right")
    x = np.append(false[:inside], highest)
    y = np.append(true[:inside], np.interp(highest, false, true) if inside < len(false) else 1.0)
    if inside and false[inside - 1] == highest:
        y[-1] = true[inside - 1]
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / highest)


@dataclass(frozen=True)
class _Pool:
    """Per token the statistics and log bets of a pool of answers, and where each answer's tokens lie."""

    means: Floats
    bets: Floats
    answers: list[np.ndarray[Any, np.dtype[np.intp]]]

    @classmethod
    def of(cls, answers: Sequence[Answer], band: Band, detectors: set[str]) -> _Pool:
        scores = [answer.scores for answer in answers if len(answer.scores.entropy)]
        used = np.isin(NAMES, tuple(detectors))
        bets = np.concatenate([log_bets(one, band) for one in scores]) * used[:, None]
        ends = np.cumsum([len(one.entropy) for one in scores])
        rows = np.split(np.arange(len(bets)), ends[:-1])
        return cls(np.concatenate([statistics(one, band.cuts) for one in scores]), bets, rows)

    def batches(self, tokens: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """ln E [BATCHES] and the detectors' means [BATCHES, detectors] of random batches of n tokens."""
        wealth, means = [], []
        for _ in range(BATCHES):
            chosen = self._draw(tokens, rng)
            wealth.append(self.bets[chosen].sum(0) + log_start_prior(0))
            means.append(self.means[chosen].mean(0))
        return mix(np.array(wealth), 1), np.array(means)

    def _draw(self, tokens: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.intp]]:
        parts: list[np.ndarray[Any, np.dtype[np.intp]]] = []
        missing = tokens
        for number in rng.permutation(len(self.answers)):
            rows = self.answers[number]
            begin = int(rng.integers(0, max(1, len(rows) - missing + 1)))
            parts.append(rows[begin : begin + missing])
            missing -= len(parts[-1])
            if not missing:
                break
        return np.concatenate(parts)
