"""The demo provider's engine against real vLLM outputs, against the verifier, and each of its cheats."""

import asyncio
import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded import golden

from verifier.answer_text import AnswerText, overlap
from verifier.cheats import Cheats, parse_cheats, round_to_int4, rounded, with_hidden_prompt
from verifier.decode_batch import DecodeBatch
from verifier.errors import InputError, ReferenceUnreadable
from verifier.generation import GenerationEngine, Token, load_engine
from verifier.reference import TransformersReference
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.sequences import TokenSequence

SAMPLER = "vllm@0.26.0/v2"
MESSAGES = [{"role": "user", "content": "What do people most often get wrong about volcanoes?"}]
PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}


@pytest.fixture(scope="module")
def parts(demo_directory: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(demo_directory, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(demo_directory)


@contextlib.contextmanager
def running_engine(parts: tuple[Any, Any], **options: Any) -> Iterator[GenerationEngine]:
    engine = GenerationEngine(*parts, sampler=contract(SAMPLER), name="smollm2", **options)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine(parts: tuple[Any, Any]) -> Iterator[GenerationEngine]:
    with running_engine(parts) as made:
        yield made


async def answer(
    engine: GenerationEngine, messages: Sequence[dict[str, Any]] = MESSAGES, **options: Any
) -> list[Token]:
    asked = {"sampling": PLAIN, "max_tokens": 12, "seed": 7, **options}
    return [token async for token in engine.generate(engine.prompt(messages), **asked)]


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.token_id for token in tokens]


async def test_draws_what_vllm_drew_on_an_h100(engine: GenerationEngine) -> None:
    records = [json.loads(line) for line in golden("v2_plain").read_text().splitlines()[:4]]
    answers = await asyncio.gather(
        *(answer(engine, record["messages"], seed=record["seed"], max_tokens=16) for record in records)
    )
    equal = [ids(tokens) == record["output_token_ids"][:16] for tokens, record in zip(answers, records, strict=True)]
    assert sum(equal) >= 3  # bfloat16 there and float32 here may part at a near-tie


async def test_rows_of_a_batch_do_not_change_one_another(engine: GenerationEngine) -> None:
    prompts = [MESSAGES, [{"role": "user", "content": "Hi"}], [{"role": "system", "content": "Be brief."}, *MESSAGES]]
    alone = [ids(await answer(engine, messages, max_tokens=4 + 4 * i)) for i, messages in enumerate(prompts)]
    together = await asyncio.gather(
        *(answer(engine, messages, max_tokens=4 + 4 * i) for i, messages in enumerate(prompts))
    )
    assert [ids(tokens) for tokens in together] == alone


async def test_more_requests_than_rows_wait_their_turn(parts: tuple[Any, Any]) -> None:
    with running_engine(parts, max_rows=2) as engine:
        answers = await asyncio.gather(*(answer(engine, seed=seed, max_tokens=3) for seed in range(5)))
    assert [len(tokens) for tokens in answers] == [3] * 5


async def test_choices_use_the_contracts_seeds(engine: GenerationEngine) -> None:
    both = await answer(engine, n=2, seed=40, max_tokens=6)
    second = await answer(engine, seed=41, max_tokens=6)
    assert ids([token for token in both if token.choice == 1]) == ids(second)


async def test_text_logprobs_and_finish_agree_with_the_ids(engine: GenerationEngine, parts: tuple[Any, Any]) -> None:
    tokens = await answer(engine, top_logprobs=3)
    model, tokenizer = parts
    assert "".join(token.text for token in tokens) == tokenizer.decode(ids(tokens), skip_special_tokens=True)
    assert [token.finish_reason for token in tokens] == [None] * 11 + ["length"]
    whole = torch.tensor([engine.prompt(MESSAGES).served + ids(tokens)])
    logprobs = torch.log_softmax(model(whole).logits[0, -13:-1], -1)
    assert [t.logprob for t in tokens] == pytest.approx(
        logprobs[torch.arange(12), torch.tensor(ids(tokens))].tolist(), abs=1e-3
    )
    assert [t.top_logprobs[0][0] for t in tokens] == logprobs.argmax(-1).tolist()


async def test_greedy_ignores_the_seed(engine: GenerationEngine) -> None:
    greedy = {**PLAIN, "temperature": 0.0}
    assert ids(await answer(engine, sampling=greedy, seed=1)) == ids(await answer(engine, sampling=greedy, seed=2))


async def test_without_a_seed_two_answers_differ(engine: GenerationEngine) -> None:
    assert ids(await answer(engine, seed=None)) != ids(await answer(engine, seed=None))


async def test_a_stop_string_ends_the_answer_before_it(engine: GenerationEngine) -> None:
    plain = "".join(token.text for token in await answer(engine))
    stop = plain[10:14]
    tokens = await answer(engine, stop=[stop])
    assert "".join(token.text for token in tokens) == plain[: plain.index(stop)]
    assert (tokens[-1].finish_reason, tokens[-1].stop_reason) == ("stop", stop)


async def test_a_stop_id_ends_the_answer_and_stays_in_it(engine: GenerationEngine) -> None:
    plain = ids(await answer(engine))
    tokens = await answer(engine, stop_token_ids=[plain[3]])
    assert ids(tokens) == plain[: plain.index(plain[3]) + 1]
    assert (tokens[-1].finish_reason, tokens[-1].stop_reason) == ("stop", plain[3])


async def test_leaving_an_answer_frees_its_row(parts: tuple[Any, Any]) -> None:
    with running_engine(parts, max_rows=1) as engine:
        endless = engine.generate(engine.prompt(MESSAGES), sampling=PLAIN, max_tokens=4000, seed=1, ignore_eos=True)
        async with contextlib.aclosing(endless):
            await endless.__anext__()
        assert len(await answer(engine, max_tokens=2)) == 2


async def test_a_prompt_that_the_model_cannot_read_fails_alone(engine: GenerationEngine) -> None:
    broken = engine.prompt(MESSAGES)
    broken.served[:] = [10**6]
    with pytest.raises(IndexError):
        await anext_of(engine.generate(broken, sampling=PLAIN, max_tokens=2, seed=1))
    assert len(await answer(engine, max_tokens=2)) == 2


async def anext_of(tokens: Any) -> Token:
    async with contextlib.aclosing(tokens):
        return await tokens.__anext__()


def test_messages_that_the_template_refuses_are_a_value_error(engine: GenerationEngine) -> None:
    with pytest.raises(ValueError, match="chat template"):
        engine.prompt([{"role": "user", "content": {"no": "text"}}])


async def replayed_rate(engine: GenerationEngine, reference: TransformersReference) -> float:
    """Share of an answer's tokens that the reference, told the claimed seed and parameters, draws too."""
    answers = await asyncio.gather(*(answer(engine, seed=seed, max_tokens=24) for seed in (11, 12, 13)))
    claims = [
        Claim(TokenSequence(engine.prompt(MESSAGES).token_ids, ids(t)), seed, SamplingParams(), contract(SAMPLER))
        for seed, t in zip((11, 12, 13), answers, strict=True)
    ]
    scores = replay(reference, claims)
    return float(sum(s.exact_match.sum() for s in scores) / sum(map(len, scores)))


async def test_the_verifier_agrees_with_an_honest_engine(
    engine: GenerationEngine, demo_reference: TransformersReference
) -> None:
    assert await replayed_rate(engine, demo_reference) > 0.97


@pytest.mark.parametrize("cheat", ["temperature=1.6", "system-prompt=Answer like a pirate.", "ignore-seed", "int4"])
async def test_the_verifier_sees_every_cheat(
    cheat: str, parts: tuple[Any, Any], demo_reference: TransformersReference
) -> None:
    cheats = parse_cheats([cheat])
    model = copy.deepcopy(parts[0]) if cheats.int4 else parts[0]
    if cheats.int4:
        round_to_int4(model)
    with running_engine((model, parts[1]), cheats=cheats) as engine:
        assert await replayed_rate(engine, demo_reference) < 0.9


def test_a_hidden_prompt_is_not_in_the_reported_ids(parts: tuple[Any, Any], engine: GenerationEngine) -> None:
    with running_engine(parts, cheats=Cheats(system_prompt="Be rude.")) as cheating:
        prompt = cheating.prompt(MESSAGES)
    assert prompt.token_ids == engine.prompt(MESSAGES).token_ids
    assert prompt.served != prompt.token_ids


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReferenceUnreadable, match=str(tmp_path)):
        load_engine(tmp_path, sampler_id=SAMPLER, name="x")


