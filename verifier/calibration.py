"""Calibration: from honest sequences to a band, and how often that band then accuses honest ones. Pure.

The sequence is the unit throughout: sequences are split into a fitted and a held-out half, and the spread of whole
sequences gives what answers may differ from each other by (`Band.credibility`). The tolerated mean of each detector
and entropy class is an upper confidence bound of the honest mean, times 1 + tolerance for rates or plus a small slack
for expectations; the confidence covers the calibration's size, the tolerance what differs between prompts, batches
and days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from verifier.band import ENTROPY_EDGES, HIGHEST_BOUND, IS_RATE, Band, FalsePositives
from verifier.detectors import ENDING, NAMES, Cuts, Floats, Scores, statistics
from verifier.errors import InputError
from verifier.evidence import replay

CUT_PERCENTILE = 99.9
"""Best for quantization on three published models (arXiv 2511.20621 §5.3)."""
TAIL_PERCENTILE = 99.7
"""Leaves some twenty tokens of a small calibration in the tail, enough to bound their rate within half."""
LOWEST_CUT = 0.05
"""Logits; about one rounding step of a bfloat16 logit. A reference that agrees to the bit would cut at 0."""
TOLERANCE = 0.1
SLACK = 0.005
"""Of a statistic's range: 0.04 nats of cross-entropy, 0.06 bits of rank."""
CONFIDENCE = 0.95
PRIOR_EVENTS = 5.0
PRIOR_CREDIBILITY: Floats = np.where(IS_RATE, 25.0, 400.0)
"""Answers' own rates differ by a fifth, their mean cross-entropies by a twentieth of a token's spread."""
PRIOR_SEQUENCES = 16
FEWEST_SEQUENCES = 8
FEWEST_TOKENS = 500

Classes = NDArray[np.intp]


def calibrate(
    honest: Sequence[Scores],
    *,
    alpha: float = 1e-3,
    tolerance: float = TOLERANCE,
    sampling: Mapping[str, float] | None = None,
    scope: Mapping[str, str] | None = None,
) -> Band:
    """The band of every other sequence, with its false positives on the rest.

    Args:
        honest: scores of a trusted run, one per sequence, each from its own prompt.
        alpha: of the streams whose false positives are counted.
        tolerance: by what share rates may exceed the upper confidence bound of the honest ones.
        sampling: parameters that the run was sampled with; None leaves out the detectors that need them.
        scope: what the run was made on.

    Raises:
        InputError: too few sequences or tokens to say anything.
    """
    fitted, held_out = honest[::2], honest[1::2]
    band = fit(fitted, tolerance=tolerance, sampling=sampling, scope=scope)
    return Band(**{**vars(band), "held_out": false_positives(held_out, band, alpha=alpha)})


def fit(
    honest: Sequence[Scores],
    *,
    tolerance: float = TOLERANCE,
    sampling: Mapping[str, float] | None = None,
    scope: Mapping[str, str] | None = None,
) -> Band:
    """The band of these sequences; arguments and errors as for `calibrate`."""
    honest = [scores for scores in honest if len(scores.entropy)]
    tokens = sum(len(scores.entropy) for scores in honest)
    if len(honest) < FEWEST_SEQUENCES or tokens < FEWEST_TOKENS:
        raise InputError(
            f"{len(honest)} honest sequences with {tokens} tokens are too few to fit a band: record at least "
            f"{2 * FEWEST_SEQUENCES} with {2 * FEWEST_TOKENS} tokens"
        )
    cuts = margin_cuts(honest)
    found = [statistics(scores, cuts) for scores in honest]
    classes = [np.digitize(scores.entropy, ENTROPY_EDGES) for scores in honest]
    every, where = np.concatenate(found), np.concatenate(classes)
    credibility, effect = spread_of_answers(found, classes)
    honest_means, bounds = every.mean(0), _bounds(every, where, effect, tolerance)
    endings = np.array([x[-1, ENDING] for x in found])
    honest_means[ENDING] = endings.mean()
    bounds[:, ENDING] = (1 + tolerance) * _ceiling(endings.sum(), np.float64(len(endings)))
    return Band(
        cuts=cuts,
        tolerated={name: tuple(map(float, column)) for name, column in zip(NAMES, bounds.T, strict=True)},
        honest=_named(honest_means),
        typical=_named(bounds[where].mean(0)),
        credibility=_named(credibility),
        sequences=len(honest),
        tokens=tokens,
        sampling=sampling,
        scope=scope or {},
    )


def margin_cuts(honest: Sequence[Scores]) -> Cuts:
    """Honest percentiles of the finite margins (infinite ones would make the cuts depend on the filters)."""
    margins = np.concatenate([scores.margin for scores in honest])
    finite = margins[np.isfinite(margins)]
    cut, tail = np.percentile(finite, (CUT_PERCENTILE, TAIL_PERCENTILE)) if len(finite) else (0.0, 0.0)
    return Cuts(margin=max(LOWEST_CUT, float(cut)), tail=max(LOWEST_CUT, float(tail)))


