"""Speculative decoding: a rejection sampler written step by step as vLLM's, against the replay from claimed tokens."""

from dataclasses import replace

import numpy as np
import pytest
from recorded import golden

from verifier.errors import UnknownContract
from verifier.recordings import read_recordings
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.samplers.drafters import NgramDrafter, plan
from verifier.samplers.torch_cuda import WRAPPED
from verifier.samplers.vllm_v2 import acceptances
from verifier.sampling_params import SamplingParams
from verifier.scoring import score
from verifier.speculation import consistent_scores, speculated

V1, V2 = contract("vllm@0.26.0/v1"), contract("vllm@0.26.0/v2")
SPECULATING = contract("vllm@0.26.0/v1:ngram=1-2,drafts=3")
PARAMS = SamplingParams(temperature=0.8)
DRAFTER = NgramDrafter(1, 2, 3)
WIDTH = 12


def softmax(z):
    p = np.exp((z - z.max()) / PARAMS.temperature)
    return p / p.sum()


def race(row, seed, draw, without=None):
    noise = V1.gumbel(np.array([seed]), np.array([draw]), np.arange(WIDTH), WIDTH)[0]
    scores = row / PARAMS.temperature + noise
    if without is not None:
        scores[without] = -np.inf
    return int(scores.argmax())


def generated(prompt, logits, seed):
    """Tokens of vLLM V1 with an ngram drafter, from logits [R, WIDTH] that do not depend on the tokens."""
    output, draw = [], 0
    while len(output) < len(logits):
        drafts = DRAFTER.drafts(prompt + output) if output else []
        uniforms = np.exp(-np.exp(-WRAPPED["float64"].rows(
            np.array([seed]), np.array([draw + 1]), np.arange(3), V1.grid_threads)[0]))  # fmt: skip
        bonus = True
        for draft, uniform in zip(drafts, uniforms, strict=False):
            if len(output) == len(logits):
                return output
            row = logits[len(output)]
            bonus = bool(softmax(row)[draft] >= uniform)
            output.append(draft if bonus else race(row, seed, draw + 2, draft))
            if not bonus:
                break
        if bonus and len(output) < len(logits):
            output.append(race(logits[len(output)], seed, draw))
        draw += 3 if drafts else 1
    return output


def test_prompt_lookup_proposes_what_followed_the_earliest_longest_match():
    drafter = NgramDrafter(1, 2, 3)
    assert drafter.drafts([1, 2, 9, 8, 1, 2, 7, 1, 2]) == [9, 8, 1]
    assert drafter.drafts([5, 2, 9, 3, 2]) == [9, 3, 2]
    assert drafter.drafts([1, 2, 3]) == []
    assert drafter.drafts([4]) == []
    assert NgramDrafter(2, 2, 3).drafts([5, 2, 9, 3, 2]) == []


def test_a_speculating_v1_is_replayed_to_the_token():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (200, WIDTH)).astype(np.float32)
    output = generated([1, 2, 3, 1], logits, 77)
    scores = speculated(logits, 0, [1, 2, 3, 1], output, seed=77, params=PARAMS, contract=SPECULATING)
    assert scores.exact_match.all()
    assert (scores.margin == 0.0).all()
    steps = plan([1, 2, 3, 1], output, DRAFTER, 200)
    assert (steps.drafts >= 0).sum() > 50
    assert ((steps.drafts >= 0) & (steps.drafts != np.array(output))).sum() > 20


def test_another_seed_or_no_speculation_does_not_match():
    logits = np.random.default_rng(2).normal(0, 2, (200, WIDTH)).astype(np.float32)
    output = generated([1, 2, 3, 1], logits, 77)
    wrong = speculated(logits, 0, [1, 2, 3, 1], output, seed=78, params=PARAMS, contract=SPECULATING)
    naive = score(
        logits, np.array(output), seed=77, positions=np.arange(200), params=PARAMS, contract=V1
    )
    assert wrong.exact_match.mean() < 0.7
    assert naive.exact_match.mean() < 0.7
    assert (wrong.margin[~wrong.exact_match] > 0.0).all()


