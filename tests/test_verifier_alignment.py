"""From recorded answers to ids: claims checked against the text, logprob entries, and text put together again."""

import contextlib
import json
import time
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import BESIDE, golden
from test_verifier_tokenization import KINDS, random_split, texts
from tokenizers_made import byte_level

from bench import alignment
from verifier.alignment import align
from verifier.answers import answer_texts, reasoning_markers
from verifier.demo_model import ensure_demo_model
from verifier.errors import Unsupported
from verifier.tokenization import ChatTokenizer

smollm = ChatTokenizer(ensure_demo_model())
END = smollm.end_token_ids[0]
spelling = smollm.spelling


def choice(text="", **fields):
    """A folded choice as the proxy records it."""
    empty = dict.fromkeys(("reasoning", "tool_calls", "refusal", "token_ids", "logprobs", "stop_reason"))
    return {"index": 0, "text": text, "finish_reason": "stop", **empty, **fields}


def refusal(answer, **options):
    with pytest.raises(Unsupported) as caught:
        align(answer, smollm, complete=True, **options)
    return caught.value.reason


def entries(token_ids):
    return [
        {"token": spelling.token_bytes[token].decode(errors="replace"), "logprob": -1.0, "top_logprobs": [],
         "bytes": list(spelling.token_bytes[token])}
        for token in token_ids
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["plain_t1", "v2_plain", "int4", "v1_pen"])
def test_recorded_ids_are_accepted_with_the_text_that_vllm_made_of_them(name):
    for line in golden(name).read_text().splitlines():
        recorded = json.loads(line)
        answer = choice(recorded["text"], token_ids=recorded["output_token_ids"],
                        finish_reason=recorded["finish_reason"])  # fmt: skip
        aligned = align(answer, smollm, complete=True)
        assert (aligned.token_ids, aligned.source) == (recorded["output_token_ids"], "given")


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS.keys())
@settings(max_examples=50, deadline=None)
@given(text=texts.filter(bool), seed=st.integers(0, 2**32), change=st.integers(0, 10**6))
def test_any_split_is_accepted_and_any_other_token_refused(tokenizer, text, seed, change):
    ids = random_split(text.encode(), tokenizer.spelling, seed)
    answer = choice(text, token_ids=[*ids, tokenizer.end_token_ids[0]])
    assert align(answer, tokenizer, complete=True).source == "given"
    other = tokenizer.spelling.ids_by_bytes[b"Q"]
    ids[change % len(ids)] = other
    if tokenizer.spelling.spell(ids).decode(errors="replace").rstrip("�").strip() != text.rstrip("�").strip():
        with pytest.raises(Unsupported, match="ids_do_not_match_text"):
            align(choice(text, token_ids=ids), tokenizer, complete=True)


@pytest.mark.parametrize(
    ("written", "shown", "fields"),
    [
        ("Hello world", "Hello world", {}),
        (" Hello world\n", "Hello world", {}),
        ("Hello world. STOP", "Hello world. ", {"stop_reason": "STOP"}),
        ("Hello world. STOP", "Hello world. STOP", {"stop_reason": "STOP"}),
        ("Hello world. STOP", "Hello world.", {"stop_reason": "STOP"}),
        ("<think>why</think>Hello", "Hello", {"reasoning": "why"}),
        ("A <|im_start|> b", "A <|im_start|> b", {}),
    ],
)
def test_what_servers_do_to_text_is_allowed_for(written, shown, fields):
    answer = choice(shown, token_ids=smollm.encode(written), **fields)
    assert align(answer, smollm, complete=True).source == "given"


def test_a_stop_string_that_only_the_request_names_counts():
    answer = choice("Hello", token_ids=smollm.encode("Hello###"))
    assert align(answer, smollm, complete=True, stop=["###"]).source == "given"
    assert refusal(answer) == "ids_do_not_match_text"


@pytest.mark.parametrize(
    "answer",
    [
        choice("Hello", token_ids=smollm.encode("Good bye")),
        choice("Hello", token_ids=smollm.encode("Hello there, and much more")),
        choice("Hello ", token_ids=smollm.encode("Hello STOP and much more"), stop_reason="STOP"),
        choice("Hello", token_ids=[2**31 + 5]),
        choice("Hello", token_ids=[10**8]),
        choice("b", reasoning="a", token_ids=smollm.encode("b a")),
    ],
)
def test_ids_that_spell_something_else_are_refused(answer):
    assert refusal(answer) == "ids_do_not_match_text"


