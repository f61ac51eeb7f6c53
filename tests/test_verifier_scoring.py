"""Supports and scores against a plain torch twin that sorts every row, as vLLM's own fallback path does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.errors import InputError
from verifier.filters import support
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores, score
from verifier.sequences import TokenMetrics, compute_metrics_summary, token_metrics


def sorted_support(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Mask of the tokens that vLLM's sort path leaves (ops/topk_topp_sampler.py), in float64."""
    z = logits.double() / params.temperature
    if params.min_p > 0:
        probs = z.softmax(1)
        z = z.masked_fill(probs < params.min_p * probs.max(1, keepdim=True).values, -torch.inf)
    ordered, index = z.sort(1)
    if params.top_k > 0:
        kth = ordered[:, max(0, z.shape[1] - params.top_k)].unsqueeze(1)
        ordered = ordered.masked_fill(ordered < kth, -torch.inf)
    if params.top_p < 1:
        dropped = ordered.softmax(1).cumsum(1) <= 1 - params.top_p
        dropped[:, -1] = False
        ordered = ordered.masked_fill(dropped, -torch.inf)
    return torch.isfinite(torch.full_like(z, -torch.inf).scatter(1, index, ordered))


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.05, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([-1, 0, 1, 2, 40, 10_000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
)


@given(PARAMS, st.integers(0, 2**32), st.sampled_from([0.2, 3.0, 10.0]), st.sampled_from([1, 7, 600]))
@settings(max_examples=150, deadline=None)
def test_the_support_is_what_a_full_sort_leaves(params, seed, spread, width):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (3, width)).astype(np.float32))
    log_mass = torch.logsumexp(logits.double() / params.temperature, 1).numpy()
    kept = support(logits.numpy(), log_mass, params)
    mask = sorted_support(logits, params)
    np.testing.assert_array_equal(logits.numpy() >= kept.cuts[:, None], mask.numpy())
    inside = (logits.double() / params.temperature).masked_fill(~mask, -torch.inf)
    np.testing.assert_allclose(kept.log_mass, inside.logsumexp(1).numpy(), rtol=0, atol=1e-5)


def test_ties_at_the_kth_logit_stay():
    logits = np.array([[3.0, 1.0, 1.0, 1.0, 0.0]], np.float32)
    kept = support(logits, np.log(np.exp(logits).sum(1)), SamplingParams(top_k=2))
    assert (logits >= kept.cuts[:, None]).tolist() == [[True, True, True, True, False]]


@pytest.mark.parametrize("sampler", ["vllm@0.26.0/v1", "vllm@0.26.0/v2", "vllm@0.20.0/v2", "greedy"])
@given(params=PARAMS, seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_scores_equal_their_definitions_computed_densely(sampler, params, seed):
    rules = contract(sampler)
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (4, 700)).astype(np.float32))
    ids, positions = rng.integers(0, 700, 4), rules.positions(10, 4)
    ids[0] = int(logits[0].argmax())
    scores = score(logits.numpy(), ids, seed=seed, positions=positions, params=params, contract=rules)
    z = logits.numpy().astype(np.float64) / params.temperature
    noise = 0.0 if sampler == "greedy" else rules.gumbel(np.full(4, seed), positions, np.arange(700), 700)
    noised = z + noise
    if sampler != "greedy":
        noised[~sorted_support(logits, params).numpy()] = -np.inf
    own = noised[np.arange(4), ids]
    let_in = np.isfinite(scores.margin) & np.isinf(own)  # near misses of the support are drawn for as if inside
    assert scores.edge[let_in].all()
    np.testing.assert_array_equal(scores.predicted_ids[~let_in], noised.argmax(1)[~let_in])
    margins = params.temperature * (noised.max(1) - own)
    np.testing.assert_allclose(scores.margin[~let_in], margins[~let_in], atol=2e-5)
    assert np.isfinite(scores.margin[np.isfinite(own)]).all()
    inside = np.isfinite(own)
    np.testing.assert_array_equal(scores.gumbel_rank[inside], (noised > own[:, None]).sum(1)[inside])
    assert np.isinf(scores.gumbel_rank[~inside & ~let_in]).all()
    np.testing.assert_array_equal(scores.logit_rank, (z > z[np.arange(4), ids][:, None]).sum(1))
    p = torch.softmax(torch.from_numpy(z), 1).numpy()
    np.testing.assert_allclose(scores.logprob, np.log(p[np.arange(4), ids]), atol=1e-4)
    np.testing.assert_allclose(scores.entropy, -(p * np.log(p)).sum(1), atol=1e-3)


def test_greedy_params_take_the_argmax_whatever_the_contract_and_filters():
    logits = torch.tensor([[1.0, 5.0, 2.0], [0.0, 1.0, 4.0]])
    ids = np.array([1, 0])
    params = SamplingParams(temperature=0.0, top_k=1, top_p=0.5)
    rules = contract("vllm@0.26.0/v2")
    scores = score(logits.numpy(), ids, seed=3, positions=np.array([0, 1]), params=params, contract=rules)
    assert scores.exact_match.tolist() == [True, False]
    assert scores.margin.tolist() == [0.0, 4.0]
    assert scores.prob.tolist() == [1.0, 0.0]


def test_a_temperature_under_vllms_lowest_is_raised_to_it():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    rules = contract("vllm@0.26.0/v2")
    ids, positions = np.array([1, 2]), np.array([5, 6])
    low, lowest = (
        score(logits.numpy(), ids, seed=1, positions=positions, params=SamplingParams(temperature=heat), contract=rules)
        for heat in (0.001, 0.01)
    )
    np.testing.assert_array_equal(low.margin, lowest.margin)


def test_outside_the_support_margin_and_rank_are_infinite_and_never_dropped():
    logits = torch.tensor([[10.0, 0.0, -10.0]])
    params, rules = SamplingParams(top_k=1), contract("vllm@0.26.0/v2")
    scores = score(logits.numpy(), np.array([2]), seed=1, positions=np.array([0]), params=params, contract=rules)
    assert not scores.inside_support[0]
    assert np.isinf(scores.margin[0])
    assert scores.prob[0] == 0.0
    assert np.isinf(compute_metrics_summary([token_metrics(scores)])["avg_margin"])


def test_scores_join_and_slice():
    logits = torch.randn(6, 40)
    rules, ids = contract("vllm@0.26.0/v2"), np.arange(6)
    whole = score(logits.numpy(), ids, seed=1, positions=np.arange(6), params=SamplingParams(), contract=rules)
    parts = TokenScores.join([whole[:2], whole[2:]])
    np.testing.assert_array_equal(parts.margin, whole.margin)
    assert len(TokenScores.join([])) == 0


def test_metrics_survive_a_round_trip_and_an_empty_summary_is_zero():
    metrics = TokenMetrics(True, 0.5, 0.0, 0.0, 0.0)
    assert TokenMetrics.from_dict(metrics.to_dict()) == metrics
    assert compute_metrics_summary([[]])["exact_match_rate"] == 0.0


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -2}, {"min_p": 2.0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(InputError):
        SamplingParams(**wrong)