def test_real_speculative_outputs_verify_with_their_drafter_and_not_naively(demo_reference):
    [recording] = read_recordings(golden("v1_spec"), limit=1)
    claim = Claim(recording.sequence, recording.seed, recording.params, V1)
    drafted = replace(claim, contract=contract("vllm@0.26.0/v1:ngram=2-3,drafts=3"))
    naive, scores = replay(demo_reference, [claim, drafted])
    assert naive.exact_match.mean() < 0.65
    assert scores.exact_match.mean() >= 0.955


@pytest.mark.parametrize("ignores_seed", [False, True])
def test_v2s_rules_hold_for_every_token_of_a_speculating_v2_and_not_without_its_seed(ignores_seed):
    rng, seed = np.random.default_rng(4), 9
    logits = rng.normal(0, 2, (300, 50)).astype(np.float32)
    positions, drawn = np.arange(20, 320), seed + 1 if ignores_seed else seed
    noise = V2.gumbel(np.full(300, drawn), positions, np.arange(50), 50)
    uniforms, tokens = acceptances(drawn, positions), []
    for row, g, uniform in zip(logits, noise, uniforms, strict=True):
        draft, scores = int(row.argmax()), row / PARAMS.temperature + g
        accepted = softmax(row)[draft] > uniform
        scores[draft] = -np.inf
        tokens.append(draft if accepted else int(scores.argmax()))
    scores = consistent_scores(
        logits, np.array(tokens), seed=seed, positions=positions, params=PARAMS, contract=V2
    )
    plain = score(logits, np.array(tokens), seed=seed, positions=positions, params=PARAMS, contract=V2)
    assert plain.exact_match.mean() < 0.8
    if ignores_seed:
        assert scores.exact_match.mean() < 0.85
    else:
        assert scores.exact_match.all()


def test_answers_may_be_scored_in_pieces():
    logits = np.random.default_rng(1).normal(0, 2, (60, WIDTH)).astype(np.float32)
    prompt = [1, 2, 3, 1]
    output = generated(prompt, logits, 5)
    for rules in (SPECULATING, contract("vllm@0.26.0/v2:ngram=1-2,drafts=3"), contract("vllm@0.26.0/v2:drafter=any")):
        whole = speculated(logits, 0, prompt, output, seed=5, params=PARAMS, contract=rules)
        rest = speculated(logits[23:], 23, prompt, output, seed=5, params=PARAMS, contract=rules)
        np.testing.assert_array_equal(whole.predicted_ids[23:], rest.predicted_ids)


def test_a_speculating_v2_with_a_known_drafter_is_replayed_to_the_token():
    """The rules written out: a draft that beats its uniform stands, else the race among the others; by position."""
    logits, prompt, output = np.random.default_rng(3).normal(0, 2, (150, WIDTH)).astype(np.float32), [1, 2, 3, 1], []
    positions = np.arange(3, 153)
    noise, uniforms = V2.gumbel(np.full(150, 6), positions, np.arange(WIDTH), WIDTH), acceptances(6, positions)
    drafts, used = [], 0
    while len(output) < 150:
        place = len(output)
        if not drafts and place:
            drafts = DRAFTER.drafts(prompt + output)
        scores = logits[place] / PARAMS.temperature + noise[place]
        if drafts:
            used, draft = used + 1, drafts.pop(0)
            scores[draft] = -np.inf
            accepted = softmax(logits[place])[draft] > uniforms[place]
            output.append(draft if accepted else int(scores.argmax()))
            if not accepted:
                drafts = []
            elif not drafts and len(output) < 150:  # the bonus token
                output.append(int((logits[place + 1] / PARAMS.temperature + noise[place + 1]).argmax()))
        else:
            output.append(int(scores.argmax()))
    rules = contract("vllm@0.26.0/v2:ngram=1-2,drafts=3")
    scores = speculated(logits, 0, prompt, output, seed=6, params=PARAMS, contract=rules)
    assert used > 40
    assert scores.exact_match.all()


@pytest.mark.parametrize("options", ["ngram=3-2,drafts=3", "ngram=2-3", "drafts=3", "ngram=2,drafts=3", "ngram=a-b"])
def test_a_drafter_that_is_not_fully_named_is_an_error_that_shows_how(options):
    with pytest.raises(UnknownContract, match="ngram=SHORTEST-LONGEST,drafts=COUNT"):
        contract(f"vllm@0.26.0/v1:{options}")
