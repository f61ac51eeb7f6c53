"""Each detector on tokens worked out by hand, and on whatever the scores may hold."""

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.scores import pack_scores, unpack_scores
from verifier.detectors import (
    BY_NAME,
    DETECTORS,
    NAMES,
    SEED_FREE,
    Cuts,
    SequenceScores,
    in_units,
    statistics,
)

CUTS = Cuts(margin=0.4, tail=0.1)


def scores(margin, logprob, entropy, rank, match) -> SequenceScores:
    return SequenceScores(
        np.array(match), np.array(margin, np.float32), np.array(logprob, np.float32),
        np.array(entropy, np.float32), np.array(rank, np.int32),
    )  # fmt: skip


FOUR = scores(
    margin=[0.0, 0.1, 0.2, np.inf],
    logprob=[-1.0, -3.0, -2.0, -np.inf],
    entropy=[1.0, 1.0, 3.0, 2.0],
    rank=[0, 1, 3, 100_000],
    match=[True, False, False, False],
)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mismatch", [0, 1, 1, 1]),
        ("margin", [0, 0.25, 0.5, 1]),
        ("margin_tail", [0, 0, 1, 1]),
        ("ending", [0, 0, 0, 1]),
        ("support", [0, 0, 0, 1]),
        ("cross_entropy_high", [0.5, 0.75, 0.375, 1]),
        ("cross_entropy_low", [0.5, 0.25, 0.625, 0]),
        ("rank_high", [0, 1 / 12, 2 / 12, 1]),
        ("rank_low", [1, 11 / 12, 10 / 12, 0]),
    ],
)
def test_the_statistic_of_each_detector(name, values):
    # 0.1 in float32 lies just above the tail's cut in float64, where it begins
    cuts = Cuts(margin=0.4, tail=float(np.float32(0.1)))
    assert statistics(FOUR, cuts)[:, NAMES.index(name)] == pytest.approx(values, abs=1e-6)


def test_the_weights_share_out_the_whole_evidence_and_a_third_is_kept_for_other_than_one_detector():
    assert sum(detector.weight for detector in DETECTORS) == pytest.approx(1.0)
    assert all(0 < detector.weight <= 0.4 for detector in DETECTORS)


def test_seed_free_detectors_do_not_look_at_the_noise():
    other = scores([0.3, 0.0, 0.05, np.inf], FOUR.logprob, FOUR.entropy, FOUR.logit_rank, [False, True, True, False])
    columns = [NAMES.index(name) for name in SEED_FREE]
    assert np.array_equal(statistics(FOUR, CUTS)[:, columns], statistics(other, CUTS)[:, columns])


NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(NUMBERS, st.floats(0, 20, width=32), st.floats(0, width=32), st.integers(0, 2**31 - 1))))
def test_any_logprob_and_margin_gives_numbers_between_0_and_1(tokens):
    logprob, entropy, margin, rank = zip(*tokens, strict=True) if tokens else ((), (), (), ())
    margin = [m if m >= 0 else np.nan for m in margin]
    found = statistics(scores(margin, logprob, entropy, rank, [m == 0 for m in margin]), CUTS)
    assert found.shape == (len(tokens), len(DETECTORS))
    assert ((found >= 0) & (found <= 1)).all()


def test_scores_come_back_from_an_audits_stored_arrays():
    stored = unpack_scores(
        pack_scores(
            {
                "token_ids": array("i", [5, 6, 7]), "predicted_ids": array("i", [5, 6, 8]),
                "margin": [0.0, 0.0, float("inf")], "logprob": [-1.0, -0.5, -9.0], "entropy": [1.0, 0.4, 2.0],
                "logit_rank": array("i", [0, 0, 70]), "prob": [0.3, 0.6, 0.0],
            }
        )
    )  # fmt: skip
    found = SequenceScores.from_arrays(stored)
    assert found.exact_match.tolist() == [True, True, False]
    assert statistics(found, CUTS)[:, NAMES.index("support")].tolist() == [0, 0, 1]


def test_means_are_told_in_their_own_units():
    assert in_units("margin", 0.5, CUTS) == pytest.approx(0.2)
    assert in_units("mismatch", 0.02, CUTS) == 0.02
    assert in_units("cross_entropy_high", 0.55, CUTS) == pytest.approx(0.4)
    assert in_units("cross_entropy_low", 0.45, CUTS) == pytest.approx(0.4)
    assert in_units("rank_high", 0.25, CUTS) == in_units("rank_low", 0.75, CUTS) == 3.0
    assert set(BY_NAME) == set(NAMES)