def test_a_character_cut_in_two_at_the_end_is_allowed_for():
    ids = spelling.encode("a 🍆")[:-1]
    assert align(choice("a ", token_ids=ids, finish_reason="length"), smollm, complete=True).token_ids == ids


def test_an_answer_whose_client_left_may_be_shorter_than_its_ids_or_longer():
    ids = smollm.encode("one two three")
    for text in ("one two", "one two three four"):
        assert align(choice(text, token_ids=ids, finish_reason=None), smollm, complete=False).token_ids == ids


def test_logprob_bytes_name_the_very_tokens():
    ids = random_split(b"The quick brown fox", spelling, 3)
    aligned = align(choice("The quick brown fox", logprobs=entries(ids)), smollm, complete=True)
    assert (aligned.token_ids, aligned.source) == ([*ids, END], "logprobs")


@pytest.mark.parametrize("form", ["id", "token_id"])
def test_logprob_entries_may_carry_ids(form):
    ids = random_split(b"The quick brown fox", spelling, 3)
    told = [
        {"token": f"token_id:{token}" if form == "token_id" else "?", "logprob": 0.0, "bytes": None}
        | ({"id": token} if form == "id" else {})
        for token in ids
    ]
    assert align(choice("The quick brown fox", logprobs=told), smollm, complete=True).token_ids == [*ids, END]


def test_logprobs_that_spell_another_text_are_refused():
    assert refusal(choice("Hello", logprobs=entries(smollm.encode("Good bye")))) == "ids_do_not_match_text"


def test_logprobs_with_parts_of_characters_fall_back_to_the_text():
    lost = [{"token": "�", "logprob": 0.0, "bytes": list("�".encode())}] * 2
    aligned = align(choice("é", logprobs=lost), smollm, complete=True)
    assert aligned.source == "retokenized"


def held_back(character: str) -> list[dict]:
    """Entries of "k" and of a character in single bytes, as llama.cpp's server streams them (xllamacpp 2026.10)."""
    octets = character.encode()
    last = {"id": spelling.ids_by_bytes[octets[-1:]], "token": character, "bytes": list(octets), "logprob": -1.0}
    return [*entries([spelling.ids_by_bytes[b"k"]]), last]


def test_a_first_byte_that_llama_cpp_lists_with_the_next_token_was_a_token():
    told = align(choice("kȍ", logprobs=held_back("ȍ")), smollm, complete=True)
    ids = [spelling.ids_by_bytes[octets] for octets in (b"k", b"\xc8", b"\x8d")]
    assert (told.token_ids, told.source) == ([*ids, END], "logprobs")


def test_where_more_bytes_were_held_back_their_tokens_are_looked_for_in_the_text():
    assert align(choice("k😀", logprobs=held_back("😀")), smollm, complete=True).source == "retokenized"


def test_text_alone_is_encoded_with_its_end_token():
    assert align(choice("Hello"), smollm, complete=True).token_ids == [*smollm.encode("Hello"), END]
    for answer, complete in ((choice("Hello", finish_reason="length"), True), (choice("Hello"), False)):
        assert align(answer, smollm, complete=complete).token_ids == smollm.encode("Hello")


def test_an_end_token_of_another_id_is_the_one_that_the_server_names():
    assert align(choice("Hello", stop_reason=0), smollm, complete=True).token_ids[-1] == 0


def test_a_hidden_stop_string_is_inferred_and_its_tokens_are_ambiguous():
    (text,) = answer_texts(choice("Hello", stop_reason="\n\n"), smollm)
    ends = spelling.ends(text.token_ids(spelling))
    assert text.data == b"Hello\n\n"
    assert text.inferred_tokens(ends).tolist() == [False, True]


def test_special_tokens_that_were_left_in_the_text_are_those_tokens():
    shown = choice("Hello<|im_end|>")
    assert align(shown, smollm, complete=True, special=True).token_ids == [*smollm.encode("Hello"), END]
    assert align(choice("a<|im_start|>b", finish_reason="length"), smollm, complete=True, special=True).token_ids == (
        smollm.encode("a<|im_start|>b")
    )
    assert END not in align(shown, smollm, complete=True).token_ids[:-1]


