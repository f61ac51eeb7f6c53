"""The CUSUM: quick after a change, rare on honest streams, the same through JSON."""

import json
import math

import numpy as np
import pytest
from simulated import faulty, fitted, flat_band, honest

from verifier.detectors import DETECTORS, NAMES, SequenceScores
from verifier.drift import Drift, watch
from verifier.evidence import ODDS, ODDS_PRIOR


def run(sequences, band, drift=None) -> Drift:
    drift = drift or watch()
    for scores in sequences:
        drift = drift.update(scores, band)
    return drift


def test_two_sequences_by_hand():
    zeros = np.zeros(1, np.float32)
    ranks = zeros.astype(int)
    match, miss = (SequenceScores(np.array([ok]), zeros, zeros - 1, zeros + 1, ranks) for ok in (True, False))
    drift = watch().update(miss, flat_band(), ["mismatch"]).update(match, flat_band(), ["mismatch"])
    for odds, log_m in zip(ODDS, drift.log_cusum["mismatch"], strict=True):
        up, down = (math.log(top / (1 + (odds - 1) * 0.02)) for top in (odds, 1.0))
        assert log_m == pytest.approx(up + down)
    assert run([match, match], flat_band()).since["mismatch"] == (1,) * len(ODDS)
    assert sum(ODDS_PRIOR) * sum(d.weight for d in DETECTORS) == pytest.approx(1.0)


def test_a_provider_that_turns_bad_is_caught_quickly_and_the_change_is_placed():
    band = fitted()
    drift = run(honest(1, 60), band)
    assert drift.alarm_at is None
    changed = run(faulty(2, 5, "4-bit weights"), band, drift)
    assert 0 < changed.alarm_at - drift.tokens < 150
    assert abs(changed.changed_at - 60) <= 2


def test_honest_alarms_lie_as_far_apart_as_promised():
    """α = 0.05 promises 20 sequences on average; waits are cut off at 50, so their mean is a lower bound."""
    band, waits = fitted(), []
    for seed in range(40):
        drift = watch(0.05)
        for scores in honest(1000 + seed, 50):
            drift = drift.update(scores, band)
            if drift.alarm_at is not None:
                break
        waits.append(drift.sequences)
    assert np.mean(waits) >= 20


def test_an_alarm_stays_until_it_is_cleared_and_counts_go_on():
    band = fitted()
    alarmed = run([*faulty(3, 2, "4-bit weights"), *honest(4, 3)], band)
    assert alarmed.alarm_at is not None
    assert alarmed.alarm_at < 200
    cleared = alarmed.cleared()
    assert (cleared.alarm_at, cleared.changed_at, cleared.tokens, cleared.sequences) == (None, None, 1000, 5)
    assert run(honest(5, 3), band, cleared).alarm_at is None
    assert run(faulty(6, 1, "4-bit weights"), band, cleared).alarm_at > 1000


def test_the_state_survives_json():
    band, there, back = fitted(), watch(), watch()
    for scores in [*honest(7, 2), *faulty(8, 2, "fp8 weights")]:
        there = there.update(scores, band)
        back = Drift.from_dict(json.loads(json.dumps(back.to_dict()))).update(scores, band)
    assert there == back
    assert set(there.log_cusum) == set(NAMES)


def test_alpha_is_a_probability():
    with pytest.raises(ValueError, match="between 0 and 1"):
        watch(0.0)


def test_an_empty_sequence_changes_nothing():
    assert watch().update(honest(9, 1, tokens=0)[0], flat_band()) == watch()
