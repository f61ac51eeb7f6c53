"""Speculative decoding: a rejection sampler written step by step as vLLM's, against the replay from claimed tokens."""

import numpy as np
import pytest
from recorded import golden

from verifier.recordings import read_recordings
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.samplers.torch_cuda import WRAPPED
from verifier.samplers.vllm_v2 import acceptances
from verifier.sampling_params import SamplingParams
from verifier.scoring import score
from verifier.speculation import NgramDrafter, consistent_scores, ngram_scores, plan

V1, V2 = contract("vllm@0.26.0/v1"), contract("vllm@0.26.0/v2")
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
    scores = ngram_scores(logits, [1, 2, 3, 1], output, seed=77, params=PARAMS, contract=V1, drafter=DRAFTER)
    assert scores.exact_match.all()
    assert (scores.margin == 0.0).all()
    steps = plan([1, 2, 3, 1], output, DRAFTER, 200)
    assert (steps.drafts >= 0).sum() > 50
    assert ((steps.drafts >= 0) & (steps.drafts != np.array(output))).sum() > 20


def test_another_seed_or_no_speculation_does_not_match():
    logits = np.random.default_rng(2).normal(0, 2, (200, WIDTH)).astype(np.float32)
    output = generated([1, 2, 3, 1], logits, 77)
    wrong = ngram_scores(logits, [1, 2, 3, 1], output, seed=78, params=PARAMS, contract=V1, drafter=DRAFTER)
    naive = score(
        logits, np.array(output), seed=77, positions=np.arange(200), params=PARAMS, contract=V1
    )
    assert wrong.exact_match.mean() < 0.7
    assert naive.exact_match.mean() < 0.7
    assert (wrong.margin[~wrong.exact_match] > 0.0).all()


def test_real_speculative_outputs_verify_with_their_drafter_and_not_naively(demo_reference):
    [recording] = read_recordings(golden("v1_spec"), limit=1)
    prompt, output = recording.sequence.prompt_token_ids, recording.sequence.output_token_ids
    [naive] = replay(demo_reference, [Claim(recording.sequence, recording.seed, recording.params, V1)])
    logits = np.concatenate([rows.logits.numpy() for rows in demo_reference.logits([recording.sequence])])
    scores = ngram_scores(
        logits, prompt, output, seed=recording.seed, params=recording.params, contract=V1, drafter=NgramDrafter(2, 3, 3)
    )
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
