"""Which sampler made real outputs, from at most 300 of their tokens."""

from dataclasses import replace

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from recorded import golden

from verifier.errors import InputError
from verifier.identify import PROBE, Sample, cut_down, identify, identify_claims, piece, pieces_of, rank
from verifier.identify_command import identify_command, result
from verifier.recordings import read_recordings
from verifier.samplers import contract
from verifier.samplers.torch_cuda import WRAPPED
from verifier.samplers.vllm_v2 import acceptances
from verifier.sampling_params import SamplingParams
from verifier.scoring import score
from verifier.sequences import TokenSequence
from verifier.speculation import speculated
from verifier.unknown_drafter import speculated_by_steps
from verifier.verify import claims_of

V1, V2 = "vllm@0.26.0/v1", "vllm@0.26.0/v2"
WIDTH = 3000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain_t1", V1), ("t07_p09", V1), ("int4", V1), ("v1_pen", V1), ("v2_n4", V2), ("v2_fp8", V2),
        ("greedy", "greedy"),
    ],
)
def test_the_contract_of_real_outputs_is_named_be_they_honest_or_not(demo_reference, name, expected):
    found = identify(demo_reference, read_recordings(golden(name), limit=6), limit=160)
    assert found.contract == expected
    assert found.tokens <= 160
    assert found.evidence > 20.0


def test_a_hotter_temperature_than_claimed_does_not_hide_the_contract(demo_reference):
    recordings = read_recordings(golden("temp11"), overrides={"temperature": 1.0})
    assert identify(demo_reference, recordings, limit=128).contract == V1


def test_an_ignored_seed_gives_no_contract(demo_reference):
    recordings = read_recordings(golden("v2_plain"), overrides={"seed": 99})
    found = identify(demo_reference, recordings, limit=128)
    assert (found.contract, found.reason) == (None, "no_contract_fits")
    assert len(found.ranking) > 25


def test_outputs_without_a_seed_cannot_be_identified(demo_reference):
    found = identify(demo_reference, read_recordings(golden("v1_noseed"), limit=2))
    assert (found.contract, found.reason) == (None, "no_seed")


def test_speculative_decoding_is_named_with_its_drafter(demo_reference):
    found = identify(demo_reference, read_recordings(golden("v1_spec")), limit=300)
    assert (found.contract, found.reason) == (f"{V1}:drafts=3,ngram=2-3", None)
    assert found.ranking[0].match_rate > 0.95


def made(contract_id: str, params: SamplingParams, *, count: int = 90, seed: int = 5, shift: int = 0):
    """A piece drawn by a contract from random logits."""
    rules, rng = contract(contract_id), np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count, WIDTH)).astype(np.float32)
    log_mass = np.logaddexp.reduce(logits.astype(np.float64) / params.temperature, axis=1)
    draws = rules.draw(
        logits, log_mass, logits.argmax(1), seed=rules.choice_seed(seed, 1), params=params,
        positions=rules.positions(7, count) + shift,
    )  # fmt: skip
    sequence = TokenSequence(list(range(7)), draws.winners.tolist())
    return piece(logits, Sample(sequence, seed, 1, params))


@pytest.mark.parametrize(
    "contract_id",
    ["vllm@0.33.0/v2", "vllm@0.21.0/v2", "sglang@0.5.23:index=id", "sglang@0.5.23:index=rank", "llama.cpp@11549",
     "lmdeploy:shift=1", "mlx@0.32.0", "mlx@0.32.1", "vllm@0.32.0/cpu", "ollama@0.29.0"],
)  # fmt: skip
def test_what_a_contract_draws_is_named_after_it(contract_id):
    found = rank([made(contract_id, SamplingParams(temperature=0.9))], WIDTH)
    assert found.contract == contract_id
    assert found.ranking[0].match_rate == 1.0
    assert found.ranking[0].covers


def test_a_stream_that_runs_ahead_is_named_with_its_shift():
    found = rank([made(V1, SamplingParams(), shift=1)], WIDTH)
    assert (found.contract, found.ranking[0].shift) == (V1, 1)


def test_all_contracts_are_ranked_on_request():
    pieces = [made(V2, SamplingParams())]
    quick, thorough = rank(pieces, WIDTH), rank(pieces, WIDTH, exhaustive=True)
    assert quick.contract == thorough.contract == V2
    assert len(quick.ranking) < 6 < 25 < len(thorough.ranking)


def test_claims_are_identified_whatever_contract_they_name(demo_reference):
    claims = claims_of(read_recordings(golden("v2_plain"), limit=2), contract(V1), "")
    found = identify_claims(demo_reference, claims, limit=100)
    assert found.contract == V2


