"""E-processes against closed forms, against simulated honest streams, and through JSON."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from simulated import faulty, fitted, flat_band, honest

from bench.evidence import ever_deviates, weigh
from verifier.detectors import DETECTORS, NAMES, SEED_FREE, SequenceScores
from verifier.evidence import (
    LOG_SHARES,
    ODDS,
    ODDS_PRIOR,
    Evidence,
    confidence_sequence,
    log_bets,
    log_start_prior,
    replay,
    start,
)


def mismatches(flags) -> SequenceScores:
    """Tokens that are ordinary but for near-tie mismatches."""
    flags = np.array(flags, bool)
    zeros = np.zeros(len(flags), np.float32)
    return SequenceScores(~flags, np.where(flags, 1e-6, 0).astype(np.float32), zeros - 1, zeros + 1, zeros.astype(int))


def test_a_bet_on_a_rate_is_the_likelihood_ratio_of_its_odds():
    bets = np.exp(log_bets(mismatches([True, False]), flat_band()))[:, NAMES.index("mismatch")]
    for k, odds in enumerate(ODDS):
        q = odds * 0.02 / (0.98 + odds * 0.02)
        assert bets[:, k] == pytest.approx([q / 0.02, (1 - q) / 0.98])


@given(st.floats(0.001, 0.999), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_no_bet_gains_on_average_where_the_mean_is_tolerated(bound, values):
    """Any distribution on the margins with mean ≤ the bound; the bet is linear, so its mean is that of its mean."""
    band = flat_band(tolerated=dict.fromkeys(NAMES, (bound,)))
    margins = np.array(values) * min(1.0, bound / max(np.mean(values), 1e-9))
    zeros = np.zeros(len(values), np.float32)
    scores = SequenceScores(margins == 0, margins, zeros, zeros, zeros.astype(int))
    assert (np.exp(log_bets(scores, band))[:, NAMES.index("margin")].mean(0) <= 1 + 1e-9).all()


def test_the_priors_are_probabilities():
    assert np.exp(LOG_SHARES).sum() == pytest.approx(1.0)
    starts = sum(math.exp(log_start_prior(j)) for j in range(100_000))
    assert starts == pytest.approx(1.0, abs=1e-5)
    assert sum(ODDS_PRIOR) == pytest.approx(1.0)


def test_nothing_seen_is_an_e_value_of_one():
    assert start().all.log_e == 0.0
    assert [start().log_e_of(name) for name in NAMES] == pytest.approx([0.0] * len(NAMES))
    assert start().update(mismatches([]), flat_band()) == start()


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_alpha_is_a_probability(alpha):
    with pytest.raises(ValueError, match="between 0 and 1"):
        start(alpha)


def test_two_sequences_by_hand():
    """One detector bets; the e-value is the weighted sum over odds and starts, written out."""
    flags = [[True, False, True], [True, True]]
    evidence = replay([mismatches(row) for row in flags], flat_band(), detectors=["mismatch"])
    first, second = (
        sum(p * math.prod((1 + (o - 1) * x) / (1 + (o - 1) * 0.02) for row in rows for x in row)
            for o, p in zip(ODDS, ODDS_PRIOR, strict=True))
        for rows in (flags, flags[1:])
    )  # fmt: skip
    weight = DETECTORS[0].weight
    alone = 0.75 * first + second / 8 + 1 / 8
    assert math.exp(evidence.all.log_e) == pytest.approx(weight * alone + 1 - weight)
    assert evidence.log_e_of("mismatch") == pytest.approx(math.log(0.75 * first + second / 8 + 1 / 24 + 1 / 12))
    assert math.exp(evidence.seed_free.log_e) == pytest.approx(
        sum(detector.weight for detector in DETECTORS if detector.name in SEED_FREE)
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=30), max_size=6))
def test_the_state_survives_json_and_replays_to_the_same_number(flags):
    band, evidence = flat_band(), start()
    for row in flags:
        evidence = Evidence.from_dict(json.loads(json.dumps(evidence.to_dict()))).update(mismatches(row), band)
    assert evidence == replay([mismatches(row) for row in flags], band)


def test_the_decision_falls_in_the_middle_of_a_sequence_and_stays():
    honest_rows, bad = [False] * 100, [True] * 100
    evidence = replay([mismatches(honest_rows), mismatches(bad), mismatches([False] * 5000)], flat_band())
    assert 100 < evidence.all.decided_at < 120
    assert evidence.all.log_e < evidence.all.peak
    assert evidence.tokens == 5200
    assert evidence.seed_free.decided_at is None


def test_seed_free_evidence_decides_by_itself():
    tokens = np.zeros(200, np.float32)
    outside = SequenceScores(tokens > 0, tokens + np.inf, tokens - 1, tokens + 1, tokens.astype(int))
    evidence = replay([outside], flat_band())
    assert evidence.all.decided_at <= evidence.seed_free.decided_at < 20
    unseeded = replay([mismatches([True] * 200)], flat_band())
    assert unseeded.all.decided_at
    assert unseeded.seed_free.decided_at is None


def test_detectors_that_are_not_used_neither_bet_nor_count():
    evidence = replay([mismatches([True] * 50)], flat_band(), detectors=["support"])
    assert evidence.counts["mismatch"] == evidence.sums["mismatch"] == 0
    assert evidence.counts["support"] == 50
    assert evidence.all.peak == 0.0


def test_a_change_after_a_long_honest_life_costs_only_the_logarithm_of_that_life():
    band = fitted()
    past = replay(honest(1, 100), band)
    assert past.all.decided_at is None
    changed = past
    for scores in faulty(2, 5, "4-bit weights"):
        changed = changed.update(scores, band)
    assert changed.all.decided_at - past.tokens < 250


def test_many_streams_at_once_are_weighed_like_one():
    band = fitted()
    streams = [faulty(3, 3, "fp8 weights"), honest(4, 3)]
    wealth = np.full((2, len(NAMES), len(ODDS)), log_start_prior(0))
    hit = np.zeros(2, bool)
    for j in range(3):
        pair = [stream[j] for stream in streams]
        batch = SequenceScores(*(np.stack([getattr(s, f) for s in pair]) for f in SequenceScores.__annotations__))
        wealth, hits = weigh(wealth, batch, band, NAMES, j, 1e-3)
        hit |= hits
    for row, found, stream in zip(wealth, hit, streams, strict=True):
        single = replay(stream, band)
        assert found == (single.all.decided_at is not None)
        assert np.allclose(row, [single.log_wealth[name] for name in NAMES])


@pytest.mark.parametrize("null", ["clustered", "long", "edge"])
def test_honest_streams_with_dependent_tokens_are_rarely_ever_accused(null):
    """The benchmark's null in small, at an α large enough to see: P(more than 22 of 200) < 1e-3 were the rate 0.05."""
    counts = ever_deviates(7, 200, 4000, null, 0.05)
    assert counts["ever_deviates"] <= stats.binom.isf(1e-3, 200, 0.05)


