"""Noise against vectors recorded from engines, and `race` against its plain twin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import cuda_fills, noise_vectors

from verifier.errors import UnknownContract
from verifier.samplers import contract
from verifier.samplers.vllm_v1 import GRID_THREADS, RACE, WRAPPED_RACE
from verifier.samplers.vllm_v2 import ERAS, era

ONE_VERSION_OF_EACH_ERA = {"A": "0.12.0", "B": "0.18.1", "C": "0.21.0", "D": "0.23.0", "E": "0.26.0", "F": "0.33.0"}


@pytest.mark.parametrize(("name", "version"), ONE_VERSION_OF_EACH_ERA.items())
def test_vllm_v2_noise_equals_the_engine_kernels_vectors(name, version):
    rules = contract(f"vllm@{version}/v2")
    vectors = noise_vectors(f"vllm-v2-{name}")
    assert len(vectors) == 36
    tolerance = 1e-9 if name == "C" else 2e-6
    for vector in vectors:
        width = vector["vocab"]
        (row,) = rules.gumbel([vector["seed"]], [vector["position"]], np.arange(width), width)
        assert row.argmax() == vector["argmax"]
        np.testing.assert_allclose(row[vector["index"]], vector["gumbel"], rtol=0, atol=tolerance)


def test_vllm_v1_noise_equals_what_an_h100_drew_within_its_approximate_logarithm():
    rules = contract("vllm@0.26.0/v1:gpu=H100")
    fills = cuda_fills()
    assert fills
    for meta, index, exponentials in fills:
        width = meta["V"]
        (row,) = rules.gumbel([meta["seed"]], [meta["step"]], np.arange(width), width)
        assert row.argmax() == meta["argmin"]
        np.testing.assert_allclose(np.exp(-row[index]), exponentials, rtol=0, atol=1e-6)


def test_some_vectors_are_wider_than_the_grid_they_were_drawn_on():
    assert any(meta["V"] > GRID_THREADS["H100"] for meta, _, _ in cuda_fills())


def test_the_wrapped_grid_equals_the_plain_one_on_its_first_round():
    columns = np.arange(1000)
    plain = RACE.rows([7, -3], [0, 5], columns)
    np.testing.assert_array_equal(plain, WRAPPED_RACE.rows([7, -3], [0, 5], columns, 40960))


def test_a_small_gpu_draws_other_noise_beyond_its_grid():
    columns = np.arange(151936)
    wide = contract("vllm@0.26.0/v1").gumbel([42], [3], columns, 151936)[0]
    narrow = contract("vllm@0.26.0/v1:gpu=A10").gumbel([42], [3], columns, 151936)[0]
    np.testing.assert_array_equal(wide[:110592], narrow[:110592])
    assert (wide[110592:] != narrow[110592:]).mean() > 0.99


@pytest.mark.parametrize("noise", [*ERAS.values(), RACE], ids=[*ERAS, "v1"])
def test_noise_never_falls_as_its_word_rises(noise):
    top = int(noise._top_word)
    values = np.array([noise._gumbel(np.uint64(top * step // 20_000)) for step in range(20_001)])
    assert (np.diff(values) >= -1e-12).all()


@pytest.mark.parametrize("noise", [*ERAS.values(), RACE], ids=[*ERAS, "v1"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_race_finds_what_dense_noise_says(noise, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    width = data.draw(st.sampled_from([1, 3, 511, 512, 513, 2000]))
    rows = data.draw(st.integers(1, 5))
    spread = data.draw(st.sampled_from([0.1, 3.0, 12.0]))
    temperature = data.draw(st.sampled_from([0.01, 0.7, 1.0, 2.0]))
    logits = rng.normal(0, spread, (rows, width)).astype(np.float32)
    cuts = np.where(rng.random(rows) < 0.5, -np.inf, np.median(logits, 1)).astype(np.float32)
    claimed, seeds = rng.integers(0, width, rows), rng.integers(-(2**63), 2**63 - 1, rows)
    positions = rng.integers(0, 2**33, rows)
    result = noise.race(logits, cuts, np.full(rows, temperature), claimed, seeds, positions)
    scores = logits.astype(np.float64) / temperature + noise.rows(seeds, positions, np.arange(width))
    scores[logits < cuts[:, None]] = -np.inf
    own = scores[np.arange(rows), claimed]
    np.testing.assert_array_equal(result.winners, scores.argmax(1))
    np.testing.assert_allclose(result.leads, scores.max(1) - own, rtol=0, atol=1e-9)
    inside = np.isfinite(own)
    np.testing.assert_array_equal(result.ahead[inside], (scores > own[:, None]).sum(1)[inside])


def test_versions_map_to_eras_and_an_unknown_newer_one_to_the_newest():
    assert {version: era(tuple(map(int, version.split(".")))) for version in ONE_VERSION_OF_EACH_ERA.values()} == {
        version: name for name, version in ONE_VERSION_OF_EACH_ERA.items()
    }
    assert era((0, 99)) == "F"
    assert era(None) == "F"


def test_the_runner_follows_from_the_version_where_it_is_not_named():
    assert contract("vllm@0.24.0").id == "vllm@0.24.0/v1"
    assert contract("vllm@0.25.0").id == "vllm@0.25.0/v2"


def test_positions_count_from_the_last_input_token_in_v2_and_from_the_first_draw_in_v1():
    assert contract("vllm@0.26.0/v2").positions(36, 3).tolist() == [35, 36, 37]
    assert contract("vllm@0.26.0/v1").positions(36, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("vlm@0.26", "did you mean 'vllm'"),
        ("vllm@0.26/v3", "no runner 'v3'"),
        ("vllm@0.26/v1:gpu=H1000", "GPU class 'H1000'"),
        ("vllm@0.26/v1:cpu=x", "no option 'cpu'"),
        ("vllm@0.26/v1:gpu", "key=value"),
        ("vllm@0.11/v2", "no V2 runner"),
        ("VLLM 0.26", "is no contract id"),
    ],
)
def test_a_wrong_contract_id_says_how_to_write_it(wrong, says):
    with pytest.raises(UnknownContract, match=says):
        contract(wrong)
