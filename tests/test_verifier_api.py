"""verify_outputs, called as token-difr's README calls it, on a real model's recorded outputs."""

import pytest
import torch
from recorded import golden

from verifier import SamplingMethod, TokenMetrics, TokenSequence, compute_metrics_summary, verify_outputs
from verifier.errors import BadSequence, InputError, ReferenceUnreadable
from verifier.recordings import read_recordings


@pytest.fixture(scope="module")
def recorded():
    return [recording.sequence for recording in read_recordings(golden("honest_bf16"), limit=2)]


def test_the_seed_packages_call_gives_one_metrics_per_token(demo_directory, recorded, capsys):
    outputs = [*recorded, TokenSequence([1, 2, 3], [])]
    results = verify_outputs(
        outputs, model_name=str(demo_directory), temperature=1.0, top_k=50, top_p=0.95, seed=42, dtype=torch.float32
    )
    assert [len(tokens) for tokens in results] == [len(sequence.output_token_ids) for sequence in outputs]
    assert isinstance(results[0][0], TokenMetrics)
    summary = compute_metrics_summary(results)
    assert set(summary) == {
        "total_tokens", "exact_match_rate", "avg_prob", "avg_margin", "avg_logit_rank", "avg_gumbel_rank"
    }
    assert summary["exact_match_rate"] > 0.95
    assert "Exact match rate: 9" in capsys.readouterr().out


def test_a_seed_per_sequence_and_a_contract_can_be_given(demo_directory):
    recordings = read_recordings(golden("v2_plain"), limit=2)
    (right, wrong) = (
        verify_outputs(
            [recording.sequence for recording in recordings], str(demo_directory), temperature=1.0, top_k=0, top_p=1.0,
            seed=0, seeds=[recording.seed + step for recording in recordings], sampler="vllm@0.26.0/v2",
            dtype=torch.float32, verbose=False,
        )
        for step in (0, 1)
    )  # fmt: skip
    assert compute_metrics_summary(right)["exact_match_rate"] > 0.98
    assert compute_metrics_summary(wrong)["exact_match_rate"] < 0.4


def test_nothing_to_verify_gives_empty_lists_without_loading_a_model():
    call = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 42}
    assert verify_outputs([], "no such model", **call) == []
    assert verify_outputs([TokenSequence([1], [])], "no such model", **call) == [[]]


@pytest.mark.parametrize(
    ("sequence", "says"),
    [
        (TokenSequence([], [5]), "sequence 1: the prompt is empty"),
        (TokenSequence([1], [49152]), "sequence 1: a token id lies outside the model's 49152 logits"),
        (TokenSequence([1], [-1]), "sequence 1: a token id lies outside"),
        (TokenSequence([1] * 9000, [5]), "sequence 1: 9001 tokens exceed the context of 8192"),
    ],
)
def test_a_sequence_that_cannot_be_scored_is_named(demo_directory, sequence, says):
    outputs = [TokenSequence([1], [5]), sequence]
    with pytest.raises(BadSequence, match=says):
        verify_outputs(outputs, str(demo_directory), temperature=1.0, top_k=50, top_p=0.95, seed=42)


def test_max_model_len_is_a_limit(demo_directory):
    with pytest.raises(BadSequence, match="context of 3"):
        verify_outputs(
            [TokenSequence([1, 2], [3, 4])], str(demo_directory), temperature=1.0, top_k=50, top_p=0.95, seed=1,
            max_model_len=3,
        )  # fmt: skip


def test_wrong_arguments_are_refused(tmp_path):
    outputs, call = [TokenSequence([1], [5])], {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "seed": 42}
    with pytest.raises(ReferenceUnreadable, match=r"config\.json is missing"):
        verify_outputs(outputs, str(tmp_path), **call)
    with pytest.raises(InputError, match="2 seeds for 1 outputs"):
        verify_outputs(outputs, str(tmp_path), seeds=[1, 2], **call)
    with pytest.raises(InputError, match="name the engine by `sampler`"):
        verify_outputs(outputs, str(tmp_path), sampling_method="tinker", **call)
    assert SamplingMethod("vllm_gumbel_max") is SamplingMethod.VLLM_GUMBEL_MAX