def test_beginnings_share_the_limit_and_empty_answers_take_nothing():
    answers = [Sample(TokenSequence([1], list(range(n))), 0, 0, SamplingParams()) for n in (500, 10, 500, 500, 500)]
    cut = cut_down(answers, 200)
    assert [len(sample.sequence.output_token_ids) for sample in cut] == [PROBE, 10, PROBE, 62]


def test_nothing_to_read_is_said(demo_reference):
    empty = replace(read_recordings(golden("v2_plain"), limit=1)[0], sequence=TokenSequence([1], []))
    assert identify(demo_reference, [empty]).reason == "no_tokens"


def test_the_command_writes_one_entry_a_file_and_a_single_files_at_the_top(demo_directory):
    arguments = [str(golden("v2_plain")), "--model", str(demo_directory), "--tokens", "80", "--json", "-"]
    printed = CliRunner().invoke(identify_command, arguments, catch_exceptions=False)
    told = orjson.loads(printed.stdout)
    assert told["contract"] == told["files"][0]["contract"] == V2
    assert told["ranking"][0]["contract"] == V2
    assert told["ranking"][0]["evidence"] > 20.0


def test_several_files_have_no_common_contract(tmp_path):
    found = rank([made(V2, SamplingParams())], WIDTH)
    assert set(result({tmp_path / "a": found, tmp_path / "b": found})) == {"files"}


def test_a_sequence_that_the_model_cannot_take_is_an_error_that_names_it(tmp_path, demo_directory):
    line = {"prompt_token_ids": [1], "output_token_ids": [10**6], "seed": 1, "temperature": 1.0}
    (tmp_path / "bad.jsonl").write_bytes(orjson.dumps(line))
    arguments = [str(tmp_path / "bad.jsonl"), "--model", str(demo_directory)]
    with pytest.raises(InputError, match="token id lies outside"):
        CliRunner().invoke(identify_command, arguments, catch_exceptions=False)


# Speculation under V2, written out rule by rule


def speculated_by_v2(drafts, *, count=300, seed=5, width=200, temperature=0.8):
    """A piece of what V2 emits where `drafts` gives (draft, the drafter's probabilities) or None for each row."""
    rules, rng = contract(V2), np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, width)).astype(np.float32)
    positions = rules.positions(7, count)
    noise = rules.gumbel(np.full(count, seed), positions, np.arange(width), width)
    uniforms, tokens = acceptances(seed, positions), []
    for place, row in enumerate(logits.astype(np.float64) / temperature):
        p, proposed = np.exp(row - np.logaddexp.reduce(row)), drafts(row, positions[place])
        scores = row + noise[place]
        if proposed is not None:
            draft, q = proposed
            with np.errstate(divide="ignore"):
                scores = np.log(np.maximum(p - q, 0.0)) + noise[place]
            scores[draft] = np.inf if p[draft] > uniforms[place] * q[draft] else -np.inf
        tokens.append(int(scores.argmax()))
    params = SamplingParams(temperature=temperature)
    return piece(logits, Sample(TokenSequence(list(range(7)), tokens), seed, 0, params))


def likeliest_half_of_the_time(row, position):
    return (int(row.argmax()), np.arange(len(row)) == row.argmax()) if position % 2 else None


def test_an_unknown_drafter_of_likeliest_tokens_is_told_from_worse_weights():
    found = rank([speculated_by_v2(likeliest_half_of_the_time)], 200, claimed=V2)
    assert (found.contract, found.reason) == (f"{V2}:drafter=any", None)
    assert found.ranking[0].match_rate == 1.0


def test_worse_weights_under_v2_are_not_taken_for_a_drafter():
    served = speculated_by_v2(lambda row, position: None)
    blurred = served.logits + np.random.default_rng(1).normal(0, 0.5, served.logits.shape).astype(np.float32)
    found = rank([piece(blurred, served.sample)], 200, claimed=V2)
    assert found.contract == V2
    assert found.ranking[0].match_rate < 0.85


def test_sampled_drafts_are_recognized_and_not_verified():
    noise = contract(V2)
    rng = np.random.default_rng(9)

    def drawn_at_its_own_place(row, position):
        drafted = row + rng.normal(0, 0.3, len(row))
        q = np.exp(drafted - np.logaddexp.reduce(drafted))
        g = noise.gumbel([5], [position + 2**30], np.arange(len(row)), len(row))[0]
        return int((drafted + g).argmax()), q

    found = rank([speculated_by_v2(drawn_at_its_own_place)], 200, claimed=V2)
    assert (found.contract, found.reason) == (None, "speculative_decoding")


