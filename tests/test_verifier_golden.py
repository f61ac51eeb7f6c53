"""The main job on real outputs: recorded vLLM answers replayed on the CPU, honest and cheating ones.

Each test reads the kept part of one golden file (six answers); `make golden` verifies the full set.
"""

import pytest
from recorded import golden

from verifier.recordings import read_recordings
from verifier.samplers import contract
from verifier.verify import FileResult, verify_file

V1, V2 = "vllm@0.26.0/v1", "vllm@0.26.0/v2"


@pytest.fixture(scope="module")
def verify(demo_reference):
    def run(name: str, sampler: str, **overrides) -> FileResult:
        recordings = read_recordings(golden(name), overrides=overrides)
        return verify_file(name, recordings, demo_reference, contract(sampler))

    return run


@pytest.mark.parametrize(
    ("name", "sampler", "at_least"),
    [
        ("honest_bf16", V1, 0.965),
        ("honest_bf16_seq", V1, 0.965),
        ("plain_t1", V1, 0.97),
        ("t07_p09", V1, 0.97),
        ("greedy", "greedy", 0.98),
        ("v2_plain", V2, 0.97),  # the whole file matches .979, as V1 does: bfloat16 noise, not the contract
    ],
)
def test_honest_outputs_match(verify, name, sampler, at_least):
    result = verify(name, sampler)
    assert result.tokens > 800
    assert result.exact_match_rate >= at_least
    assert result.outside_support <= 0.004 * result.tokens


def test_four_bit_weights_do_not_match(verify):
    assert verify("int4", V1).exact_match_rate <= 0.75


def test_eight_bit_weights_do_not_match(verify):
    assert verify("fp8", V1).exact_match_rate <= 0.93


def test_a_temperature_of_1_1_claimed_as_1_does_not_match(verify):
    assert verify("temp11", V1, temperature=1.0).exact_match_rate <= 0.96


def test_replaying_v1_noise_on_v2_outputs_gives_about_30_percent_which_is_token_difrs_mistake(verify):
    assert 0.24 <= verify("v2_plain", V1).exact_match_rate <= 0.37


def test_an_unrelated_seed_matches_no_better_than_chance(verify):
    assert verify("v2_plain", V2, seed=7).exact_match_rate <= 0.37
