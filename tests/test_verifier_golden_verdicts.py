"""Verdicts on real outputs of vLLM 0.26.0 on an H100, from the kept scores in data/golden_scores."""

import json

import numpy as np
import pytest
from recorded import golden_scores
from test_seedproof import run

from verifier.band import SHIPPED, Band
from verifier.calibration import fit
from verifier.evaluate import Answer, judge_file
from verifier.evidence import replay
from verifier.scored_files import ScoredFile

LIMITS = {"int4": 25, "fp8": 120, "temp11": 270}
"""Tokens to `deviates`, median: about twice ln(1/α)/KL of the mismatch rate."""
HONEST = ("honest_bf16_seq", "v2_plain", "v2_n4", "v2_compiled", "plain_t1", "t07_p09", "v1_pen", "v1_bias", "greedy")


def answers(name: str) -> list[Answer]:
    return ScoredFile.load(golden_scores(name)).answers


@pytest.fixture(scope="module")
def honest() -> list[Answer]:
    return answers("honest_bf16")


def band_of(chosen: list[Answer]) -> Band:
    return fit([answer.scores for answer in chosen], sampling=chosen[0].audited.sampling)


@pytest.fixture(scope="module")
def band(honest) -> Band:
    return band_of(honest[::2])


def test_evaluate_finds_the_faults_in_time_and_accuses_no_honest_file(tmp_path, capsys):
    suspects = [*LIMITS, "honest_bf16_seq", "v2_plain"]
    files = ("--honest", golden_scores("honest_bf16"), "--suspect", *map(golden_scores, suspects))
    assert run("evaluate", *files, "--json", "-") == 0
    result = json.loads(capsys.readouterr().out)
    judged = dict(zip(suspects, result["suspects"], strict=True))
    for name, most in LIMITS.items():
        assert judged[name]["verdict"] == "deviates"
        assert judged[name]["median_tokens_to_deviates"] <= most
        assert judged[name]["auc"]["100"] > 0.95
    for name in suspects[3:]:
        assert judged[name]["verdict"] == "consistent"
        assert set(judged[name]["tokens_to_deviates"]) == {None}
    assert (result["honest"]["false_positive_rate"], result["honest"]["blocks"]) == (0.0, 32)


@pytest.mark.parametrize("seed", range(4))
def test_the_limits_hold_whichever_half_of_the_prompts_calibrates(honest, seed):
    """The cuts and shares of the detectors were looked at on one split; these are others."""
    order = np.random.default_rng(seed).permutation(len(honest))
    band = band_of([honest[i] for i in order[:32]])
    held_out = [honest[i] for i in order[32:]]
    assert judge_file("", "", held_out, band).verdict.word == "consistent"
    for name, most in LIMITS.items():
        assert judge_file("", "", answers(name), band).median_tokens_to_deviates <= most


@pytest.mark.parametrize("name", HONEST)
def test_no_honest_stream_is_accused_whatever_its_order_runner_or_sampling(band, name):
    found = answers(name)
    worst_first = sorted(found, key=lambda one: float(one.scores.exact_match.mean()))
    for order in (found, found[::-1], worst_first):
        judged = judge_file(name, "", order, band)
        assert judged.verdict.word in ("consistent", "inconclusive"), judged.verdict.reasons
        assert judged.verdict.e_value < 100
        assert set(judged.tokens_to_deviates) == {None}


def test_another_runners_band_judges_alike():
    """V2's own honest answers as the band: its fp8 is found, its other honest files are not accused."""
    band = band_of(answers("v2_plain"))
    assert judge_file("", "", answers("v2_fp8"), band).median_tokens_to_deviates <= 120
    for name in ("v2_n4", "v2_compiled"):
        assert judge_file(name, "", answers(name), band).verdict.word in ("consistent", "inconclusive")


@pytest.mark.parametrize(
    ("name", "reason"), [("v1_noseed", "no_contract_fits"), ("v2_plain_by_v1", "sampler_differs")]
)
def test_an_ignored_seed_and_a_wrong_contract_accuse_nobody_and_are_named(band, name, reason):
    file = ScoredFile.load(golden_scores(name))
    verdict = judge_file(name, "", file.answers, band, identified=file.identified).verdict
    assert (verdict.word, verdict.reasons) == ("unsupported", (reason,))
    assert verdict.skipped == {"sampler_not_followed": 8}


def test_an_honest_speculating_server_is_scored_by_its_own_contract_and_not_accused(band):
    """One of its answers loses its place 26 tokens before the end: too late to find it again."""
    file = ScoredFile.load(golden_scores("v1_spec"))
    assert file.identified["contract"] == "vllm@0.26.0/v1:drafts=3,ngram=2-3"
    judged = judge_file("v1_spec", "", file.answers, band)
    assert judged.verdict.word in ("consistent", "inconclusive")
    assert judged.verdict.skipped == {"noise_lost": 1}
    assert set(judged.tokens_to_deviates) == {None}


@pytest.mark.parametrize(
    ("name", "hint"), [("int4", "4-bit weights"), ("fp8", "fp8 weights"), ("temp11", "temperature +0.1")]
)
def test_the_hint_on_real_faults(band, name, hint):
    verdict = judge_file(name, "", answers(name), band).verdict
    assert verdict.hint == f"nearest named fault: {hint}"
    assert {"margin", "margin_tail"} <= set(verdict.reasons)


@pytest.mark.parametrize(
    ("name", "hint"), [("int4", "4-bit weights"), ("fp8", "fp8 weights or hidden system prompt")]
)
def test_the_hint_before_any_calibration(name, hint):
    assert judge_file(name, "", answers(name), SHIPPED).verdict.hint == f"nearest named fault: {hint}"


def test_the_shipped_band_is_slower_but_accuses_no_honest_file_either():
    assert replay([one.scores for one in answers("int4")], SHIPPED).all.decided_at < 200
    for name in ("honest_bf16", *HONEST):
        assert replay([one.scores for one in answers(name)], SHIPPED, detectors=SHIPPED.applicable(None)).all.peak < 2