def test_replaced_bytes_are_ambiguous():
    (text,) = answer_texts(choice("a � b", finish_reason="length"), smollm)
    touched = text.inferred_tokens(spelling.ends(text.token_ids(spelling)))
    assert touched.any()
    assert not touched.all()


@pytest.mark.parametrize(
    ("template", "opening", "closing"),
    [
        ("Qwen-Qwen3-0.6B", "<think>\n", "\n</think>\n\n"),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "<think>\n", "\n</think>\n\n"),
        ("GLM-4.7-Flash", "<think>", "</think>"),
    ],
)
def test_reasoning_markers_come_from_template_or_vocabulary(template, opening, closing):
    source = BESIDE / "templates" / f"{template}.jinja"
    if not source.is_file():
        pytest.skip("the models' templates do not stand beside this checkout")
    tokenizer = ChatTokenizer.of(deepcopy(byte_level()._tokenizer))
    tokenizer._tokenizer.chat_template = source.read_text()
    markers = reasoning_markers(tokenizer)
    assert markers is not None
    assert (markers.opening, markers.closing) == (opening, closing)


def test_reasoning_is_joined_by_the_familys_markers():
    thinking = byte_level()
    texts = answer_texts(choice("It is 4.", reasoning="2 + 2"), thinking)
    assert texts[0].data == b"<think>\n2 + 2\n</think>\n\nIt is 4.</s>"
    assert {text.data for text in texts} > {b"<think>2 + 2</think>It is 4.</s>"}
    kept = answer_texts(choice("\n\nIt is 4.", reasoning="\n2 + 2\n"), thinking)
    assert kept[0].data == b"<think>\n2 + 2\n</think>\n\nIt is 4.</s>"
    opened = answer_texts(choice("It is 4.", reasoning="2 + 2"), thinking, prompt="…<think>\n")
    assert opened[0].data == b"2 + 2\n</think>\n\nIt is 4.</s>"
    ids = texts[0].token_ids(thinking.spelling)
    assert ids[0] == thinking.marker_ids["<think>"]
    assert ids[-1] == thinking.end_token_ids[0]


def test_reasoning_of_a_model_without_markers_is_unsupported():
    assert refusal(choice("b", reasoning="a")) == "reasoning_text"


CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def test_tool_calls_are_written_as_the_template_writes_them():
    source = BESIDE / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja"
    if not source.is_file():
        pytest.skip("the models' templates do not stand beside this checkout")
    tokenizer = ChatTokenizer(ensure_demo_model())
    tokenizer._tokenizer.chat_template = source.read_text()
    text = answer_texts(choice("", tool_calls=[CALL], finish_reason="tool_calls"), tokenizer)[0]
    syntax = b'<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
    assert text.data == syntax
    ids = text.token_ids(spelling)
    known = [spelling.token_bytes[ids[n]] for n in np.flatnonzero(~text.inferred_tokens(spelling.ends(ids)))]
    assert {b"weather", b"city", b"Rome", b"<|im_end|>"} <= set(known)
    assert b"arguments" not in known


def test_reasoning_before_a_tool_call_is_closed():
    thinking = ChatTokenizer.of(deepcopy(byte_level()._tokenizer))
    thinking._tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    answer = choice("", reasoning="2 + 2", tool_calls=[CALL], finish_reason="tool_calls")
    assert answer_texts(answer, thinking)[0].data.startswith(b"<think>\n2 + 2\n</think>\n\n<tool_call>\n{")


@pytest.mark.parametrize("arguments", ["not JSON", '{"city": "Rome"}'])
def test_tool_calls_that_the_template_cannot_write_are_unsupported(arguments):
    call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
    assert refusal(choice("", tool_calls=[call], finish_reason="tool_calls")) == "tool_call_text"


@pytest.mark.parametrize("text", ["\ud800", "x" * 50 + "\udfff"])
def test_lone_surrogates_have_a_reason(text):
    assert refusal(choice(text)) == "text_not_unicode"


@pytest.mark.parametrize("text", ["<|im_end|>" * 500, "\u200b" * 5000, "<think>" * 300, "\x00" * 100, "�" * 500])
def test_hostile_text_is_spelled(text):
    aligned = align(choice(text, finish_reason="length"), smollm, complete=True)
    assert spelling.spell(aligned.token_ids, special=False).decode() == text


