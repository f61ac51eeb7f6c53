"""The scoring kernels against their torch twin, and the twin against the CPU's scoring.

The kernels run on a GPU; without one in Triton's interpreter, on small blocks, where a triton is installed.
"""

from dataclasses import replace

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
# The interpreter computes masked lanes in NumPy too, which warns of their infinities.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

INTERPRETED = not torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"
BLOCK = 64  # of the interpreter, which needs as long for one lane as for many
LARGE = 700 if INTERPRETED else 5000
PLAIN, FILTERED = FILTERS[:2]
# SGLang filters by rank; the kernel leaves that to the CPU.
PAIRS = [(s, p) for s in SAMPLERS for p in FILTERS if not s.startswith("sglang") or p == PLAIN or p.is_greedy]
CASES = [(s, p) for s, p in PAIRS if not INTERPRETED or p == PLAIN or s == "vllm@0.26.0/v2"]


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


def assert_same(columns, scores):
    found = token_scores(columns.cpu().numpy(), scores.token_ids.tolist())
    for name in ("predicted_ids", "logit_rank", "gumbel_rank", "edge", "exact_match", "inside_support"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scores, name), err_msg=name)
    for name in ("margin", "prob", "logprob", "entropy"):
        np.testing.assert_allclose(getattr(found, name), getattr(scores, name), rtol=1e-4, atol=5e-5, err_msg=name)


def assert_near(columns, logits, rows):
    """The kernel's columns are the twin's, up to float32's rounding.

    A noised score may be off by 2e-5, which is more than float32 logarithms and products lose; where V1's noise is made
    by the GPU's own logarithm, as V1 does, by 4e-7·e^g more (2^-21.4 of an exponential q = e^-g, relative to q). The
    cut may be that of any top-p within 1e-5 of the row's, since a sum of 100,000 float32 terms is no better. So the
    winner must come within these of the best score, and the rank lie between those that moving every score by as much
    gives. The rest agrees to 1e-4 relative or 5e-5.
    """
    found = dict(zip(COLUMNS, columns.double().T, strict=True))
    twin = dict(zip(COLUMNS, kernels_twin.score_rows(logits, rows).double().T, strict=True))
    claimed = torch.from_numpy(rows.claimed).to(logits.device)
    z, noise = logits.double(), kernels_twin.noise(rows, logits.shape[1], logits.device)
    high, low = (
        kernels_twin.cuts(z, replace(rows, top_p=np.where(rows.top_p < 1, rows.top_p * np.float32(x), 1)))
        for x in (1 - 1e-5, 1 + 1e-5)
    )
    own_z = at(z, claimed)
    least, most = (torch.where(own_z >= cut - rows.edge, own_z.minimum(cut), cut) for cut in (high, low))
    inside = own_z >= least
    sure = (high == low) | (inside == (own_z >= most))
    assert (~sure).sum() <= max(1, len(rows) // 50)
    heat = torch.from_numpy(rows.temperature).to(logits.device).double()
    scores = z / heat[:, None] + noise
    slack = 2e-5 + (4e-7 * noise.exp() if rows.noise is Noise.CUDA_RACE and logits.is_cuda else 0.0 * noise)
    certain, possible = (scores.masked_fill(z < soft[:, None], -torch.inf) for soft in (least, most))

    assert_close(found["logprob"], twin["logprob"])
    assert_close(found["entropy"], twin["entropy"])
    assert torch.equal(found["logit_rank"], twin["logit_rank"])
    assert (at(possible + slack, found["winner"]) >= (certain - slack).amax(1))[sure].all()
    assert_close(found["prob"][sure], twin["prob"][sure])
    assert torch.equal(found["margin"].isinf()[sure], ~inside[sure])
    known = sure & inside
    off = heat * (at(slack, twin["winner"]) + at(slack, found["winner"]) + at(slack, claimed))
    same = high == low
    assert ((found["margin"] - twin["margin"]).abs() <= 5e-5 + 1e-4 * twin["margin"] + off)[known & same].all()
    own, mine = at(scores, claimed)[:, None], at(slack, claimed)[:, None]
    fewest = (certain - slack > own + mine).sum(1)
    furthest = (possible + slack > own - mine).sum(1) - 1
    assert ((found["gumbel_rank"] >= fewest) & (found["gumbel_rank"] <= furthest.clamp(min=0)))[known].all()
    same &= found["winner"] == twin["winner"]
    assert torch.equal(found["flags"][same], twin["flags"][same])


def at(values, ids):
    return values.gather(1, ids.long()[:, None])[:, 0]


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-5)


def rows_of(claim, width, count):
    return kernel_rows([Piece(0, claim, 0, count)], *family(claim), width=width)


