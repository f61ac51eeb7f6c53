"""Bands: what they tolerate, what they refuse, how they travel, and that the held-out half is really held out."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats
from simulated import SAMPLING, faulty, fitted, honest

from verifier.band import SHIPPED, Band, distribution
from verifier.calibration import TOLERANCE, calibrate, design_effects, false_positives, fit, margin_cuts
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


def test_the_design_effect_is_one_for_independent_tokens_and_the_length_for_copies():
    rng = np.random.default_rng(0)
    alone = [rng.random((200, len(NAMES))) for _ in range(400)]
    copies = [np.repeat(rng.random((1, len(NAMES))), 200, axis=0) for _ in range(400)]
    classes = [np.zeros(200, np.intp)] * 400
    assert design_effects(alone, classes) == pytest.approx(1.1, abs=0.15)
    assert design_effects(copies, classes) == pytest.approx(200.0, rel=1e-6)


def test_a_rare_detectors_design_effect_is_at_least_what_the_mismatches_imply():
    for seed in (100, 101, 102):
        band = fitted(seed)
        excess = band.design_effect["mismatch"] - 1
        for name in ("margin", "margin_tail", "support"):
            share = band.honest[name] / band.honest["mismatch"]
            assert band.design_effect[name] >= 1 + excess * share - 1e-9


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
