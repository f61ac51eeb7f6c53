"""Engines that draw by inverting a distribution function, against their rules written as plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.samplers import contract, mt19937
from verifier.samplers.inverse_cdf import invert
from verifier.samplers.ollama import pcg
from verifier.sampling_params import SamplingParams
from verifier.scoring import score

LLAMA = {"discrete": "llama.cpp@6123", "skips": "llama.cpp@7000", "draws": "llama.cpp@11549"}
ENGINES = [*LLAMA.values(), "ollama@0.12.0", "lmdeploy", "mlx@0.32.1"]
PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05),
    SamplingParams(temperature=1.5, top_p=0.7),
    SamplingParams(temperature=0.6, min_p=0.1),
    SamplingParams(temperature=0.9, top_k=3),
]


def draw(rules, logits, claimed, seed, params, first=0):
    count = len(logits)
    log_mass = np.logaddexp.reduce(logits.astype(np.float64) / params.temperature, axis=1)
    positions = rules.positions(10, first + count)[first:]
    return rules.draw(logits, log_mass, np.asarray(claimed), seed=seed, positions=positions, params=params)


def rows(seed, count=40, width=300, spread=3.0):
    return np.random.default_rng(seed).normal(0, spread, (count, width)).astype(np.float32)


# Transcriptions: each returns the id that the engine takes for logits `z` [V] and its uniform `r`.


def softmax(values):
    weights = [math.exp(v - max(values)) for v in values]
    return [w / sum(weights) for w in weights]


def llama_candidates(z, params, sorts):
    ids, ordered = list(range(len(z))), sorts
    by_logit = sorted(ids, key=lambda i: (-z[i], i))
    if params.top_k > 0 or params.top_p < 1:
        ordered = True
    if ordered:
        ids = by_logit[: params.top_k] if params.top_k > 0 else by_logit
    if params.top_p < 1:
        total, kept = 0.0, []
        for i, p in zip(ids, softmax([float(z[i]) for i in ids]), strict=True):
            kept.append(i)
            total += p
            if total >= params.top_p:
                break
        ids = kept
    if params.min_p > 0:
        ids = [i for i in ids if z[i] >= max(z) + math.log(params.min_p)]
    return ids


def discrete_distribution(weights, r):
    """libstdc++: normalize, partial sums, the last one set to 1; the first that is not less than r."""
    total, sums = sum(weights), []
    for w in weights:
        sums.append(w / total + (sums[-1] if sums else 0.0))
    sums[-1] = 1.0
    return next(i for i, c in enumerate(sums) if not c < r)


def running_sum(weights, r):
    target, total = r * sum(weights), 0.0
    for i, w in enumerate(weights):
        total += w
        if total >= target:
            return i
    return len(weights) - 1


def tempered(z, ids, temperature):
    return [math.exp((float(z[i]) - float(max(z[ids]))) / temperature) for i in ids]


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("era", LLAMA)
def test_llama_cpp_draws_as_its_rules_say(era, params):
    logits, stream, used = rows(1), mt19937.words(2**32 + 9, 200).tolist(), 0
    expected = []
    for z in logits:
        ids = llama_candidates(z, params, sorts=era == "discrete")
        if len(ids) == 1 and era != "draws":
            expected.append(ids[0])
            continue
        r = (stream[2 * used] + stream[2 * used + 1] * 2**32) / 2**64
        used += 1
        pick = discrete_distribution if era == "discrete" else running_sum
        expected.append(ids[pick(tempered(z, ids, params.temperature), r)])
    found = draw(contract(LLAMA[era]), logits, expected, 2**32 + 9, params)
    assert found.winners.tolist() == expected
    assert (found.margins == 0).all()
    assert found.skipped == len(logits) - used


def test_a_draw_skipped_for_a_single_candidate_shifts_all_later_ones():
    logits, params = rows(2, spread=8.0), SamplingParams(top_p=0.8)
    rules = contract(LLAMA["skips"])
    whole = draw(rules, logits, np.zeros(40, int), 3, params)
    assert 0 < whole.skipped < 40
    head = draw(rules, logits[:20], np.zeros(20, int), 3, params)
    tail = draw(rules, logits[20:], np.zeros(20, int), 3, params, first=20 - head.skipped)
    np.testing.assert_array_equal(whole.winners, np.concatenate([head.winners, tail.winners]))
    assert whole.skipped == head.skipped + tail.skipped


@pytest.mark.parametrize("params", PARAMS)
def test_ollamas_go_sampler(params):
    logits, stream = rows(3), pcg(11, 11 ^ 0x9E3779B9)
    expected = []
    for z in logits:
        ids = sorted(range(len(z)), key=lambda i: (-z[i], i))
        ids = ids[: params.top_k] if params.top_k > 0 else ids
        probs = softmax([float(z[i]) / params.temperature for i in ids])
        if params.top_p < 1:
            sums = np.cumsum(probs)
            ids = ids[: next((i for i, s in enumerate(sums) if s > params.top_p), len(ids) - 1) + 1]
        ids = [i for i, p in zip(ids, probs, strict=False) if p >= params.min_p * probs[0]]
        r = (next(stream) >> 32 & 0xFFFFFF) / 2**24
        expected.append(ids[running_sum(tempered(z, ids, params.temperature), r)])
    found = draw(contract("ollama@0.12.0"), logits, expected, 11, params)
    assert found.winners.tolist() == expected


def test_the_pcg_is_gos():
    stream = pcg(1, 2)  # math/rand/v2, TestPCG
    assert [next(stream) for _ in range(4)] == [
        0xC4F5A58656EEF510, 0x9DCEC3AD077DEC6C, 0xC8D04605312F8088, 0xCBEDC0DCB63AC19A,
    ]  # fmt: skip


def philox_word(seed, offset):
    k0, k1, c = seed, 0, [offset, 0, 0, 0]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c[0]


@pytest.mark.parametrize("params", PARAMS)
def test_lmdeploy_inverts_over_the_filtered_sorted_row(params):
    logits, seed = rows(4), 2**33 + 5
    expected = []
    for j, z in enumerate(torch.from_numpy(logits).double()):
        scores, ids = torch.sort(z / params.temperature, descending=True, stable=True)
        if params.top_k > 0:
            scores[params.top_k :] = -torch.inf
        before = scores.softmax(0).cumsum(0) - scores.softmax(0)
        scores[(before > params.top_p) & (torch.arange(len(z)) > 0)] = -torch.inf
        p = scores.softmax(0)
        p = scores.masked_fill(p < params.min_p * p.max(), -torch.inf).softmax(0)
        w = philox_word(seed & 0xFFFFFFFF, 10 + j)
        u = np.float32(w if w < 2**31 else 2**32 - 1 - w) * np.float32(4.6566127342e-10)
        inside = (p.cumsum(0) - p < float(u)) & (float(u) <= p.cumsum(0))
        expected.append(int(ids[int(inside.int().argmax())]))
    found = draw(contract("lmdeploy"), logits, expected, seed, params)
    assert found.winners.tolist() == expected


def threefry(key, counter):
    x, k = list(counter), [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x = [(x[i] + k[i]) & 0xFFFFFFFF for i in (0, 1)]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x[0] = (x[0] + x[1]) & 0xFFFFFFFF
            x[1] = ((x[1] << turn | x[1] >> 32 - turn) & 0xFFFFFFFF) ^ x[0]
        x[0] = (x[0] + k[(group + 1) % 3]) & 0xFFFFFFFF
        x[1] = (x[1] + k[(group + 2) % 3] + group + 1) & 0xFFFFFFFF
    return x


def test_the_threefry_is_the_papers():
    assert threefry((0, 0), (0, 0)) == [0x6B200159, 0x99BA4EFE]  # Random123's kat_vectors


def test_mlx_inverts_in_vocabulary_order():
    logits, key, expected = rows(5), [3, 9], []
    for z in logits:
        first, second = threefry(key, (0, 2)), threefry(key, (1, 3))
        key, own = [first[0], second[0]], [first[1], second[1]]
        u = min(np.float32(threefry(own, (0, 0))[0]) * np.float32(2.0**-32), np.float32(1 - 2.0**-24))
        weights = tempered(z, list(range(len(z))), 0.8)
        before = np.cumsum(weights) - weights
        expected.append(int(np.flatnonzero(before <= float(u) * sum(weights))[-1]))
    found = draw(contract("mlx@0.32.1"), logits, expected, 3 << 32 | 9, SamplingParams(temperature=0.8))
    assert found.winners.tolist() == expected


# What holds of all of them


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30), st.floats(0.0, 1.0, exclude_max=True), st.data())
@settings(max_examples=200, deadline=None)
def test_an_inversion_is_the_interval_that_holds_the_uniform(weights, uniform, data):
    masses, claimed = np.cumsum(weights), data.draw(st.integers(0, len(weights) - 1))
    found = invert(masses, uniform, claimed)
    sums = [0.0, *(masses / masses[-1])]
    assert sums[found.winner] <= uniform + 1e-12
    assert uniform <= sums[found.winner + 1] + 1e-12
    distance = max(sums[claimed] - uniform, uniform - sums[claimed + 1], 0.0)
    assert found.margin == pytest.approx(0.0 if claimed == found.winner else distance, abs=1e-12)
    assert found.prob == pytest.approx(weights[claimed] / sum(weights))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("params", PARAMS)
def test_scores_of_an_engines_own_tokens_match_and_others_miss_by_mass(engine, params):
    logits, rules = rows(6), contract(engine)
    own = draw(rules, logits, np.zeros(40, int), 8, params).winners
    other = np.random.default_rng(0).integers(0, 300, 40)
    scored = [
        score(logits, ids, seed=8, positions=rules.positions(10, 40), params=params, contract=rules)
        for ids in (own, other)
    ]
    assert scored[0].exact_match.all()
    assert (scored[0].margin == 0).all()
    assert (scored[0].gumbel_rank == 0).all()
    assert (scored[0].prob > 0).all()
    missed = ~scored[1].exact_match
    inside = scored[1].inside_support
    assert missed.mean() > 0.5
    assert (scored[1].margin[inside] <= 1).all()
    assert (scored[1].prob[~inside] == 0).all()
    assert np.isinf(scored[1].gumbel_rank[~inside]).all()
    assert (scored[1].gumbel_rank[missed & inside] > 0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_draws_follow_the_distribution(engine):
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.tile(np.log(probs).astype(np.float32), (4000, 1))
    winners = draw(contract(engine), logits, np.zeros(4000, int), 123, SamplingParams()).winners
    shares = np.bincount(winners, minlength=4) / 4000
    np.testing.assert_allclose(shares, probs, atol=0.035)


@pytest.mark.parametrize("engine", ENGINES)
def test_any_stretch_of_an_answer_draws_as_the_whole_does(engine):
    logits, rules, params = rows(7), contract(engine), SamplingParams()
    whole = draw(rules, logits, np.zeros(40, int), 5, params).winners
    part = draw(rules, logits[13:29], np.zeros(16, int), 5, params, first=13).winners
    np.testing.assert_array_equal(part, whole[13:29])
