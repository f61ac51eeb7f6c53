"""Every engine's noise and filters against recorded vectors, real libraries, or a transcription in plain Python."""

import json
import math

import numpy as np
import pytest
import torch
from recorded import BESIDE, noise_vectors

from verifier.errors import UnknownContract
from verifier.filters import Support
from verifier.samplers import assumption, candidates, contract, mt19937, sglang, stands_for, vllm_v2
from verifier.samplers.huggingface import min_p_last
from verifier.samplers.mlx import THREEFRY
from verifier.samplers.ordering import descending
from verifier.samplers.splitmix import SPLITMIX, row_seeds
from verifier.samplers.torch_cpu import CpuRace
from verifier.samplers.torch_cuda import WRAPPED, CudaRace
from verifier.sampling_params import SamplingParams

MASK32 = 2**32 - 1
PLAIN = SamplingParams()


def masses_of(logits: np.ndarray, temperature: float) -> np.ndarray:
    return np.logaddexp.reduce(logits.astype(np.float64) / temperature, axis=1)


def draw(rules, logits, claimed, seed, params=PLAIN, prompt=10):
    """What a contract draws from rows of logits that follow a prompt."""
    positions = rules.positions(prompt, len(logits))
    log_mass = masses_of(logits, params.temperature)
    return rules.draw(logits, log_mass, np.asarray(claimed), seed=seed, positions=positions, params=params)


# Recorded vectors


@pytest.mark.parametrize(
    ("named", "contract_id", "count", "tolerance"),
    [
        ("sglang-0.5.3", "sglang@0.5.3", 36, 2e-6),
        ("sglang-0.5.4", "sglang@0.5.7", 36, 2e-6),
        ("sglang-0.5.9", "sglang@0.5.17", 36, 1e-9),
        ("sglang-0.5.18", "sglang@0.5.23", 36, 1e-9),
        ("torch-cpu-race", "vllm@0.29.0/cpu", 18, 2e-6),
        ("vllm-cpu-splitmix", "vllm@0.32.0/cpu", 18, 1e-9),
    ],
)
def test_noise_equals_the_recorded_vectors(named, contract_id, count, tolerance):
    vectors = [v for v in noise_vectors(named) if v["contract"].split()[0].split("(")[0] == named]
    assert len(vectors) == count
    rules = contract(contract_id)
    for vector in vectors:
        width = vector["vocab"]
        (row,) = rules.gumbel([vector["seed"]], [vector["position"]], np.arange(width), width)
        assert row.argmax() == vector["argmax"]
        np.testing.assert_allclose(row[vector["index"]], vector["gumbel"], rtol=0, atol=tolerance)
        if "row_seed" in vector:
            assert row_seeds([vector["seed"]], [vector["position"]]).tolist() == [vector["row_seed"]]