def spread_of_answers(found: Sequence[Floats], classes: Sequence[Classes]) -> tuple[Floats, Floats]:
    """K and the design effect of each detector: how far sequence sums spread beyond what their tokens explain.

    With V the volume of a sequence (its expected events, or its tokens), the variance of its sum is 1 + V/K times
    that of independent tokens (Kish's design effect). What is measured of V/K is shrunk to that of PRIOR_CREDIBILITY,
    which weighs as much as PRIOR_SEQUENCES. Rare detectors take the mismatches' K, as answers whose noise differs by a
    factor differ so in all rates, unless their own spread is larger by more than its standard error. Events that count
    for less than 1, as margins do, spread less by themselves: K is in units of their mean size, E[x²]/E[x].

    Args:
        found: per sequence the statistics, float64[n, detectors].
        classes: per sequence the entropy class of each token; class means are taken out first.
    """
    every = np.concatenate(found)
    means = _class_means(every, np.concatenate(classes))
    rests = [x - means[k] for x, k in zip(found, classes, strict=True)]
    within = np.maximum(np.sum([(rest**2).sum(0) for rest in rests], axis=0), 1e-12)
    excess = np.sum([rest.sum(0) ** 2 for rest in rests], axis=0) / within - 1.0
    volumes = np.array([np.where(IS_RATE, means[k].sum(0), len(k)) for k in classes])
    volume = np.maximum((volumes**2).sum(0) / np.maximum(volumes.sum(0), 1e-12), 1e-9)
    rarity = np.where(IS_RATE, 1.0 / np.maximum(volumes.mean(0), 1e-9), 0.0)
    clearly = excess - np.sqrt((2.0 + rarity) / len(found))
    shrunk = len(found) * np.maximum(excess, 0.0) + PRIOR_SEQUENCES * volume / PRIOR_CREDIBILITY
    credibility = volume * (len(found) + PRIOR_SEQUENCES) / shrunk
    size = np.maximum((every**2).sum(0), 1e-9) / np.maximum(every.sum(0), 1e-9)
    own = np.where(clearly > 0, volume / np.where(clearly > 0, clearly, 1.0), np.inf)
    shared = np.minimum(credibility[NAMES.index("mismatch")] * size, own)
    credibility = np.where(IS_RATE, shared, credibility)
    return credibility, 1.0 + volume / credibility


def false_positives(honest: Sequence[Scores], band: Band, *, alpha: float = 1e-3) -> FalsePositives:
    """How many sequences, each a stream of its own, the band calls deviating; and the rate's 95 % interval."""
    detectors = band.applicable(band.sampling)
    blocks = [scores for scores in honest if len(scores.entropy)]
    ends = [replay([scores], band, alpha=alpha, detectors=detectors) for scores in blocks]
    alarms = sum(end.all.decided_at is not None for end in ends)
    if not blocks:
        return FalsePositives(0, 0, 0.0, 1.0)
    interval = stats.binomtest(alarms, len(blocks)).proportion_ci(0.95)
    return FalsePositives(alarms, len(blocks), float(interval.low), float(interval.high))


def _class_means(x: Floats, where: Classes) -> Floats:
    """Mean of each entropy class, float64[classes, detectors]; that of all tokens for an empty class."""
    rows = [x[where == k] for k in range(len(ENTROPY_EDGES) + 1)]
    return np.array([row.mean(0) if len(row) else x.mean(0) for row in rows])


def _bounds(x: Floats, where: Classes, effect: Floats, tolerance: float) -> Floats:
    """Tolerated means, float64[classes, detectors], from the statistics x of all tokens and their classes."""
    sizes = np.bincount(where, minlength=len(ENTROPY_EDGES) + 1)[:, None].astype(np.float64)
    rates = (1 + tolerance) * _ceiling(x.sum(0) / effect, len(x) / effect) * _shape(x, where, sizes)
    spread = x.std(0) * np.sqrt(effect / np.maximum(sizes, 1))
    expected = _class_means(x, where) + stats.norm.ppf(CONFIDENCE) * spread + SLACK
    return np.asarray(np.clip(np.where(IS_RATE, rates, expected), 1e-6, HIGHEST_BOUND))


def _ceiling(total: Any, count: Any) -> Floats:
    """Upper confidence bound of a rate (Clopper-Pearson): exact for 0/1, too wide for other numbers in [0, 1]."""
    return np.asarray(stats.beta.ppf(CONFIDENCE, total + 1, np.maximum(count - total, 1e-9)))


def _shape(x: Floats, where: Classes, sizes: Floats) -> Floats:
    """Rate of each entropy class over that of all tokens, with mean 1 over tokens.

    Shrunk to 1 by PRIOR_EVENTS (mean of a gamma-Poisson posterior): a class without an event yet may still have them.
    """
    events = np.array([x[where == k].sum(0) for k in range(len(sizes))])
    ratio = (events + PRIOR_EVENTS) / (sizes * x.mean(0) + PRIOR_EVENTS)
    return np.asarray(ratio / ((sizes * ratio).sum(0) / sizes.sum()))


def _named(values: Floats) -> dict[str, float]:
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}
