"""Verdicts: every word with its reasons, on simulated streams; test_verifier_golden_verdicts.py has real ones."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simulated import SAMPLING, faulty, fitted, flat_band, honest

from verifier.band import SHIPPED, Band
from verifier.calibration import TOLERANCE
from verifier.detectors import SEED_FREE, SequenceScores
from verifier.drift import watch
from verifier.evidence import replay, start
from verifier.faults import FAULTS, expected_means, growth, nearest, power, price, tokens_for
from verifier.verdict import judge


@pytest.fixture(scope="module")
def band() -> Band:
    return fitted()


def test_a_deviation_is_said_with_its_effects_and_survives_json(band):
    evidence = replay(faulty(1, 10, "4-bit weights"), band)
    verdict = judge(evidence, band, identified=True, skipped={"no_seed": 2})
    assert (verdict.word, verdict.tokens, verdict.requests) == ("deviates", 2000, 10)
    assert verdict.decided_at == evidence.all.decided_at < 200
    assert verdict.p_value <= verdict.alpha
    assert verdict.tokens_to_decision is None
    mismatch = next(effect for effect in verdict.effects if effect.detector == "mismatch")
    assert mismatch.tolerated < mismatch.low < mismatch.mean < mismatch.high
    assert mismatch.mean == np.mean([~scores.exact_match for scores in faulty(1, 10, "4-bit weights")])
    assert json.loads(json.dumps(verdict.to_dict()))["skipped"] == {"no_seed": 2}


def test_honest_streams_are_consistent_once_the_faults_would_have_shown(band):
    few = judge(replay(honest(2, 2), band), band, identified=True)
    assert (few.word, few.reasons) == ("inconclusive", ("too_few_requests",))
    short = judge(replay(honest(2, 6, tokens=20), band), band, identified=True)
    assert (short.word, short.reasons) == ("inconclusive", ("too_few_tokens",))
    many = judge(replay(honest(2, 30), band), band, identified=True)
    assert (many.word, many.reasons) == ("consistent", ("within_band",))
    assert all(entry.power >= 0.95 for entry in many.power if entry.fault in {"4-bit weights", "fp8 weights"})
    assert many.hint is None


def test_answers_judged_by_seed_free_detectors_alone_add_no_power(band):
    evidence = replay(honest(2, 2), band)
    before = judge(evidence, band, identified=True)
    for scores in honest(11, 40):
        evidence = evidence.update(scores, band, SEED_FREE)
    after = judge(evidence, band, identified=True)
    assert after.tokens == 8400
    assert [entry.power for entry in after.power] == pytest.approx([entry.power for entry in before.power])


def test_growing_evidence_is_inconclusive_and_says_how_much_is_missing(band):
    stream = faulty(3, 20, "fp8 weights", tokens=10)
    for count in range(1, 20):
        verdict = judge(replay(stream[:count], band), band, identified=True)
        if verdict.reasons == ("evidence_growing",):
            break
    assert verdict.word == "inconclusive"
    assert 1 <= verdict.tokens_to_decision < 500


def test_without_an_identified_sampler_seeded_detectors_accuse_nobody(band):
    tokens = replay(faulty(4, 10, "fp8 weights"), band)
    assert tokens.all.decided_at is not None
    verdict = judge(tokens, band, identified=False, unidentified_reason="sampler_changed")
    assert (verdict.word, verdict.reasons) == ("unsupported", ("sampler_changed",))
    assert "seed-free detectors only" in " ".join(verdict.assumptions)


def test_seed_free_evidence_accuses_under_any_sampler(band):
    verdict = judge(replay(faulty(5, 30, "smaller model"), band), band, identified=False)
    assert verdict.word == "deviates"
    assert verdict.reasons[:2] == ("seed_free_evidence", "sampler_unknown")
    assert not {"mismatch", "margin", "margin_tail"} & set(verdict.reasons)


def test_nothing_replayable_is_unsupported_with_the_commonest_reason_first(band):
    skipped = {"tool_calls": 1, "no_seed": 5, "empty_answer": 1}
    verdict = judge(start(), band, identified=True, skipped=skipped)
    assert (verdict.word, verdict.reasons) == ("unsupported", ("no_seed", "empty_answer", "tool_calls"))
    nothing = judge(start(), band, identified=True)
    assert (nothing.word, nothing.reasons, nothing.e_value) == ("inconclusive", ("no_data",), 1.0)
    assert nothing.power[0].tokens_for_90_percent < 200


def test_other_prompt_tokens_and_a_drift_alarm_are_said_beside_the_word(band):
    drift = watch()
    for scores in faulty(6, 3, "4-bit weights"):
        drift = drift.update(scores, band)
    verdict = judge(replay(honest(7, 30), band), band, identified=True, prompts_differ=3, drift=drift)
    assert verdict.word == "consistent"
    assert verdict.reasons == ("within_band", "prompt_tokens_differ", "drift_alarm")
    accused = judge(replay(faulty(8, 10, "4-bit weights"), band), band, identified=True, prompts_differ=3)
    assert "template" in accused.hint


def test_assumptions_are_told():
    told = " ".join(judge(replay(honest(9, 1), SHIPPED), SHIPPED, identified=True, retokenized=True).assumptions)
    assert "uncalibrated" in told
    assert "found from the text" in told
    assert "calibrated on given ones" not in told
    band = flat_band(scope={"reference": "demo", "hardware": "H100"})
    told = " ".join(judge(replay(honest(9, 1), band), band, identified=True, retokenized=True).assumptions)
    assert "found from the text, not given by the provider; the band was calibrated on given ones" in told
    evidence = replay(honest(9, 1), band, detectors=band.applicable({"temperature": 0.7}))
    told = " ".join(judge(evidence, band, identified=True).assumptions)
    assert "reference demo, hardware H100" in told
    assert "not judged, as sampling differs from the calibration's: cross_entropy_high" in told


@pytest.mark.parametrize(("fault", "tokens"), [("4-bit weights", 60), ("fp8 weights", 300), ("temperature +0.1", 600)])
def test_no_more_power_is_claimed_than_simulation_finds(band, fault, tokens):
    """The claim is of the best bet alone at a fixed time, while the mixture may stop early."""
    chosen = next(known for known in FAULTS if known.name == fault)
    said = power(chosen, band, tokens, alpha=1e-3, detectors=band.applicable(SAMPLING))
    decided = [replay(faulty(seed, 3, chosen), band).all.decided_at for seed in range(200, 260)]
    found = np.mean([at is not None and at <= tokens for at in decided])
    assert 0.3 < said <= found + 2 * math.sqrt(found * (1 - found) / 60)


def test_power_grows_with_tokens_and_tokens_for_inverts_it(band):
    detectors = band.applicable(SAMPLING)
    for fault in FAULTS:
        enough = tokens_for(fault, band, alpha=1e-3, detectors=detectors)
        assert power(fault, band, enough, alpha=1e-3, detectors=detectors) >= 0.9
        assert power(fault, band, enough - 1, alpha=1e-3, detectors=detectors) < 0.9
    assert power(FAULTS[0], band, 0, alpha=1e-3, detectors=detectors) == 0.0
    blind = tuple(name for name in detectors if name.startswith("rank"))
    assert tokens_for(FAULTS[0], band, alpha=1e-3, detectors=blind) is None


def test_growth_is_the_information_of_the_best_bet():
    """At the true odds a 0/1 bet earns the Kullback-Leibler divergence (Wald): 8 times the odds of 2 % are 14.03 %."""
    q = 7.0 * 0.02 / (0.98 + 7.0 * 0.02)
    information = q * math.log(q / 0.02) + (1 - q) * math.log((1 - q) / 0.98)
    assert growth(q, 0.02, 2) == pytest.approx(information)
    assert price("margin_tail", 2, 1e-3) == pytest.approx(math.log(1000 / (0.75 * 0.38 * 0.35)))


@given(st.sampled_from(FAULTS))
def test_each_fault_is_nearest_to_itself(fault):
    assert nearest(expected_means(fault, flat_band()), flat_band())[0] == fault.name


@given(st.sampled_from(FAULTS))
def test_a_hint_needs_no_filter_to_be_broken(fault):
    """Where no filter was asked for no token can be outside; that must not look like a lower temperature."""
    unfiltered = {**expected_means(fault, flat_band()), "support": 0.0}
    assert nearest(unfiltered, flat_band())[0] == fault.name


def test_faults_that_scores_do_not_tell_apart_are_both_named():
    weights, prompt = (expected_means(FAULTS[i], flat_band()) for i in (1, 5))
    between = {name: (weights[name] + prompt[name]) / 2 for name in weights}
    assert set(nearest(between, flat_band())) == {"fp8 weights", "hidden system prompt"}


def cut_short(sequences: list[SequenceScores], at: int) -> list[SequenceScores]:
    """Answers that the provider stopped after so many tokens, by an end token that nobody would have drawn there."""
    cut = []
    for scores in sequences:
        arrays = {name: getattr(scores, name)[:at].copy() for name in SequenceScores.__annotations__}
        arrays["exact_match"][-1], arrays["margin"][-1] = False, np.inf
        cut.append(SequenceScores(**arrays))
    return cut


def test_a_provider_that_cuts_answers_short_is_found_within_a_few_answers(band):
    verdict = judge(replay(cut_short(honest(10, 12), 150), band), band, identified=True)
    assert verdict.word == "deviates"
    assert verdict.reasons[0] == "ending"
    assert verdict.decided_at <= 8 * 150
    ending = next(effect for effect in verdict.effects if effect.detector == "ending")
    assert (ending.mean, ending.tokens) == (1.0, 12)


def test_an_answers_end_is_tolerated_as_often_as_the_calibrations_ends_support(band):
    """Clopper-Pearson on 64 ends, times the tolerance."""
    off = band.honest["ending"] * 64
    bound = stats.beta.ppf(0.95, off + 1, 64 - off)
    assert band.typical["ending"] == pytest.approx((1 + TOLERANCE) * bound)