@pytest.mark.skipif(not (BESIDE / "vectors").is_dir(), reason="the full set of CUDA vectors is not beside the checkout")
@pytest.mark.parametrize("width", [1000, 49152, 128256, 151936, 262144, 300000])
def test_cuda_fills_of_float64_rows_and_uniforms_equal_what_an_h100_drew(width):
    arrays = np.load(BESIDE / "vectors" / "cuda_noise.npz")
    wide = contract("vllm@0.26.0/v1:fp64=on").gumbel([42], [0], np.arange(64), width)[0]
    plain = contract("vllm@0.26.0/v1").gumbel([42], [0], np.arange(64), width)[0]
    np.testing.assert_allclose(np.exp(-wide), arrays[f"V{width}_f64"], rtol=0, atol=1e-12)
    # One row of a larger tensor, filled alone, is a fill of its own.
    np.testing.assert_allclose(np.exp(-plain), arrays[f"V{width}_row"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.exp(-np.exp(-plain)), arrays[f"V{width}_unif"], rtol=0, atol=1e-6)


# Generators


def test_the_twister_is_the_standards_and_numpys():
    assert mt19937.words(5489, 10_000)[-1] == 4123659995  # C++ standard, [rand.predef]
    for seed in (0, 1, MASK32, -5, 2**40 + 7):
        expected = np.random.RandomState(seed & MASK32).randint(0, 2**32, 3000, dtype=np.uint32)
        np.testing.assert_array_equal(mt19937.words(seed, 3000), expected)


def test_row_seeds_are_what_torchs_randint_gives():
    for seed in (0, 42, 2**62 + 1, -3):
        generator = torch.Generator().manual_seed(seed)
        drawn = [int(torch.randint(0, 2**31, (1,), generator=generator)) for _ in range(400)]
        assert row_seeds([seed] * 400, np.arange(400)).tolist() == drawn


@pytest.mark.parametrize("width", [1, 7, 1000])
@pytest.mark.parametrize("seed", [0, 42, 2**63 - 1, -1])
def test_the_cpu_race_is_torchs_exponential_at_any_draw(width, seed):
    generator = torch.Generator().manual_seed(seed)
    fills = torch.stack([torch.empty(width).exponential_(generator=generator) for _ in range(9)])
    order = np.array([8, 0, 3, 3, 7])
    noise = contract("vllm@0.29.0/cpu").gumbel(np.full(5, seed), order, np.arange(width), width)
    np.testing.assert_allclose(np.exp(-noise), fills[order].numpy(), rtol=1e-6)
    some = np.array([width - 1, 0])
    np.testing.assert_array_equal(
        noise[:, some], contract("vllm@0.29.0/cpu").gumbel(np.full(5, seed), order, some, width)
    )


# mx.random.gumbel of mlx 0.31.2 (CPU) after mx.random.seed: width, seed, draw, values
MLX = [
    (7, 42, 0, [-0.4069019, 1.538528, 0.2061566, 1.279363, 1.2517531, 0.8773912, -1.4940742]),
    (7, 42, 1, [1.4834976, -0.8010672, -0.0746095, -1.2210732, 0.1370475, -0.1353613, -0.0415296]),
    (7, 1099511627779, 0, [0.6176589, 1.3353938, -0.1913831, 1.4376206, 0.970897, -0.2993461, -0.8165085]),
    (7, 1099511627779, 1, [-0.5739177, 3.2430289, 3.0922198, 3.0038915, -0.429325, -1.120506, 1.5361476]),
    (8, 42, 0, [-0.4069019, 1.538528, 0.2061566, -0.3847122, 1.2517531, 0.8773912, -1.4940742, -0.0320319]),
    (8, 42, 1, [1.4834976, -0.8010672, -0.0746095, 3.27125, 0.1370475, -0.1353613, -0.0415296, 0.1155723]),
    (8, 1099511627779, 0, [0.6176589, 1.3353938, -0.1913831, 0.5710799, 0.970897, -0.2993461, -0.8165085, 0.4083818]),
    (8, 1099511627779, 1, [-0.5739177, 3.2430289, 3.0922198, 1.0637558, -0.429325, -1.120506, 1.5361476, -0.6093193]),
]


@pytest.mark.parametrize(("width", "seed", "place", "expected"), MLX)
def test_threefry_noise_equals_what_mlx_drew(width, seed, place, expected):
    (noise,) = contract("mlx@0.32.0").gumbel([seed], [place], np.arange(width), width)
    np.testing.assert_allclose(noise, expected, rtol=0, atol=2e-6)


# Options and rows of a race


def murmur_by_the_book(blocks, state):
    def turn(x, r):
        return (x << r | x >> 32 - r) & MASK32

    h = state
    for k in blocks:
        h = (turn(h ^ turn(k * 0xCC9E2D51 & MASK32, 15) * 0x1B873593 & MASK32, 13) * 5 + 0xE6546B64) & MASK32
    h ^= 4 * len(blocks)
    h = (h ^ h >> 16) * 0x85EBCA6B & MASK32
    h = (h ^ h >> 13) * 0xC2B2AE35 & MASK32
    return h ^ h >> 16


@pytest.mark.parametrize(("seed", "position"), [(7, 35), (-3, 2**33 + 5), (2**63 - 1, 0)])
def test_era_f_in_float64_is_two_hashes_of_53_bits(seed, position):
    (noise,) = contract("vllm@0.33.0/v2:fp64=on").gumbel([seed], [position], np.arange(50), 50)
    for v in range(50):
        blocks = [seed & MASK32, seed >> 32 & MASK32, position & MASK32, v]
        high, low = murmur_by_the_book(blocks, 0x9E3779B9), murmur_by_the_book(blocks, 0)
        u = ((high << 32 | low) >> 11) + 0.5
        assert noise[v] == pytest.approx(-math.log(-math.log(u * 2.0**-53)), abs=1e-9)


def test_float64_in_eras_d_and_e_is_era_cs_noise():
    columns = np.arange(100)
    wide = [contract(f"vllm@{v}/v2:fp64=on").gumbel([5], [9], columns, 100) for v in ("0.22.1", "0.26.0")]
    for noise in wide:
        np.testing.assert_array_equal(noise, contract("vllm@0.20.0/v2").gumbel([5], [9], columns, 100))


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precision_fills_are_float32_fills_rounded(dtype, torch_dtype):
    width = 200_000
    exact = contract("tgi").gumbel([3], [2], np.arange(width), width)[0]
    rounded = contract(f"tgi:dtype={dtype}").gumbel([3], [2], np.arange(width), width)[0]
    q = torch.from_numpy(np.exp(-exact).astype(np.float32))
    np.testing.assert_allclose(np.exp(-rounded), q.to(torch_dtype).double().numpy(), rtol=1e-12)


def test_a_row_of_a_batch_is_a_stretch_of_one_long_fill():
    width, batch = 50_000, 7
    whole = CudaRace("whole").gumbel([11], [3], np.arange(width * batch), width * batch)[0].reshape(batch, width)
    for row in range(batch):
        rules = contract(f"huggingface/cuda:row={row},batch={batch}")
        np.testing.assert_array_equal(rules.gumbel([11], [3], np.arange(width), width)[0], whole[row])
    cpu = CpuRace("whole").gumbel([11], [3], np.arange(700), 700)[0].reshape(7, 100)
    rules = contract("huggingface/cpu:row=4,batch=7")
    np.testing.assert_array_equal(rules.gumbel([11], [3], np.arange(100), 100)[0], cpu[4])


def test_a_float64_fill_gives_a_thread_two_values_before_a_second_block():
    threads = 40960
    rules = CudaRace("x", grid_threads=threads, dtype="float64")
    wide = rules.gumbel([5], [0], np.arange(3 * threads), 3 * threads)[0]
    # A fill of three rounds takes two blocks: the third round is what the first would be one block later.
    later = CudaRace("x", dtype="float64").gumbel([5], [1], np.arange(threads), threads)[0]
    np.testing.assert_array_equal(wide[2 * threads :], later)
    assert not np.isin(wide[threads : 2 * threads], later).any()


# Whole draws


def test_generate_on_a_cpu_draws_what_torchs_multinomial_draws():
    logits = np.random.default_rng(0).normal(0, 2, (12, 3, 300)).astype(np.float32)
    torch.manual_seed(99)
    drawn = [torch.multinomial(torch.softmax(torch.from_numpy(step), 1), 1).ravel().tolist() for step in logits]
    for row in range(3):
        found = draw(contract(f"huggingface/cpu:row={row},batch=3"), logits[:, row], np.zeros(12, int), 99)
        assert found.winners.tolist() == [step[row] for step in drawn]


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 0.8, 0.0), (5, 0.9, 0.3), (0, 1.0, 0.2), (40, 0.5, 0.05)])
def test_generates_filters_keep_what_transformers_warpers_keep(top_k, top_p, min_p):
    from transformers.generation import logits_process as warpers

    logits = np.random.default_rng(top_k).normal(0, 3, (20, 500)).astype(np.float32)
    scores = torch.from_numpy(logits) / 0.7
    if top_k:
        scores = warpers.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = warpers.TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = warpers.MinPLogitsWarper(min_p)(None, scores)
    params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = min_p_last(logits, masses_of(logits, 0.7), params)
    np.testing.assert_array_equal(logits >= kept.cuts[:, None], torch.isfinite(scores).numpy())
    np.testing.assert_allclose(kept.log_mass, torch.logsumexp(scores.double(), 1).numpy(), atol=1e-5)


