"""Penalties and biases against plain loops, soft edges of the support, and both on real outputs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import golden

from verifier.filters import EDGE
from verifier.processors import History, not_modelled, processed
from verifier.recordings import read_recordings
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.scoring import score
from verifier.verify import verify_file

V1 = contract("vllm@0.26.0/v1")


def penalized(row, prompt, output, params):
    """vLLM's penalties, one id at a time."""
    row = row.astype(np.float64).copy()
    for i in range(len(row)):
        if i in prompt or i in output:
            row[i] = row[i] / params.repetition_penalty if row[i] > 0 else row[i] * params.repetition_penalty
        row[i] -= params.frequency_penalty * output.count(i) + params.presence_penalty * (i in output)
    return row


@given(
    st.lists(st.integers(0, 19), min_size=1, max_size=12), st.lists(st.integers(0, 19), min_size=1, max_size=12),
    st.sampled_from([0.7, 1.0, 1.3]), st.sampled_from([-1.0, 0.0, 0.4]), st.sampled_from([0.0, 0.3]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_penalties_are_those_of_a_plain_loop(prompt, output, repetition, presence, frequency):
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    logits = np.random.default_rng(0).normal(0, 3, (len(output), 20)).astype(np.float32)
    found = processed(logits, 0, History(prompt, output, ()), params)
    for number, row in enumerate(logits):
        np.testing.assert_allclose(found[number], penalized(row, prompt, output[:number], params), rtol=1e-5, atol=1e-6)


def test_bias_allowed_ids_and_minimum_length_act_before_penalties():
    params = SamplingParams(
        logit_bias={2: 5.0}, allowed_token_ids=(1, 2, 4), min_tokens=1, stop_token_ids=(4,), repetition_penalty=2.0
    )
    found = processed(np.ones((2, 6), np.float32), 0, History([2], [1, 1], [1]), params)
    np.testing.assert_array_equal(found[0], [-np.inf, -np.inf, 3.0, -np.inf, -np.inf, -np.inf])
    np.testing.assert_array_equal(found[1], [-np.inf, 0.5, 3.0, -np.inf, 1.0, -np.inf])


def test_a_bad_words_last_token_is_forbidden_only_after_its_beginning():
    params = SamplingParams(bad_words_token_ids=((3,), (1, 2)))
    found = processed(np.zeros((2, 5), np.float32), 0, History([0], [1, 0], ()), params)
    assert np.isinf(found).tolist() == [[False, False, False, True, False], [False, False, True, True, False]]


@pytest.mark.parametrize("sampler", ["vllm@0.26.0/v1", "vllm@0.26.0/v2", "sglang", "llama.cpp", "lmdeploy"])
def test_a_near_miss_of_the_support_is_marked_and_is_no_violation(sampler):
    logits = np.full((3, 9), -20.0, np.float32)
    logits[:, :5] = [4.0, 4.0, 4.0, 4.0 - 0.5 * EDGE, 4.0 - 2.5 * EDGE]
    rules, params = contract(sampler), SamplingParams(top_p=0.6)
    scores = score(
        logits, np.array([0, 3, 4]), seed=1, positions=rules.positions(4, 3), params=params, contract=rules
    )
    assert scores.inside_support.tolist() == [True, True, False]
    assert scores.edge.tolist() == [False, True, False]


def test_a_claim_just_below_the_cut_races_as_if_inside_and_one_beyond_has_no_margin():
    logits = np.zeros((2, 4), np.float32)
    logits[:] = [5.0, 4.0, 4.0 - 0.9 * EDGE, 4.0 - 1.1 * EDGE]
    params = SamplingParams(top_k=2)
    scores = score(logits, np.array([2, 3]), seed=1, positions=np.arange(2), params=params, contract=V1)
    assert scores.edge.tolist() == [True, False]
    assert np.isfinite(scores.margin[0])
    assert np.isinf(scores.margin[1])


def test_without_filters_nothing_is_at_an_edge():
    logits = np.random.default_rng(0).normal(0, 3, (50, 300)).astype(np.float32)
    scores = score(logits, np.zeros(50, int), seed=1, positions=np.arange(50), params=SamplingParams(), contract=V1)
    assert not scores.edge.any()


@pytest.mark.parametrize(
    ("name", "sampler", "off", "at_most"),
    [
        ("v1_pen", V1.id, {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}, 0.75),
        ("v1_bias", "vllm@0.26.0/v1", {"logit_bias": {}, "min_tokens": 0}, 0.93),
    ],
)
def test_real_outputs_verify_with_their_penalties_and_not_without(demo_reference, name, sampler, off, at_most):
    recordings = read_recordings(golden(name), limit=2)
    bare = [replace(recording, params=replace(recording.params, **off)) for recording in recordings]
    rules = contract(sampler)
    assert verify_file(name, recordings, demo_reference, rules).exact_match_rate >= 0.955
    assert verify_file(name, bare, demo_reference, rules).exact_match_rate <= at_most


def test_the_choices_of_one_request_have_seeds_of_their_own(demo_reference):
    recordings = read_recordings(golden("v2_n4"), limit=3)
    assert {recording.choice for recording in recordings} != {0}
    result = verify_file("v2_n4", recordings, demo_reference, contract("vllm@0.26.0/v2"))
    assert result.exact_match_rate >= 0.955


@pytest.mark.parametrize(
    ("engine", "on", "foreign"),
    [
        ("vllm", {"repetition_penalty": 1.2, "min_tokens": 3}, None),
        ("llama.cpp", {"repetition_penalty": 1.2}, "repetition_penalty"),
        ("llama.cpp", {"logit_bias": {3: 1.0}}, None),
        ("sglang", {"presence_penalty": 0.5}, None),
        ("sglang", {"presence_penalty": 0.5, "repetition_penalty": 1.2}, "repetition_penalty"),
        ("huggingface", {"repetition_penalty": 1.2}, None),
        ("mlx", {"min_tokens": 3}, "min_tokens"),
    ],
)
def test_a_processor_by_another_engines_formula_is_named(engine, on, foreign):
    assert not_modelled(engine, SamplingParams(**on)) == foreign