def test_prompt_lookup_under_v2_is_named_with_its_drafter():
    rng, width = np.random.default_rng(3), 12
    logits = rng.normal(0, 1, (300, width)).astype(np.float32)
    rules, output, params = contract(f"{V2}:ngram=1-3,drafts=3"), [], SamplingParams(temperature=0.8)
    for place in range(300):
        drawn = speculated(
            logits[place : place + 1], place, [1, 2, 3, 1], [*output, 0], seed=5, params=params, contract=rules
        )
        output.append(int(drawn.predicted_ids[0]))
    found = rank([piece(logits, Sample(TokenSequence([1, 2, 3, 1], output), 5, 0, params))], width, claimed=V2)
    assert found.contract == rules.id
    assert found.ranking[0].match_rate > 0.97


def test_a_claimed_contract_keeps_its_name_where_another_version_draws_the_same():
    found = rank([made(V2, SamplingParams())], WIDTH, claimed="vllm@0.24.1/v2")
    assert found.contract == "vllm@0.24.1/v2"


# Speculation under V1 with a drafter that nobody names


def speculated_by_v1(propose, *, seed, count=48, width=200, drafts=3, temperature=0.8):
    """A piece of what V1 emits where `propose` gives up to `drafts` tokens from a row's own logits and its number."""
    rules, params = contract(V1), SamplingParams(temperature=temperature)
    logits = np.random.default_rng(seed).normal(0, 2, (count, width)).astype(np.float32)

    def race(row, draw, without=None):
        scores = row / temperature + rules.gumbel([seed], [draw], np.arange(width), width)[0]
        scores[[] if without is None else [without]] = -np.inf
        return int(scores.argmax())

    tokens, draw = [race(logits[0], 0)], 1
    while len(tokens) < count:
        noise = WRAPPED["float64"].rows([seed], [draw + 1], np.arange(drafts), rules.grid_threads)[0]
        for lane, uniform in enumerate(np.exp(-np.exp(-noise))):
            if len(tokens) == count:
                break
            row = logits[len(tokens)].astype(np.float64)
            draft, heated = propose(row, len(tokens)), row / temperature
            if np.exp(heated[draft] - np.logaddexp.reduce(heated)) < uniform:
                tokens.append(race(row, draw + 2, draft))
                break
            tokens.append(draft)
            if lane == drafts - 1 and len(tokens) < count:
                tokens.append(race(logits[len(tokens)], draw))
        draw += 3
    return piece(logits, Sample(TokenSequence(list(range(7)), tokens), seed, 0, params))


def likeliest(row, place):
    return int(row.argmax())


def one_of_the_likeliest(row, place):
    return int(row.argsort()[-1 - place % 3])


@pytest.mark.parametrize("drafts", [1, 3, 5])
@pytest.mark.parametrize("propose", [likeliest, one_of_the_likeliest])
def test_a_v1_with_an_unknown_drafter_is_recognized_and_not_verified(propose, drafts):
    pieces = [speculated_by_v1(propose, seed=seed, drafts=drafts) for seed in range(4)]
    found = rank(pieces, 200, claimed=V1)
    assert (found.contract, found.reason) == (None, "speculative_decoding")


def test_steps_explain_neither_other_noise_nor_a_v1_that_does_not_speculate():
    speculated = [speculated_by_v1(likeliest, seed=seed) for seed in range(4)]
    other_seed = [piece(one.logits, replace(one.sample, seed=one.sample.seed + 50)) for one in speculated]
    assert speculated_by_steps(V1, speculated) > 40.0
    assert speculated_by_steps(V1, other_seed) <= 0.0
    in_step = [
        piece(one.logits, replace(one.sample, sequence=TokenSequence(
            list(range(7)), score(one.logits, one.claimed, seed=one.sample.seed, positions=np.arange(48),
                                  params=one.sample.params, contract=contract(V1)).predicted_ids.tolist())))
        for one in speculated
    ]  # fmt: skip
    assert speculated_by_steps(V1, in_step) < 0.0


def test_the_steps_of_a_real_speculating_vllm_show_without_its_drafter(demo_reference):
    def nats(name):
        rows = read_recordings(golden(name), limit=4)
        samples = [Sample(row.sequence, row.seed, 0, row.params) for row in rows]
        return speculated_by_steps(V1, list(pieces_of(demo_reference, cut_down(samples, 200))))

    assert nats("v1_spec") > 20.0
    assert nats("int4") <= 0.0