def sglang_by_the_book(rules, row, seed, position, params, by_rank):
    """Scores [V] of ids as SGLang's sampler computes them; −∞ outside the support."""
    p = torch.softmax(torch.from_numpy(row).double() / params.temperature, 0)
    ordered, ids = torch.sort(p, descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    ordered[before > params.top_p] = 0.0
    if params.top_k > 0:
        ordered[params.top_k :] = 0.0
    ordered[ordered < params.min_p * ordered[0]] = 0.0
    noise = rules.gumbel([seed], [position], np.arange(len(row)), len(row))[0].astype(np.float64)
    scores = np.full(len(row), -np.inf)
    for rank, (probability, v) in enumerate(zip(ordered.tolist(), ids.tolist(), strict=True)):
        if probability > 0:
            scores[v] = math.log(probability + rules.epsilon) + noise[rank if by_rank else v]
    return scores


@pytest.mark.parametrize("version", ["0.5.3", "0.5.9"])
@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=0.7), SamplingParams(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02),
     SamplingParams(top_p=0.95)],
)  # fmt: skip
def test_sglang_draws_by_rank_as_its_sampler_does(version, params):
    rules = contract(f"sglang@{version}:index=rank")
    rng = np.random.default_rng(1)
    logits, claimed = rng.normal(0, 3, (8, 300)).astype(np.float32), rng.integers(0, 300, 8)
    claimed[:4] = logits[:4].argmax(1)
    found = draw(rules, logits, claimed, 77, params)
    for r, position in enumerate(rules.positions(10, 8)):
        scores = sglang_by_the_book(rules, logits[r], 77, position, params, by_rank=True)
        assert found.winners[r] == scores.argmax()
        lead = params.temperature * (scores.max() - scores[claimed[r]])
        assert found.margins[r] == pytest.approx(lead, abs=1e-4)
        if np.isfinite(lead):
            assert found.ahead[r] == (scores > scores[claimed[r]]).sum()