def test_a_record_that_broke_off_leaves_its_last_token_open():
    (text,) = answer_texts(choice("one two thr", finish_reason=None), smollm, complete=False)
    ids = text.token_ids(spelling)
    assert text.inferred_tokens(spelling.ends(ids)).tolist() == [False] * (len(ids) - 1) + [True]


def test_ids_may_spell_markers_around_what_clients_saw_but_not_another_answer():
    told = smollm.encode("<think>why</think>" + "and something quite different " * 30 + "Hello")
    assert refusal(choice("Hello", reasoning="why", token_ids=told)) == "ids_do_not_match_text"


def test_ids_of_a_tool_call_with_a_long_argument_spell_what_clients_saw():
    arguments = json.dumps({'the "content"': "All work and no play. " * 200})
    call = {"function": {"name": "write_file", "arguments": arguments}}
    told = smollm.encode('<tool_call>\n{"name": "write_file", "arguments": ' + arguments + "}\n</tool_call>")
    answer = choice("", tool_calls=[call], token_ids=told, finish_reason="tool_calls")
    assert align(answer, smollm, complete=True).source == "given"
    assert refusal(choice("", tool_calls=[call], token_ids=smollm.encode("Hello"))) == "ids_do_not_match_text"


def test_logprob_entries_without_bytes_may_be_bare_pieces_or_nothing_at_all():
    ids = smollm.encode("The quick brown fox")
    pieces = [{"token": smollm._tokenizer.convert_ids_to_tokens(token), "bytes": None} for token in ids]
    assert align(choice("The quick brown fox", logprobs=pieces), smollm, complete=True).token_ids == [*ids, END]
    odd = [{"token": "Q", "bytes": None} for _ in ids]
    assert align(choice("The quick brown fox", logprobs=odd), smollm, complete=True).source == "retokenized"


def test_an_end_token_without_text_among_the_logprobs_is_the_end_token():
    ids = smollm.encode("The quick brown fox")
    told = [*entries(ids), {"token": "", "bytes": []}]
    assert align(choice("The quick brown fox", logprobs=told), smollm, complete=True).token_ids == [*ids, END]


def cpu_seconds(answer):
    started = time.process_time()
    with contextlib.suppress(Unsupported):
        align(answer, smollm, complete=True)
    return time.process_time() - started


@pytest.mark.parametrize(
    "flood",
    [
        lambda text: choice(text, finish_reason="length"),
        lambda text: choice(text.replace(" ", "�"), finish_reason="length"),
        lambda text: choice(text + "\x1d", finish_reason="length"),  # SmolLM2 has no token for it
        lambda text: choice("a", reasoning=text),
        lambda text: choice(text, token_ids=spelling.encode(text[:1000]) * (len(text) // 1000)),
        lambda text: choice(text, logprobs=entries(spelling.encode(text[:2000])) * (len(text) // 2000)),
        lambda text: choice("", tool_calls=[
            {"function": {"name": "weather", "arguments": json.dumps({"<|im_end|>": [text[:99]] * (len(text) // 99)})}}
        ]),
        lambda text: choice("<|im_end|><think>" * (len(text) // 18), finish_reason="length"),
        lambda text: choice("\u200b\ufeff" * (len(text) // 6), finish_reason="length"),
    ],
    ids=["text", "lost bytes", "unspellable end", "reasoning", "ids", "logprobs", "tool call", "markers", "zero width"],
)  # fmt: skip
def test_answers_of_megabytes_take_linear_time_and_raise_nothing_but_a_reason(flood):
    unit = "The quick brown fox jumps over the lazy dog. "
    cpu_seconds(flood(unit * 1_000))
    small, large = (cpu_seconds(flood(unit * n)) for n in (5_000, 40_000))
    assert large < 0.5 + 20 * small


def test_ten_megabytes_have_a_reason_and_no_exception():
    text = "The quick brown fox jumps over the lazy dog.\n" * 230_000
    aligned = align(choice(text, finish_reason="length"), smollm, complete=True)
    assert spelling.spell(aligned.token_ids) == text.encode()


@pytest.mark.parametrize(("name", "work"), [("given", alignment.given), ("lattice", alignment.lattice)])
def test_text_becomes_tokens_at_the_rate_that_is_promised(name, work):
    answers = alignment.choices(20)
    assert alignment.rate(lambda: work(answers, smollm)) >= alignment.LEAST[name]
