"""Streams: a wrong sampler, an ignored seed or another prompt accuse nobody; cheats are found; state is resumable."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import SAMPLING, faulty, fitted, honest

from verifier import linkage
from verifier.band import SHIPPED
from verifier.detectors import SequenceScores
from verifier.linkage import LINKED
from verifier.stream_state import AuditedAnswer, StreamState
from verifier.verdict import Verdict

RNG_SEED = 7


def answer(scores: SequenceScores, prob: float = 0.3, **more) -> AuditedAnswer:
    known = {"sampling": SAMPLING, **more}
    return AuditedAnswer(scores, np.full(len(scores.entropy), prob, np.float32), **known)


def unlinked(seed: int, count: int, tokens: int = 200, prob: float = 0.3) -> list[AuditedAnswer]:
    """An honest distribution drawn with other noise: matches come by chance, near-ties do not."""
    rng = np.random.default_rng(seed)
    answers = []
    for scores in honest(seed, count, tokens):
        match = rng.random(tokens) < prob
        margin = np.where(match, 0.0, rng.exponential(2.0, tokens)).astype(np.float32)
        drawn = SequenceScores(match, margin, scores.logprob, scores.entropy, scores.logit_rank)
        answers.append(answer(drawn, prob))
    return answers


def after(answers, band, state=None) -> StreamState:
    state = state or StreamState()
    for one in answers:
        state = state.after(one, band)
    return state


@pytest.fixture(scope="module")
def band():
    return fitted()


def test_the_link_has_mean_one_under_other_noise():
    """E[ratio] = q·match + (1 − q)·mismatch, in closed form; less where the probability was raised to its floor."""
    for q in (0.01, 0.2, 0.7, 0.999):
        prob = np.array([q], np.float32)
        won, lost = (float(np.exp(linkage.gains(np.array([hit]), prob))[0]) for hit in (True, False))
        assert q * won + (1 - q) * lost == pytest.approx(1.0, abs=1e-6)
    tiny = np.array([1e-5], np.float32)
    assert 1e-5 * float(np.exp(linkage.gains(np.array([True]), tiny))[0]) + 0.7 < 1.0


def test_honest_and_cheating_answers_follow_the_noise_and_foreign_ones_do_not():
    def following(answers) -> int:
        return sum(linkage.follows(one.scores.exact_match, one.prob) for one in answers)

    assert following(map(answer, honest(1, 100, 40))) == 100
    assert following(map(answer, faulty(2, 100, "4-bit weights", 40))) >= 90
    assert following(unlinked(3, 400, 40)) <= 4


def test_an_honest_stream_is_consistent_and_a_cheating_one_deviates(band):
    good = after(map(answer, honest(4, 20)), band)
    assert good.verdict(band).word == "consistent"
    assert good.skipped == {}
    bad = after(map(answer, faulty(5, 5, "4-bit weights")), band)
    assert bad.convicted
    assert bad.verdict(band).word == "deviates"


@pytest.mark.parametrize("tokens", [20, 200])
def test_other_noise_from_the_start_is_unsupported(band, tokens):
    verdict = after(unlinked(6, 30, tokens), band).verdict(band)
    assert (verdict.word, verdict.reasons) == ("unsupported", ("sampler_unknown",))
    assert verdict.skipped["sampler_not_followed"] >= 28


def test_a_sampler_that_changes_later_is_named_and_accuses_nobody(band):
    state = after([*map(answer, honest(8, 10)), *unlinked(9, 10)], band)
    verdict = state.verdict(band)
    assert (verdict.word, verdict.reasons[0]) == ("unsupported", "sampler_changed")
    assert not state.convicted


def lost_at(one: AuditedAnswer, other: AuditedAnswer, token: int) -> AuditedAnswer:
    """One answer up to a token, from there on the noise of the other."""
    joined = (
        np.concatenate([getattr(one.scores, name)[:token], getattr(other.scores, name)[token:]])
        for name in SequenceScores.__annotations__
    )
    return answer(SequenceScores(*joined))


def test_an_end_that_lost_the_noise_is_set_aside_and_accuses_nobody(band):
    answers = [*map(answer, honest(4, 30)), lost_at(answer(honest(17, 1)[0]), unlinked(18, 1)[0], 150)]
    verdict = after(answers, band).verdict(band)
    assert verdict.word == "consistent"
    assert verdict.skipped == {"noise_lost": 1}
    judged = {effect.detector: effect.tokens for effect in verdict.effects}
    assert 30 * 200 + 140 <= judged["mismatch"] <= 30 * 200 + 160
    assert judged["support"] == verdict.tokens == 31 * 200
    assert judged["ending"] == 30


def test_an_end_that_lost_the_noise_still_tells_forbidden_tokens(band):
    def forbidden_end(one: AuditedAnswer) -> AuditedAnswer:
        margin = np.where(np.arange(200) > 185, np.inf, one.scores.margin).astype(np.float32)
        return answer(replace(one.scores, margin=margin))

    lost = [lost_at(answer(honest(seed, 1)[0]), unlinked(seed, 1)[0], 120) for seed in range(30, 42)]
    state = after(map(forbidden_end, lost), band)
    assert state.skipped["noise_lost"] >= 10
    assert state.evidence.seed_free.decided_at is not None


def test_a_cheat_cannot_hide_in_tokens_that_the_text_leaves_open(band):
    def judged(open_tokens: int) -> Verdict:
        answers = [answer(scores, ambiguous_tokens=open_tokens) for scores in honest(4, 40)]
        return after(answers, band).verdict(band)

    assert judged(2).word == "consistent"
    assert (judged(23).word, judged(23).reasons) == ("inconclusive", ("too_many_set_aside",))


def test_cheats_lose_no_end(band):
    state = after(map(answer, faulty(19, 40, "4-bit weights")), band)
    assert state.skipped.get("noise_lost", 0) <= 2


def test_a_cheat_cannot_hide_behind_other_noise(band):
    """A sixth of the answers follow none: too many are set aside to say `consistent`, though the stream is linked."""
    good, foreign = list(map(answer, honest(4, 40))), unlinked(20, 8)
    answers = [one for n in range(8) for one in (foreign[n], *good[5 * n : 5 * n + 5])]
    verdict = after(answers, band).verdict(band)
    assert (verdict.word, verdict.reasons) == ("inconclusive", ("too_many_set_aside",))


def test_ignoring_the_seed_afterwards_does_not_undo_a_conviction(band):
    state = after([*map(answer, faulty(10, 5, "4-bit weights")), *unlinked(11, 30)], band)
    assert state.verdict(band).word == "deviates"


def test_another_prompt_is_named_and_accuses_nobody(band):
    answers = [answer(scores, prompt_differs=True) for scores in faulty(12, 10, "hidden system prompt", 30)]
    verdict = after(answers, band).verdict(band)
    assert (verdict.word, verdict.reasons) == ("unsupported", ("prompt_tokens_differ",))
    assert verdict.skipped == {"prompt_tokens_differ": 10}


def test_seed_free_evidence_accuses_whatever_the_sampler(band):
    forbidden = [
        answer(SequenceScores(s.exact_match & False, np.where(np.arange(200) % 9, s.margin, np.inf).astype(np.float32),
                              s.logprob, s.entropy, s.logit_rank))
        for s in honest(13, 4)
    ]  # fmt: skip
    verdict = after(forbidden, band).verdict(band)
    assert (verdict.word, verdict.reasons[0]) == ("deviates", "seed_free_evidence")


def test_greedy_answers_need_no_noise_to_be_identified():
    perfect = [SequenceScores(np.ones(200, bool), *(np.zeros(200, np.float32),) * 3, np.zeros(200, int))] * 10
    state = after([answer(scores, prob=1.0) for scores in perfect], SHIPPED)
    assert (state.drawn, state.linked) == (0, True)
    assert state.verdict(SHIPPED).word == "consistent"


def test_what_could_not_be_scored_is_counted_by_reason(band):
    nothing = AuditedAnswer(None, np.empty(0, np.float32), refusal="no_seed")
    verdict = after([nothing, nothing], band).verdict(band)
    assert (verdict.word, verdict.reasons, verdict.skipped) == ("unsupported", ("no_seed",), {"no_seed": 2})


@given(cut=st.integers(0, 6))
def test_a_state_stored_as_json_goes_on_as_if_never_stored(cut):
    answers = [*map(answer, honest(RNG_SEED, 3, 30)), *unlinked(RNG_SEED, 2, 30), *map(answer, honest(8, 1, 30))]
    stored = StreamState.from_dict(json.loads(json.dumps(after(answers[:cut], SHIPPED).to_dict())))
    assert after(answers[cut:], SHIPPED, stored) == after(answers, SHIPPED)


def test_the_link_stays_within_its_bounds(band):
    assert after(map(answer, honest(14, 5)), band).link == 2 * LINKED
    assert after(unlinked(15, 5), band).link == -LINKED