@pytest.mark.parametrize(("total", "count"), [(0, 50), (50, 50), (7, 100), (2.5, 40)])
def test_the_confidence_sequence_solves_its_equation(total, count):
    low, high = confidence_sequence(total, count)
    assert 0 <= low <= total / count <= high <= 1
    assert (low == 0) == (total == 0)
    assert (high == 1) == (total == count)
    mixture = special.beta(total + 0.5, count - total + 0.5) / special.beta(0.5, 0.5)
    for p in {low, high} - {0.0, 1.0}:
        assert mixture / (p**total * (1 - p) ** (count - total)) == pytest.approx(20, rel=1e-6)


def test_no_tokens_leave_the_mean_open():
    assert confidence_sequence(0, 0) == (0.0, 1.0)


def test_confidence_sequences_hold_at_all_times_at_once():
    """At most 5 % of streams may ever lose their true rate; intervals for a fixed time lose several times as many."""
    draws = np.cumsum(np.random.default_rng(0).random((100, 1000)) < 0.05, axis=1)
    times = range(4, 1000, 15)
    lost = sum(
        any(not low <= 0.05 <= high for low, high in (confidence_sequence(row[t], t + 1) for t in times))
        for row in draws
    )
    assert lost <= stats.binom.isf(1e-3, 100, 0.05)
