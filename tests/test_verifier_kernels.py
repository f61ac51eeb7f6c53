"""The scoring kernel and its torch twin against the CPU's scoring; the kernel runs on a GPU or in Triton's interpreter.

Without either (`TRITON_INTERPRET=1` and an installed triton), the kernel's own tests are skipped and the twin's stay.
"""

import os

import numpy as np
import pytest
import torch

from verifier import kernels_twin
from verifier.kernels_rows import COLUMNS, Noise
from verifier.processors import changes_logits
from verifier.reference_cuda import pieces_between
from verifier.reference_scoring import Piece, family, kernel_rows, score_pieces, token_scores
from verifier.replay import Claim
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.scoring import score
from verifier.sequences import TokenSequence

SAMPLERS = [
    "vllm@0.26.0/v1", "vllm@0.26.0/v1:gpu=T4", "vllm@0.13.0/v2", "vllm@0.17.0/v2", "vllm@0.20.0/v2", "vllm@0.22.0/v2",
    "vllm@0.26.0/v2", "vllm@0.31.0/v2", "sglang@0.5.10:index=id", "sglang@0.5.20:index=id", "greedy",
]  # fmt: skip
FILTERS = [
    SamplingParams(), SamplingParams(temperature=0.7, top_k=50, top_p=0.95), SamplingParams(top_p=0.9),
    SamplingParams(min_p=0.05), SamplingParams(temperature=1.4, top_k=300, min_p=0.01, top_p=0.6),
    SamplingParams(top_p=0.999, temperature=2.0), SamplingParams(temperature=0.0, top_k=5),
]  # fmt: skip
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def claims_for(sampler, params, width, count, dtype, seed=0):
    """Logits [count, width] and a claim of `count` tokens: the likeliest, likely ones, and one at random."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 3, (count, width)).astype(np.float32)).to(dtype)
    ids = rng.integers(0, width, count)
    likely = logits.float().topk(min(5, width), 1).indices.numpy()
    for row in range(count):
        if row % 4 < 3:
            ids[row] = likely[row, (row % 4) % likely.shape[1]]
    sequence = TokenSequence(list(range(7)), ids.tolist())
    return logits, Claim(sequence, int(rng.integers(-(2**63), 2**63)), params, contract(sampler))


def by_cpu(logits, claim):
    positions = claim.contract.positions(len(claim.sequence.prompt_token_ids), len(logits))
    ids = np.asarray(claim.sequence.output_token_ids)
    return score(
        logits.float().numpy(), ids, seed=claim.seed, positions=positions, params=claim.params, contract=claim.contract
    )


def assert_same(columns, scores, slack=1.0):
    """`slack` widens the margin's tolerance: a GPU's own logarithm moves V1's noise by up to 3.6e-7/q."""
    found = token_scores(columns.cpu().numpy(), scores.token_ids.tolist())
    for name in ("predicted_ids", "logit_rank", "gumbel_rank", "edge", "exact_match", "inside_support"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scores, name), err_msg=name)
    for name in ("margin", "prob", "logprob", "entropy"):
        np.testing.assert_allclose(getattr(found, name), getattr(scores, name),
                                   rtol=1e-4, atol=5e-5 * slack, err_msg=name)


def rows_of(claim, width, count):
    return kernel_rows([Piece(0, claim, 0, count)], *family(claim), width=width)


def covered(sampler, params):
    return not (sampler.startswith("sglang") and (params.top_k or params.top_p < 1 or params.min_p))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("params", FILTERS, ids=lambda p: f"k{p.top_k}p{p.top_p}m{p.min_p}T{p.temperature}")
def test_the_twin_scores_as_the_cpu_does(sampler, params):
    if not covered(sampler, params):
        pytest.skip("SGLang filters by rank; the kernel leaves that to the CPU")
    logits, claim = claims_for(sampler, params, 1003, 8, torch.float32)
    assert_same(kernels_twin.score_rows(logits, rows_of(claim, 1003, 8)), by_cpu(logits, claim))


def test_the_twin_wraps_a_small_gpus_grid():
    logits, claim = claims_for("vllm@0.26.0/v1:gpu=T4", SamplingParams(), 50_000, 2, torch.float32)
    assert_same(kernels_twin.score_rows(logits, rows_of(claim, 50_000, 2)), by_cpu(logits, claim))


