"""Evaluation: the split keeps prompts apart, areas agree with their definitions, faults part from honest answers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import SAMPLING, faulty, honest
from test_verifier_stream_state import answer

from verifier.calibration import fit
from verifier.evaluate import Answer, auc, judge_file, partial_auc, separation, split, unfitted
from verifier.plots import save_plots

SCORES = st.lists(st.integers(0, 8), min_size=1, max_size=30).map(lambda values: np.array(values, float))


def answers(scores, first_prompt: int = 0) -> list[Answer]:
    return [Answer((first_prompt + n,), answer(one)) for n, one in enumerate(scores)]


@pytest.fixture(scope="module")
def honest_halves():
    return split(answers(honest(1, 80, 120)))


@pytest.fixture(scope="module")
def band(honest_halves):
    return fit([one.scores for one in honest_halves[0]], sampling=SAMPLING)


def test_answers_to_one_prompt_stay_in_one_half():
    rows = [Answer((n % 5,), answer(honest(2, 1, 3)[0])) for n in range(20)]
    fitted, rest = split(rows)
    assert {one.prompt for one in fitted} == {(0,), (2,), (4,)}
    assert {one.prompt for one in rest} == {(1,), (3,)}
    assert unfitted(rows, fitted) == rest
    assert unfitted(fitted, fitted) == fitted


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs_in_order(good, bad):
    pairs = (bad[:, None] > good).mean() + 0.5 * (bad[:, None] == good).mean()
    assert auc(good, bad) == pytest.approx(pairs)
    assert partial_auc(good, bad, highest=1.0) == pytest.approx(pairs)


@given(SCORES, SCORES)
def test_a_partial_area_lies_between_none_and_all(good, bad):
    assert 0.0 <= partial_auc(good, bad) <= 1.0


def test_partial_areas_of_known_curves():
    levels = np.arange(1000.0)
    assert partial_auc(levels, levels + 2000) == 1.0
    assert partial_auc(levels, levels - 2000) == 0.0
    assert partial_auc(levels, levels + 0.5) == pytest.approx(0.0055, abs=0.0006)


def test_a_fault_is_told_apart_and_honest_answers_are_not(honest_halves, band):
    _, held_out = honest_halves
    rng = np.random.default_rng(0)
    suspect = answers(faulty(3, 40, "4-bit weights", 120), 1000)
    apart = separation(held_out, suspect, band, rng)
    same = separation(held_out, answers(honest(4, 40, 120), 1000), band, rng)
    assert set(apart.auc) == {"10", "30", "100", "300"}
    assert apart.auc["100"] > 0.99
    assert apart.pauc["100"] > 0.8
    assert 0.3 < same.auc["100"] < 0.7
    assert apart.by_detector["mismatch"]["100"] > 0.95


def test_no_batch_is_larger_than_a_tenth_of_its_pool(honest_halves, band):
    few = separation(honest_halves[1], answers(faulty(5, 8, "fp8 weights", 120)), band, np.random.default_rng(0))
    assert set(few.auc) == {"10", "30"}


def test_a_files_result_is_json_and_draws_its_figures(honest_halves, band, tmp_path):
    bad = judge_file("int4.jsonl", "s", answers(faulty(6, 10, "4-bit weights", 60), 1000), band)
    good = judge_file("good.jsonl", "s", honest_halves[1][:10], band)
    values = json.loads(json.dumps(bad.to_dict()))
    assert values["verdict"] == "deviates"
    assert 1 <= values["median_tokens_to_deviates"] <= 60
    assert len(values["tokens_to_deviates"]) == 10
    assert good.median_tokens_to_deviates is None
    files = save_plots([bad, good], tmp_path / "figures")
    assert sorted(path.name for path in files) == [
        "auc.png", "auc.svg", "tokens_to_deviates.png", "tokens_to_deviates.svg"
    ]
    assert all(path.stat().st_size > 1000 for path in files)
