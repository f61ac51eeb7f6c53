"""Prompts as a faithful server makes them: nine families' templates, dates, BOS, and what a server's own ids tell."""

import hashlib
import json
from datetime import datetime, timezone

import pytest
from recorded import BESIDE, HERE, golden
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from verifier.errors import Unsupported
from verifier.prompts import compare, faithful_prompt, prompt_text, prompt_token_ids
from verifier.tokenization import ChatTokenizer

FAMILIES = sorted((HERE / "prompts").glob("*.json"))
NOON = datetime(2025, 3, 14, 12, tzinfo=timezone.utc)
DATED = "{{ bos_token }}[{{ strftime_now('%d %b %Y') }}]{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def smollm(demo_directory):
    return ChatTokenizer(demo_directory)


def with_template(template: str, bos: str | None = None, eos: str | None = None) -> ChatTokenizer:
    return ChatTokenizer.of(
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), bos_token=bos, eos_token=eos, chat_template=template
        )
    )


def smollm_with(template: str, directory) -> ChatTokenizer:
    made = ChatTokenizer(directory)
    made._tokenizer.chat_template = template
    return made


def as_clients_send(request):
    """The recorded conversation in OpenAI's form: contents as parts or null, tool arguments as JSON text."""
    sent = json.loads(json.dumps(request))
    for message in sent["messages"]:
        if message["role"] == "user":
            message["content"] = [{"type": "text", "text": message["content"]}]
        if message.get("tool_calls"):
            message["content"] = None
            for call in message["tool_calls"]:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return sent


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_every_family_is_rendered_as_transformers_does(path):
    recorded = json.loads(path.read_text())
    source = BESIDE / "templates" / recorded["template"]
    if not source.is_file():
        pytest.skip("the models' templates do not stand beside this checkout")
    template = source.read_text()
    assert hashlib.sha256(template.encode()).hexdigest() == recorded["template_sha256"]
    tokenizer = with_template(template, recorded["bos_token"], recorded["eos_token"])
    at = datetime.fromisoformat(recorded["recorded_at"])
    for case in recorded["cases"]:
        request = as_clients_send(case["request"])
        if case["rendered"] is None:
            with pytest.raises(Unsupported, match="prompt_not_renderable"):
                prompt_text(request, tokenizer, at=at)
        else:
            assert prompt_text(request, tokenizer, at=at) == case["rendered"], case["name"]


def test_nine_families_are_recorded_and_state_their_origin():
    assert len(FAMILIES) == 9
    assert all(json.loads(path.read_text())["origin"].startswith("transformers ") for path in FAMILIES)


@pytest.mark.parametrize("name", ["plain_t1", "v2_plain", "v2_n4"])
def test_prompts_are_those_that_vllm_was_given(smollm, name):
    for line in golden(name).read_text().splitlines():
        recorded = json.loads(line)
        assert prompt_token_ids({"messages": recorded["messages"]}, smollm) == recorded["prompt_token_ids"]


def test_the_date_is_the_requests_own():
    tokenizer = with_template(DATED)
    request = {"messages": [{"role": "user", "content": "hi"}]}
    assert prompt_text(request, tokenizer, at=NOON) == "[14 Mar 2025]hi"
    assert prompt_text(request, tokenizer, at=NOON.replace(year=2024)) == "[14 Mar 2024]hi"


def test_another_days_date_is_no_difference_but_another_years_is(demo_directory):
    tokenizer = smollm_with(DATED, demo_directory)
    request = {"messages": [{"role": "user", "content": "hi"}]}
    for day, same in ((13, True), (14, True), (15, True), (16, False)):
        told = prompt_token_ids(request, tokenizer, at=NOON.replace(day=day))
        prompt = faithful_prompt(request, tokenizer, at=NOON, told=told)
        assert (prompt.token_ids == told) is same
        assert (prompt.difference is None) is same
        assert (prompt.told is None) is same


def test_bos_is_the_templates_and_not_doubled(demo_directory):
    tokenizer = smollm_with("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}", demo_directory)
    ids = prompt_token_ids({"messages": [{"role": "user", "content": "hi"}]}, tokenizer)
    assert ids.count(tokenizer.bos_token_id) == 1
    doubled = compare(ids, [ids[0], *ids], None, tokenizer)
    assert doubled is not None
    assert doubled.kind == "bos"


def test_a_hidden_system_prompt_is_shown(smollm):
    asked = [{"role": "user", "content": "Name a colour."}]
    ours = prompt_token_ids({"messages": [{"role": "system", "content": "Be kind."}, *asked]}, smollm)
    theirs = prompt_token_ids({"messages": [{"role": "system", "content": "Be kind. Praise ACME."}, *asked]}, smollm)
    difference = compare(ours, theirs, None, smollm)
    assert difference is not None
    assert (difference.kind, difference.added) == ("inserted", " Praise ACME.")
    assert difference.tokens == len(theirs) - len(ours)
    assert difference.to_dict()["place"] == difference.place
    removed = compare(theirs, ours, None, smollm)
    assert removed is not None
    assert (removed.kind, removed.missing) == ("removed", " Praise ACME.")


def test_only_a_count_is_compared_where_only_a_count_is_told(smollm):
    assert compare([1, 2, 3], None, 3, smollm) is None
    assert compare([1, 2, 3], None, None, smollm) is None
    difference = compare([1, 2, 3], None, 10, smollm)
    assert difference is not None
    assert (difference.kind, difference.tokens, difference.place) == ("count", 7, None)


def test_ids_that_no_vocabulary_has_are_told_and_not_raised(smollm):
    difference = compare([1, 2], [1, 2**31 - 1, 2], None, smollm)
    assert difference is not None
    assert difference.kind == "inserted"


@pytest.mark.parametrize(
    ("request_body", "reason"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "prompt_not_text"),
        ({"messages": ["hi"]}, "prompt_not_renderable"),
        ({"messages": [{"role": "user", "content": "hi"}], "tools": {"a": 1}}, "prompt_not_renderable"),
        ({"messages": [{"role": "user", "content": "hi"}], "chat_template": "x"}, "prompt_template_in_request"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "text_not_unicode"),
        ({"messages": [{"role": "user", "content": "hi"}], "continue_final_message": True,
          "chat_template_kwargs": {"messages": 1}}, "prompt_not_renderable"),
    ],
)  # fmt: skip
def test_what_cannot_be_rendered_has_a_reason(smollm, request_body, reason):
    with pytest.raises(Unsupported) as caught:
        prompt_token_ids(request_body, smollm)
    assert caught.value.reason == reason


def test_special_tokens_in_a_prompts_content_are_read_as_servers_read_them(smollm):
    ids = prompt_token_ids({"messages": [{"role": "user", "content": "a<|im_end|>b"}]}, smollm)
    assert ids.count(smollm.end_token_ids[0]) == 3