def test_sglang_tests_both_indices_where_the_batch_decides():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (12, 300)).astype(np.float32)
    by = {way: contract(f"sglang@0.5.9:index={way}") for way in ("id", "rank", "auto")}
    alone = {way: draw(by[way], logits, np.zeros(12, int), 5).winners for way in ("id", "rank")}
    mixed = np.where(np.arange(12) % 2, alone["id"], alone["rank"])
    found = draw(by["auto"], logits, mixed, 5)
    np.testing.assert_array_equal(found.winners, mixed)
    assert (found.margins == 0).all()
    assert (draw(by["id"], logits, mixed, 5).margins > 0).any()
    for r, position in enumerate(by["id"].positions(10, 12)):
        scores = sglang_by_the_book(by["id"], logits[r], 5, position, SamplingParams(), by_rank=False)
        assert alone["id"][r] == scores.argmax()


def test_a_requests_own_filters_mean_rank_in_sglang():
    logits = np.random.default_rng(3).normal(0, 2, (10, 200)).astype(np.float32)
    params = SamplingParams(top_p=0.99)
    winners = [draw(contract(f"sglang:index={way}"), logits, np.zeros(10, int), 4, params).winners for way in
               ("id", "rank", "auto")]  # fmt: skip
    np.testing.assert_array_equal(winners[0], winners[1])
    np.testing.assert_array_equal(winners[0], winners[2])


NEW_NOISE = {
    **{f"sglang {'.'.join(map(str, start))}": noise for start, (noise, _) in sglang.ERAS.items()},
    **{f"cuda {dtype}": WRAPPED[dtype] for dtype in ("float64", "bfloat16", "float16")},
    "era F float64": vllm_v2.WIDE_F,
    "splitmix": SPLITMIX,
    "threefry": THREEFRY,
}