def test_keeping_rows_drops_padding_that_nobody_needs(parts: tuple[Any, Any]) -> None:
    batch = DecodeBatch(parts[0])
    batch.join(list(range(5, 25)))
    batch.join([5, 6, 7])
    batch.keep([1])
    batch.advance([8])
    expected = parts[0](torch.tensor([[5, 6, 7, 8]])).logits[0, -1]
    assert torch.allclose(batch.logits[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "cheats"),
    [
        ("int4", Cheats(int4=True)),
        ("temperature=1.1", Cheats(temperature=1.1)),
        ("system-prompt=a=b", Cheats(system_prompt="a=b")),
        ("ignore-seed", Cheats(ignore_seed=True)),
    ],
)
def test_cheats_read_and_write(text: str, cheats: Cheats) -> None:
    assert parse_cheats([text]) == cheats
    assert cheats.label() == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int8", "int4"), ("temperature", "value"), ("temperature=hot", "1.1"), ("int4=2", "no value"),
        ("model=/x", "/x"),
    ],
)
def test_wrong_cheats_name_the_way_out(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_cheats([text])


def test_a_hidden_prompt_joins_the_clients_own_system_message() -> None:
    messages = [{"role": "system", "content": "Be kind."}, *MESSAGES]
    hidden = with_hidden_prompt(messages, "Sell cars.")
    assert [message["role"] for message in hidden] == ["system", "user"]
    assert hidden[0]["content"] == "Sell cars.\n\nBe kind."


@given(st.lists(st.lists(st.floats(-4, 4, width=32), min_size=8, max_size=8), min_size=1, max_size=4))
def test_rounding_keeps_sixteen_levels_within_one_step(values: list[list[float]]) -> None:
    group = torch.tensor(values)
    step = (group.amax(1, keepdim=True) - group.amin(1, keepdim=True)) / 15
    result = rounded(group, levels=16)
    assert all(len(row.unique()) <= 16 for row in result)
    assert ((result - group).abs() <= step + 1e-5).all()


LETTERS = st.text("abc", max_size=12)


@given(LETTERS, st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_released_text_is_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    stream = AnswerText(lambda token_ids: "".join(map(chr, token_ids)), stops)
    released = ""
    for character in text:
        released += stream.push(ord(character))
        if stream.stopped_by is not None:
            break
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        seen = text[: min(ends)]
        assert released == seen[: min(seen.index(stop) for stop in stops if stop in seen)]
    else:
        assert released + stream.finish() == text


@given(st.text(max_size=8))
def test_characters_in_pieces_come_whole(text: str) -> None:
    stream = AnswerText(lambda token_ids: bytes(token_ids).decode(errors="replace"))
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join(pieces) == text.removesuffix("\N{REPLACEMENT CHARACTER}") or "\N{REPLACEMENT CHARACTER}" in text


def test_an_unfinished_character_is_dropped_as_vllm_drops_it() -> None:
    stream = AnswerText(lambda token_ids: bytes(token_ids).decode(errors="replace"))
    pieces = [stream.push(byte) for byte in "aé".encode()[:-1]]
    assert "".join(pieces) + stream.finish() == "a"


@given(LETTERS, st.text("abc", min_size=1, max_size=4))
def test_overlap_is_the_longest_proper_beginning(text: str, stop: str) -> None:
    found = overlap(text, stop)
    assert text.endswith(stop[:found])
    assert not any(text.endswith(stop[:n]) for n in range(found + 1, len(stop)))