def test_claims_that_the_kernel_cannot_score_have_no_family():
    plain, sequence = contract("vllm@0.26.0/v2"), TokenSequence([1], [2])
    penalized = SamplingParams(repetition_penalty=1.1)
    assert changes_logits(penalized)
    assert family(Claim(sequence, 1, penalized, plain)) is None
    assert family(Claim(sequence, 1, SamplingParams(), contract("sglang@0.5.20"))) is None
    assert family(Claim(sequence, 1, SamplingParams(), contract("vllm@0.26.0/v1:fp64=on"))) is None
    assert family(Claim(sequence, 1, SamplingParams(), plain)) == (Noise.VLLM_E, 0)
    assert family(Claim(sequence, 1, SamplingParams(temperature=0.0), plain)) == (Noise.GREEDY, 0)


def test_what_the_kernel_leaves_is_scored_by_the_cpu_in_its_place():
    params = SamplingParams(presence_penalty=0.5, top_p=0.9)
    logits, claim = claims_for("vllm@0.26.0/v2", params, 300, 4, torch.float32)
    other = Claim(claim.sequence, 5, params, contract("vllm@0.26.0/v1"))
    pieces = [Piece(0, claim, 0, 4), Piece(1, other, 0, 4)]
    columns = score_pieces(torch.cat([logits, logits]), pieces, [], {})
    assert columns.shape == (8, len(COLUMNS))
    assert not torch.equal(columns[:4, 0], columns[4:, 0])
    one = score_pieces(logits, pieces[1:], [], {})
    np.testing.assert_array_equal(columns[4:].numpy(), one.numpy())


def test_chunks_of_a_batch_cover_every_token_once():
    claims = [Claim(TokenSequence([1], list(range(n))), 0, SamplingParams(), contract("greedy")) for n in (5, 1, 7)]
    found = [
        (piece.number, piece.first + i)
        for first in range(0, 13, 3)
        for piece in pieces_between(claims, [2, 0, 1], first, min(first + 3, 13))
        for i in range(piece.count)
    ]
    assert found == [(2, i) for i in range(7)] + [(0, i) for i in range(5)] + [(1, 0)]


@pytest.fixture
def kernel():
    """The kernel, where something can run it."""
    pytest.importorskip("triton", reason="the kernel needs triton: pip install triton, then TRITON_INTERPRET=1")
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("the kernel needs a GPU, or TRITON_INTERPRET=1")
    from verifier.kernels import score_rows

    return score_rows


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("params", FILTERS, ids=lambda p: f"k{p.top_k}p{p.top_p}m{p.min_p}T{p.temperature}")
def test_the_kernel_scores_as_the_cpu_does(kernel, sampler, params):
    if not covered(sampler, params):
        pytest.skip("SGLang filters by rank; the kernel leaves that to the CPU")
    width, count = (2500, 2) if INTERPRETED else (4999, 32)
    logits, claim = claims_for(sampler, params, width, count, torch.float32)
    slack = 600.0 if "/v1" in sampler and not INTERPRETED else 1.0
    assert_same(kernel(logits.to(DEVICE), rows_of(claim, width, count)), by_cpu(logits, claim), slack)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 5000])
def test_the_kernel_takes_half_precision_ties_and_odd_widths(kernel, dtype, width):
    params = SamplingParams(top_k=4500, top_p=0.9)
    logits, claim = claims_for("vllm@0.26.0/v2", params, width, 2, dtype)
    assert_same(kernel(logits.to(DEVICE), rows_of(claim, width, 2)), by_cpu(logits, claim))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1000, 49_152, 128_256, 262_144])
@pytest.mark.parametrize("count", [1, 33, 700])
@pytest.mark.parametrize("params", FILTERS, ids=lambda p: f"k{p.top_k}p{p.top_p}m{p.min_p}T{p.temperature}")
def test_the_kernel_equals_the_twin_on_a_gpu(kernel, width, count, params):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    count = min(count, 2**26 // width)
    logits, claim = claims_for("vllm@0.26.0/v2", params, width, count, torch.bfloat16, seed=count)
    rows = rows_of(claim, width, count)
    found, twin = (f(logits.cuda(), rows).cpu().numpy() for f in (kernel, kernels_twin.score_rows))
    again = kernel(logits.cuda(), rows).cpu().numpy()
    np.testing.assert_array_equal(found, again)
    # Rounding may move an edge token of a flat row across the cut: then all of a row's filtered columns differ.
    same = np.isclose(found, twin, rtol=2e-4, atol=1e-4).all(1)
    assert (~same).sum() <= max(1, count // 100)