@pytest.mark.parametrize(("sampler", "params"), PAIRS)
def test_the_twin_scores_as_the_cpu_does(sampler, params):
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
def kernel(monkeypatch):
    """The kernel, where something can run it."""
    pytest.importorskip("triton", reason="the kernels need triton, which has no build for this platform")
    from verifier import kernels

    if INTERPRETED:
        for name in ("RACE", "KEEP", "WHOLE"):
            monkeypatch.setattr(kernels, name, (BLOCK, 4))
    return kernels.score_rows


def checked(kernel, logits, rows):
    logits = logits.to(DEVICE)
    found = kernel(logits, rows)
    assert_near(found, logits, rows)
    return found


@pytest.mark.parametrize(("sampler", "params"), CASES)
def test_the_kernel_scores_as_the_twin_does(kernel, sampler, params):
    width, count = (601, 2) if INTERPRETED else (4999, 32)
    logits, claim = claims_for(sampler, params, width, count, torch.float32)
    checked(kernel, logits, rows_of(claim, width, count))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("params", "width"), [
    (SamplingParams(top_k=10**6), 7), (SamplingParams(top_k=3, top_p=0.9), 257),
    (SamplingParams(top_k=(9 * LARGE) // 10, top_p=0.9), LARGE), (SamplingParams(min_p=0.5, temperature=0.01), 1),
    (SamplingParams(temperature=0.01, min_p=1e-9, top_p=0.99), LARGE),
], ids=["off", "narrow", "wide", "one", "cold"])  # fmt: skip
def test_the_kernel_takes_every_dtype_ties_and_odd_widths(kernel, dtype, width, params):
    logits, claim = claims_for("vllm@0.26.0/v2", params, width, 2, dtype)
    checked(kernel, logits, rows_of(claim, width, 2))


def test_the_kernel_takes_impossible_tokens_and_rows_of_both_kinds(kernel):
    logits, claim = claims_for("vllm@0.26.0/v2", SamplingParams(), 300, 4, torch.float32)
    logits[:, ::3] = -torch.inf
    logits[torch.arange(4), torch.tensor(claim.sequence.output_token_ids)] = 1.0
    filtered = replace(claim, params=SamplingParams(top_k=20, top_p=0.9))
    pieces = [Piece(0, claim, 0, 2), Piece(1, filtered, 2, 2)]
    found = checked(kernel, logits, kernel_rows(pieces, *family(claim), width=300))
    assert not found.isnan().any()


@pytest.mark.parametrize("params", [PLAIN, FILTERED])
def test_blocks_that_cannot_win_are_not_missed(kernel, params):
    """Logits like a language model's: most of them so far under the top that their noise is never made."""
    rng = np.random.default_rng(5)
    width, count = (900, 4) if INTERPRETED else (50_000, 64)
    logits = torch.from_numpy(rng.normal(-22, 3, (count, width)).astype(np.float32))
    logits[:, rng.integers(0, width, 6)] += torch.from_numpy(rng.normal(20, 2, (count, 6)).astype(np.float32))
    _, claim = claims_for("vllm@0.26.0/v1", params, width, count, torch.float32)
    ids = logits.topk(2, 1).indices[torch.arange(count), torch.arange(count) % 2]
    claim = replace(claim, sequence=TokenSequence([1], ids.tolist()))
    checked(kernel, logits, rows_of(claim, width, count))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1000, 49_152, 128_256, 262_144])
@pytest.mark.parametrize("count", [1, 33, 700, 4096])
@pytest.mark.parametrize("params", FILTERS, ids=lambda p: f"k{p.top_k}p{p.top_p}m{p.min_p}T{p.temperature}")
def test_the_kernel_is_deterministic_at_every_size(kernel, width, count, params):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    logits, claim = claims_for("vllm@0.26.0/v2", params, width, min(count, 128), torch.bfloat16, seed=count)
    repeats = -(-count // len(logits))
    ids = (claim.sequence.output_token_ids * repeats)[:count]
    claim = replace(claim, sequence=TokenSequence([1], ids))
    logits, rows = logits.cuda().repeat(repeats, 1)[:count], rows_of(claim, width, count)
    found = kernel(logits, rows)
    assert torch.equal(found, kernel(logits, rows))
    some = min(count, 2**25 // width)
    assert_near(found[-some:], logits[-some:], tail(rows, some))


def tail(rows, count):
    """The last `count` rows."""
    columns = ("claimed", "seeds", "positions", "top_k", "temperature", "top_p", "min_p")
    return replace(rows, **{name: getattr(rows, name)[-count:] for name in columns})
