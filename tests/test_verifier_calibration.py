"""Bands: what they tolerate, what they refuse, how they travel, and that the held-out half is really held out."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simulated import SAMPLING, faulty, fitted, flat_band, honest

from verifier.band import SHIPPED, Band, distribution
from verifier.calibration import (
    PRIOR_CREDIBILITY,
    PRIOR_SEQUENCES,
    TOLERANCE,
    calibrate,
    false_positives,
    fit,
    margin_cuts,
    spread_of_answers,
)
from verifier.detectors import BY_NAME, DETECTORS, NAMES, SequenceScores, statistics
from verifier.errors import InputError
from verifier.sampling_params import SamplingParams


def test_infinite_margins_do_not_move_the_cuts_and_a_perfect_reference_still_has_some():
    zeros = np.zeros(1000, np.float32)
    margin = np.concatenate([np.linspace(0, 1, 900), np.full(100, np.inf)]).astype(np.float32)
    cuts = margin_cuts([SequenceScores(margin == 0, margin, zeros, zeros, zeros.astype(int))])
    assert cuts.margin == pytest.approx(0.999, abs=1e-3)
    assert cuts.tail == pytest.approx(0.997, abs=1e-3)
    perfect = margin_cuts([SequenceScores(zeros == 0, zeros, zeros, zeros, zeros.astype(int))])
    assert perfect.margin == perfect.tail == 0.05


def test_every_honest_mean_is_tolerated_and_rates_by_more_than_their_confidence_bound():
    band = fitted()
    for detector in DETECTORS:
        assert band.honest[detector.name] < band.typical[detector.name] < 1
    total = band.honest["support"] * band.tokens
    bound = stats.beta.ppf(0.95, total + 1, band.tokens - total)
    assert band.typical["support"] >= (1 + TOLERANCE) * bound - 1e-9


def test_what_is_tolerated_follows_the_entropy():
    bounds = fitted().tolerated["mismatch"]
    assert list(bounds) == sorted(bounds)
    assert bounds[2] > 2 * bounds[0]


def answers_at_levels(rng: np.random.Generator, variance: float, count: int = 400) -> list[np.ndarray]:
    """Statistics of 200 tokens each, of rate 5 % times a gamma-distributed level with mean 1 and this variance."""
    levels = rng.gamma(1 / variance, variance, count) if variance else np.ones(count)
    return [(rng.random((200, 1)) < 0.05 * level) * np.ones(len(NAMES)) for level in levels]


@pytest.mark.parametrize("variance", [0.0, 0.1, 0.5])
def test_the_credibility_is_that_of_the_levels_shrunk_to_its_prior(variance):
    """In closed form: sums of 10 events spread by 10 · variance more; the mean of that and the prior, weighted."""
    found = answers_at_levels(np.random.default_rng(0), variance)
    credibility, effect = spread_of_answers(found, [np.zeros(200, np.intp)] * 400)
    prior = 10 / PRIOR_CREDIBILITY[0]
    excess = (400 * 10 * variance + PRIOR_SEQUENCES * prior) / (400 + PRIOR_SEQUENCES)
    assert effect[0] - 1 == pytest.approx(excess, abs=0.15 * (1 + excess))
    assert credibility[0] == pytest.approx(10 / (effect[0] - 1), rel=0.1)


def test_the_bound_of_smaller_events_is_that_of_their_number():
    """Compound Poisson: with N events of size s where E were expected, K·s + N·s over K·s + E·s is (K + N)/(K + E)."""
    size, level = 0.25, 6.0
    band = flat_band(credibility=dict.fromkeys(NAMES, level * size), tolerated=dict.fromkeys(NAMES, (0.02 * size,)))
    zeros, flags = np.zeros(5, np.float32), np.array([True, True, False, True, False])
    margin = np.where(flags, size * band.cuts.margin, 0).astype(np.float32)
    scores = SequenceScores(~flags, margin, zeros, zeros, zeros.astype(int))
    bounds = band.bounds_within(statistics(scores, band.cuts), zeros)[:, NAMES.index("margin")]
    events, expected = np.array([0, 1, 2, 2, 3]), 0.02 * np.arange(5)
    assert bounds == pytest.approx(0.02 * size * (level + events) / (level + expected))


def test_a_rare_detector_takes_the_mismatches_credibility_unless_its_own_spread_is_clearly_larger():
    rng = np.random.default_rng(1)
    found = answers_at_levels(rng, 0.0)
    for scores in found:
        scores[:, NAMES.index("support")] = rng.random(200) < 0.002
        scores[:, NAMES.index("margin_tail")] = 0.0
        scores[:, NAMES.index("margin")] = scores[:, 0] * rng.choice([0.2, 0.6], 200)
        scores[:, NAMES.index("ending")] = 0.0
    found[7][:, NAMES.index("margin_tail")] = 1.0
    credibility, _ = spread_of_answers(found, [np.zeros(200, np.intp)] * 400)
    known = dict(zip(NAMES, credibility, strict=True))
    assert known["support"] == known["ending"] == known["mismatch"]
    assert known["margin"] == pytest.approx(known["mismatch"] * (0.2**2 + 0.6**2) / (0.2 + 0.6), rel=0.05)
    assert known["margin_tail"] < known["mismatch"] / 100


def test_the_bound_within_an_answer_is_the_mean_of_a_gamma_poisson_count():
    """Negative binomial by hand: with S events where M were expected, the next one's mean is m·(K + S)/(K + M)."""
    band = flat_band(credibility=dict.fromkeys(NAMES, 5.0))
    zeros = np.zeros(4, np.float32)
    flags = np.array([True, False, True, True])
    scores = SequenceScores(~flags, np.where(flags, 1e-6, 0).astype(np.float32), zeros, zeros, zeros.astype(int))
    bounds = band.bounds_within(statistics(scores, band.cuts), zeros)[:, NAMES.index("mismatch")]
    events, expected = np.array([0, 1, 1, 2]), 0.02 * np.arange(4)
    assert bounds == pytest.approx(0.02 * (5 + events) / (5 + expected))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_the_bound_within_an_answer_is_never_below_the_bands(flags):
    band, flags = fitted(), np.array(flags)
    zeros = np.zeros(len(flags), np.float32)
    margin = np.where(flags, np.inf, 0).astype(np.float32)
    scores = SequenceScores(~flags, margin, zeros - 1, zeros + 1, zeros.astype(int))
    within = band.bounds_within(statistics(scores, band.cuts), scores.entropy)
    assert (within >= band.bounds(scores.entropy) - 1e-12).all()
    assert (within < 1).all()


