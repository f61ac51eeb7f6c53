"""Tool calls in each family's own syntax, by its template: what the vendors' tool parsers read."""

import json
from copy import deepcopy
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import BESIDE
from tokenizers_made import byte_level
from tokenizers_real import tekken

from verifier.errors import Unsupported
from verifier.tokenization import ChatTokenizer
from verifier.tool_calls import written_calls

ARGUMENTS = '{"city": "Zürich", "days": 3}'
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "days": 3}}\n</tool_call>'
XML = "\n".join(
    ["<tool_call>", "<function=weather>", "<parameter=city>", "Zürich", "</parameter>", "<parameter=days>", "3",
     "</parameter>", "</function>", "</tool_call>"]
)  # fmt: skip
FAMILIES = {
    "Qwen-Qwen2.5-7B-Instruct": HERMES,
    "Qwen-Qwen3-0.6B": HERMES,
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": HERMES,
    "Qwen3-Coder": XML,
    "meta-llama-Llama-3.1-8B-Instruct": '{"name": "weather", "parameters": {"city": "Zürich", "days": 3}}',
    "meta-llama-Llama-3.2-3B-Instruct": '{"name": "weather", "parameters": {"city": "Zürich", "days": 3}}',
    "mistralai-Mistral-Nemo-Instruct-2407":
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Zürich", "days": 3}}]',
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B":
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Zürich", "days": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "GLM-4.7-Flash":
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Zürich</arg_value>"
        "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>",
}  # fmt: skip
UNKNOWN = ["google-gemma-2-2b-it", "openai-gpt-oss-120b", "Kimi-K2-Instruct"]


@cache
def family(name: str) -> ChatTokenizer:
    """A real tokenizer with a family's template and DeepSeek's end token."""
    source = BESIDE / "templates" / f"{name}.jinja"
    if not source.is_file():
        pytest.skip("the models' templates do not stand beside this checkout")
    tokenizer = deepcopy(tekken()._tokenizer)
    if "DeepSeek" in name:
        tokenizer.add_special_tokens({"eos_token": "<｜end▁of▁sentence｜>"})
    tokenizer.chat_template = source.read_text()
    return ChatTokenizer.of(tokenizer)


def joined(pieces):
    return "".join(text for text, _ in pieces)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_is_written_in_its_familys_syntax(name):
    pieces = written_calls([CALL], "", family(name))[0]
    assert joined(pieces) == FAMILIES[name]
    assert [text for text, seen in pieces if seen] == ["weather", "city", "Zürich", "days"]


@pytest.mark.parametrize(
    ("name", "between"), [("Qwen-Qwen2.5-7B-Instruct", "\n"), ("Qwen3-Coder", "\n\n"), ("GLM-4.7-Flash", "")]
)
def test_a_call_behind_a_text_keeps_its_distance(name, between):
    assert joined(written_calls([CALL], "Let me see.", family(name))[0]) == between + FAMILIES[name]


def test_several_calls_follow_each_other():
    two = written_calls([CALL, CALL], "", family("Qwen-Qwen2.5-7B-Instruct"))[0]
    assert joined(two) == HERMES + "\n" + HERMES


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_template_that_does_not_show_calls_as_they_are_written_is_unsupported(name):
    with pytest.raises(Unsupported, match="tool_call_text"):
        written_calls([CALL], "", family(name))


def test_calls_behind_a_text_are_unsupported_where_the_template_puts_them_in_front():
    with pytest.raises(Unsupported, match="tool_call_text"):
        written_calls([CALL], "Let me see.", family("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"))


def test_other_spacings_of_the_arguments_are_offered_after_the_templates_own():
    odd = {**CALL, "function": {"name": "weather", "arguments": '{"city":  "Zürich", "days":3}'}}
    variants = [joined(pieces) for pieces in written_calls([odd], "", family("Qwen-Qwen2.5-7B-Instruct"))]
    assert variants[0] == HERMES
    assert '{"city":  "Zürich", "days":3}' in variants[1]
    assert '{"city":"Zürich","days":3}' in variants[2]


def test_without_a_template_the_vocabulary_tells_hermes_syntax():
    tokenizer = deepcopy(byte_level()._tokenizer)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    assert joined(written_calls([CALL], "", ChatTokenizer.of(tokenizer))[0]) == HERMES


@pytest.mark.parametrize(
    "arguments", ["not JSON", "[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, "9" * 10_000], ids=lambda a: a[:5]
)
def test_hostile_arguments_have_a_reason(arguments):
    call = {"function": {"name": "weather", "arguments": arguments}}
    with pytest.raises(Unsupported, match="tool_call_text"):
        written_calls([call], "", family("Qwen-Qwen2.5-7B-Instruct"))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.recursive(st.text(max_size=8) | st.booleans(), st.lists, max_leaves=4)))
def test_whatever_the_arguments_are_names_and_values_are_kept_in_order(arguments):
    call = {"function": {"name": "weather", "arguments": json.dumps(arguments)}}
    pieces = written_calls([call], "", family("Qwen-Qwen2.5-7B-Instruct"))[0]
    said = json.dumps({"name": "weather", "arguments": arguments}, ensure_ascii=False)
    assert joined(pieces) == f"<tool_call>\n{said}\n</tool_call>"