@pytest.mark.parametrize("noise", NEW_NOISE.values(), ids=NEW_NOISE)
def test_noise_never_falls_as_its_word_rises(noise):
    top = int(noise._top_word)
    values = np.array([noise._gumbel(np.uint64(top * step // 5_000)) for step in range(5_001)])
    assert (values[1:] >= values[:-1] - 1e-12).all()


RACES = [
    "vllm@0.29.0/cpu", "vllm@0.32.0/cpu", "huggingface/cpu:row=2,batch=3", "mlx@0.32.0", "sglang@0.5.9:index=id",
    "vllm@0.26.0/v1:fp64=on",
]  # fmt: skip


@pytest.mark.parametrize("contract_id", RACES)
def test_a_race_finds_what_dense_noise_says(contract_id):
    rules, rng = contract(contract_id), np.random.default_rng(0)
    for width, spread, temperature in [(1, 1.0, 1.0), (65, 0.1, 2.0), (700, 3.0, 0.7), (3001, 12.0, 0.05)]:
        logits = rng.normal(0, spread, (5, width)).astype(np.float32)
        cuts = np.array([-np.inf, np.median(logits[1]), -np.inf, logits[3].max(), -np.inf], np.float32)
        claimed, seeds = rng.integers(0, width, 5), rng.integers(-(2**40), 2**40, 5)
        places = rng.integers(0, 9, 5)
        found = rules.race(logits, cuts, np.full(5, temperature), claimed, seeds, places)
        scores = logits / np.float64(temperature) + rules.gumbel(seeds, places, np.arange(width), width)
        scores[logits < cuts[:, None]] = -np.inf
        own = scores[np.arange(5), claimed]
        np.testing.assert_array_equal(found.winners, scores.argmax(1))
        np.testing.assert_allclose(found.leads, scores.max(1) - own, rtol=0, atol=1e-9)
        inside = np.isfinite(own)
        np.testing.assert_array_equal(found.ahead[inside], (scores > own[:, None]).sum(1)[inside])


@pytest.mark.parametrize("width", [1, 2, 50, 4097])
@pytest.mark.parametrize("top_k", [0, 1, 40, 10_000])
def test_descending_is_a_stable_sort_by_value(width, top_k):
    row = np.random.default_rng(width).normal(0, 3, width).round(1).astype(np.float32) + np.float32(0.0)
    row[::7] = -np.inf
    expected = np.argsort(-row, kind="stable")[: top_k or None]
    np.testing.assert_array_equal(descending(row, top_k), expected)


def test_mlxs_filters_act_at_temperature_one_and_top_k_last():
    row = np.log(np.array([[0.4, 0.3, 0.2, 0.06, 0.04]], np.float32))
    rules = contract("mlx@0.32.0")

    def kept(**filters):
        params = SamplingParams(temperature=0.1, **filters)
        found: Support = rules.support(row, masses_of(row, 0.1), params)
        return int((row >= found.cuts).sum())

    assert kept(top_p=0.5) == 2  # nothing before the first, .4 before the second, .7 before the third
    assert kept(min_p=0.4) == 3
    assert kept(top_p=0.95, top_k=3) == 3
    assert kept(top_k=2, min_p=0.01) == 2


# The registry


@pytest.mark.parametrize(
    ("contract_id", "seeds", "positions"),
    [
        ("sglang", [7, 7], [9, 10]),
        ("lmdeploy", [7, 7], [10, 11]),
        ("lmdeploy:shift=-1", [7, 7], [9, 10]),
        ("llama.cpp", [7, 8], [0, 1]),
        ("llama-cpp-python@0.3.16", [7, 8], [0, 1]),
        ("ollama@0.5", [7, 7], [0, 1]),
        ("ollama", [7, 8], [0, 1]),
        ("mlx@0.31", [7, 7], [0, 1]),
        ("mlx", [7, 7], [0, 1]),
        ("huggingface/cuda", [7, 7], [0, 1]),
        ("huggingface/cpu", [7, 7], [0, 1]),
        ("tgi", [7, 7], [0, 1]),
        ("vllm@0.29/cpu", [7, 8], [0, 1]),
        ("vllm/cpu", [7, 8], [0, 1]),
        ("vllm@0.26/v1:fp64=on", [7, 8], [0, 1]),
    ],
)
def test_seeds_of_choices_and_positions_of_tokens(contract_id, seeds, positions):
    rules = contract(contract_id)
    assert rules.id == contract_id
    assert [rules.choice_seed(7, choice) for choice in (0, 1)] == seeds
    assert rules.positions(10, 2).tolist() == positions


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("sglan@0.5.9", "did you mean 'sglang'"),
        ("sglang@0.5.2", "before 0.5.3 ignores seeds"),
        ("sglang@0.5.9:index=row", "index=row"),
        ("sglang@0.5.3:index=id", "by rank only"),
        ("sglang/v1", "no runners"),
        ("vllm@0.10/cpu", "MKL"),
        ("vllm@0.20/v1:fp64=yes", "fp64=yes"),
        ("vllm@0.12/v2:fp64=on", "fp64=on"),
        ("huggingface", "huggingface/cuda"),
        ("huggingface/cpu:row=2,batch=2", "no row"),
        ("huggingface/cpu:gpu=A10", "no option 'gpu'"),
        ("tgi:dtype=int8", "dtype=int8"),
        ("tgi:gpu=A11", "GPU class 'A11'"),
        ("lmdeploy:shift=2", "shift=2"),
        ("mlx:top=1", "no option 'top'"),
        ("ollama:x=1", "no option 'x'"),
        ("llama.cpp:x=1", "no option 'x'"),
    ],
)
def test_a_wrong_contract_id_says_how_to_write_it(wrong, says):
    with pytest.raises(UnknownContract, match=says):
        contract(wrong)


def test_a_newer_version_than_any_read_is_taken_for_the_newest_and_says_so():
    assert assumption("vllm@0.33.7/v2") is None
    assert assumption("greedy") is None
    assert assumption("vllm@0.40.0") == (
        "vLLM 0.40.0 is newer than any version read (0.33): the rules of 0.33 are assumed"
    )
    assert "no SGLang version" in assumption("sglang").replace("No", "no")
    newer, newest = contract("sglang@0.9"), contract("sglang@0.5.23")
    assert newer.noise is newest.noise


def test_every_candidate_is_a_contract_and_no_two_draw_alike():
    ids = candidates(151_936)
    assert len(set(ids)) == len(ids)
    assert all(contract(one).id == one and stands_for(one) for one in ids)
    assert {"greedy", "vllm@0.26.0/v1", "vllm@0.26.0/v2", "vllm@0.26.0/v1:gpu=A10"} <= set(ids)
    assert stands_for("vllm@0.25.0/v2") is None
    logits = np.random.default_rng(0).normal(0, 1.0, (30, 97)).astype(np.float32)
    index_by_batch = {"sglang@0.5.8", "sglang@0.5.23"}
    here = [one for one in candidates(97) if one not in index_by_batch]
    drawn = {one: tuple(draw(contract(one), logits, np.zeros(30, int), 21).winners) for one in here}
    # Without filters llama.cpp's last two rules are one: they part where a single candidate is left.
    assert drawn.pop("llama.cpp@7000") == drawn["llama.cpp@11549"]
    assert len(set(drawn.values())) == len(drawn)


def test_candidates_leave_out_gpus_that_draw_alike_at_a_width():
    assert not [one for one in candidates(30_000) if "gpu=" in one]
    assert [one for one in candidates(128_256) if "gpu=" in one] == [
        f"vllm@0.26.0/v1:gpu={gpu}" for gpu in ("T4", "L4", "A10", "RTX3090")
    ]
    assert set(candidates(128_256)) < set(candidates())
    assert "vllm@0.26.0/v1:gpu=B200" in candidates(280_000)


def test_the_recorded_cuda_metadata_is_of_the_grid_we_take_for_it():
    folder = BESIDE / "vectors"
    if not folder.is_dir():
        pytest.skip("the full set of CUDA vectors is not beside the checkout")
    info = json.loads((folder / "cuda_noise.json").read_text())["info"]
    assert 256 * info["sms"] * (info["max_threads_per_sm"] // 256) == CudaRace("h100").grid_threads