@pytest.mark.parametrize("name", ["mismatch", "cross_entropy_high"])
def test_the_bound_on_average_is_the_integral_of_those_within(name):
    band = flat_band(credibility=dict.fromkeys(NAMES, 30.0))
    mean, tokens = 0.6, 4000
    tolerated, pull = (0.02, 0.02) if name == "mismatch" else (0.5, 1.0)
    n = np.arange(tokens)
    exact = (tolerated + pull * n * (mean - tolerated) / (30 + n * pull)).mean()
    assert band.bound_on_average(name, mean, tokens) == pytest.approx(exact, rel=1e-2)
    assert band.bound_on_average(name, 0.01, tokens) == tolerated
    assert band.design_effect("mismatch", 300) == pytest.approx(1 + 300 * 0.02 / 30)


def test_the_held_out_half_is_the_other_half():
    good, bad = honest(1, 20), faulty(2, 20, "4-bit weights")
    mixed = [scores for pair in zip(good, bad, strict=True) for scores in pair]
    band = calibrate(mixed, sampling=SAMPLING, scope={"reference": "demo"})
    assert dataclasses.replace(band, held_out=None) == fit(good, sampling=SAMPLING, scope={"reference": "demo"})
    assert band.held_out.blocks == 20
    assert band.held_out.alarms >= 18


def test_no_alarm_in_n_blocks_is_said_to_prove_little():
    held_out = calibrate(honest(3, 60), sampling=SAMPLING).held_out
    assert (held_out.alarms, held_out.blocks, held_out.low) == (0, 30, 0.0)
    assert held_out.high == pytest.approx(1 - 0.025 ** (1 / 30))
    nothing = false_positives([], SHIPPED)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


@pytest.mark.parametrize(("count", "tokens"), [(3, 400), (20, 5), (0, 10)])
def test_too_little_is_refused_with_a_way_out(count, tokens):
    with pytest.raises(InputError, match="record at least 16 with 1000 tokens"):
        fit(honest(4, count, tokens))


@pytest.mark.parametrize("band", [SHIPPED, fitted()], ids=["shipped", "fitted"])
def test_a_band_survives_json(band):
    assert Band.from_dict(json.loads(json.dumps(band.to_dict()))) == band


def test_expectations_are_judged_only_under_the_calibrations_own_sampling():
    band = fitted()
    rates = {name for name, detector in BY_NAME.items() if detector.rate}
    assert set(band.applicable(SAMPLING)) == set(NAMES)
    assert set(band.applicable({"temperature": 0.7})) == set(band.applicable(None)) == rates
    assert set(SHIPPED.applicable(None)) == rates
    assert not SHIPPED.calibrated


def test_the_shipped_band_is_wider_than_a_calibrated_one():
    assert all(SHIPPED.typical[n] > fitted().typical[n] for n in ("mismatch", "support"))
    assert false_positives(honest(5, 30), SHIPPED).alarms == 0


def test_sampling_parameters_that_mean_the_same_are_the_same_distribution():
    assert distribution(SamplingParams(top_k=-1)) == distribution(SamplingParams(top_k=0))
    assert distribution(SamplingParams(top_p=0.9)) != distribution(SamplingParams())
    assert distribution(SamplingParams(logit_bias={3: 1.0})) is None


def test_bounds_of_many_streams_keep_their_axes():
    band, pair = fitted(), honest(6, 2)
    both = np.stack([scores.entropy for scores in pair])
    assert np.array_equal(band.bounds(both)[1], band.bounds(pair[1].entropy))
    assert statistics(pair[0], band.cuts).shape == band.bounds(pair[0].entropy).shape
