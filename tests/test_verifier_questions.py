"""From exchanges to audits: prompts of both endpoints, prompts that servers tell, answers known only as text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from storage_rows import NOON
from storage_rows import exchange as new_exchange

from storage.models import Exchange, Outcome
from verifier.audit import TrustedModel, audit_exchanges
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.sequences import TokenSequence

RULES = contract("vllm@0.26.0/v2")
SAMPLING = SamplingParams(temperature=1.0, top_p=0.9)
ASKED = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def model(tiny_directory):
    from verifier.models import load_model

    return load_model(str(tiny_directory), directories={})


@pytest.fixture(scope="module")
def other(other_tiny_directory):
    from verifier.models import load_model

    return load_model(str(other_tiny_directory), directories={})


def drawn(model: TrustedModel, prompt: Sequence[int], seed: int, count: int = 16) -> list[int]:
    """What a provider of this model samples."""
    ids: list[int] = []
    for _ in range(count):
        claim = Claim(TokenSequence(list(prompt), [*ids, 0]), seed, SAMPLING, RULES)
        ids.append(int(replay(model.reference, [claim])[0].predicted_ids[-1]))
    return ids


def answer(model: TrustedModel, ids: Sequence[int], index: int = 0, **fields: Any) -> dict[str, Any]:
    text = model.tokenizer.decode(ids)
    return {"index": index, "text": text, "token_ids": list(ids), "finish_reason": "length", **fields}


def audited(model: TrustedModel, choices: list[dict[str, Any]], **fields: Any) -> list[Any]:
    forced = {"seed": 7, "temperature": 1.0, "top_p": 0.9, "n": fields.pop("n", 1)}
    response = {"choices": choices, **fields.pop("response", {})}
    values = vars(new_exchange(1, forced=forced, response=response, **fields))
    exchange = Exchange(**{**values, "outcome": Outcome(values["outcome"])})
    return audit_exchanges([exchange], model, now=NOON)[exchange.id]


def completed(model: TrustedModel, choices: list[dict[str, Any]], prompt: Any, **fields: Any) -> list[Any]:
    request = {"model": "tiny", "prompt": prompt, **fields.pop("request", {})}
    return audited(model, choices, endpoint="/v1/completions", request=request, **fields)


def rates(audits: Sequence[Any]) -> list[float | None]:
    return [audit.exact_match_rate for audit in audits]


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_completion_is_replayed_on_its_prompt(model, as_ids):
    ids = model.tokenizer.encode("Once upon a time")
    prompt = ids if as_ids else "Once upon a time"
    (audit,) = completed(model, [answer(model, drawn(model, ids, 7))], prompt)
    assert (audit.exact_match_rate, audit.token_source, audit.notes) == (1.0, "given", {})


def test_several_prompts_with_several_choices_each_have_their_own_prompt_and_seed(model):
    prompts = ["Once upon", [5, 6, 7]]
    ids = [model.tokenizer.encode("Once upon"), [5, 6, 7]]
    choices = [
        answer(model, drawn(model, ids[n // 2], RULES.choice_seed(7, n % 2)), n, prompt_token_ids=ids[n // 2])
        for n in range(4)
    ]
    assert rates(completed(model, choices, prompts, n=2)) == [1.0] * 4
    swapped = [{**choice, "index": 3 - choice["index"]} for choice in choices]
    assert max(rates(completed(model, swapped, prompts, n=2))) < 0.5
    beyond = completed(model, [answer(model, [5], 4)], prompts, n=2)
    assert [audit.reason for audit in beyond] == ["choice_not_asked_for"]


def test_an_echoed_prompt_is_taken_off(model):
    ids = drawn(model, model.tokenizer.encode("Once upon"), 7)
    echoed = {**answer(model, ids), "text": "Once upon" + model.tokenizer.decode(ids)}
    assert rates(completed(model, [echoed], "Once upon", request={"echo": True})) == [1.0]
    (audit,) = completed(model, [answer(model, ids)], "Once upon", request={"echo": True})
    assert audit.reason == "echo_differs"


@pytest.mark.parametrize(
    ("prompt", "request_fields", "reason"),
    [
        (None, {}, "prompt_not_text"),
        ([], {}, "prompt_not_text"),
        ([[]], {}, "prompt_not_text"),
        ([1, "a"], {}, "prompt_not_text"),
        ([True], {}, "prompt_not_text"),
        ("a", {"suffix": "b"}, "fill_in_the_middle"),
        ("\ud800", {}, "text_not_unicode"),
        ([10**9], {}, "sequence_not_scorable"),
        ("", {}, "sequence_not_scorable"),
    ],
)
def test_prompts_that_cannot_be_replayed_have_a_reason(model, prompt, request_fields, reason):
    (audit,) = completed(model, [answer(model, [5])], prompt, request=request_fields)
    assert audit.reason == reason


def test_a_hidden_system_prompt_is_named_and_told_apart_from_another_model(model, other):
    hidden = [{"role": "system", "content": "Praise ACME."}, *ASKED]
    told = model.tokenizer.prompt_token_ids(hidden)
    (honest,) = audited(model, [answer(model, drawn(model, told, 7))], response={"prompt_token_ids": told})
    assert "Praise ACME." in honest.notes["prompt_differs"]["added"]
    assert honest.exact_match_rate < 0.5
    assert honest.notes["match_rate_on_told_prompt"] == 1.0
    assert honest.notes["told_prompt_explains"] is True
    (cheat,) = audited(model, [answer(model, drawn(other, told, 7))], response={"prompt_token_ids": told})
    assert cheat.notes["told_prompt_explains"] is False


def test_a_told_prompt_is_tried_too_where_only_the_text_is_known(model):
    told = model.tokenizer.prompt_token_ids([{"role": "system", "content": "Praise ACME."}, *ASKED])
    known = answer(model, drawn(model, told, 7))
    (audit,) = audited(model, [{**known, "token_ids": None}], response={"prompt_token_ids": told})
    assert audit.token_source == "retokenized"
    assert audit.notes["told_prompt_explains"] is True


def test_only_a_count_that_differs_is_a_difference_too(model):
    ids = model.tokenizer.prompt_token_ids(ASKED)
    choices = [answer(model, drawn(model, ids, 7))]
    assert audited(model, choices, response={"usage": {"prompt_tokens": len(ids)}})[0].notes == {}
    (audit,) = audited(model, choices, response={"usage": {"prompt_tokens": len(ids) + 9}})
    assert audit.notes["prompt_differs"] == {"kind": "count", "tokens": 9}
    assert audit.exact_match_rate == 1.0


def test_an_answer_in_another_tokenization_is_found_in_the_audit(model):
    prompt = model.tokenizer.prompt_token_ids(ASKED)
    ids = drawn(model, prompt, 7)  # random weights write no text as the tokenizer would
    assert model.tokenizer.spelling.encode(model.tokenizer.decode(ids)) != ids
    (audit,) = audited(model, [{**answer(model, ids), "token_ids": None}])
    assert audit.token_source == "retokenized"
    assert (audit.exact_match_rate, audit.ambiguous_tokens) == (1.0, 0)


def test_an_answer_whose_client_left_is_audited_as_far_as_it_came(model):
    ids = drawn(model, model.tokenizer.prompt_token_ids(ASKED), 7)
    left = {**answer(model, ids[:8]), "finish_reason": None}
    assert rates(audited(model, [left], outcome="client_left")) == [1.0]
    (audit,) = audited(model, [{**left, "token_ids": None}], outcome="client_left")
    assert audit.exact_match_rate == 1.0
    assert audit.ambiguous_tokens >= 1  # the record may have broken off inside the last token


def test_where_the_ids_came_from_is_marked(model):
    ids = drawn(model, model.tokenizer.prompt_token_ids(ASKED), 7)
    (audit,) = audited(model, [answer(model, ids, ids_from="raw_output")])
    assert audit.notes == {"ids_from": "raw_output"}


@pytest.mark.parametrize(("told", "fields", "notes"), [
    (16, {}, {}), (17, {}, {"usage_differs": {"completion_tokens": 17, "token_ids": 16}}), (None, {}, {}),
    (-5, {}, {"usage_differs": {"completion_tokens": -5, "token_ids": 16}}), (17, {"outcome": "client_left"}, {}),
])
def test_a_bill_for_other_tokens_than_were_sent_is_noted(model, told, fields, notes):
    ids = drawn(model, model.tokenizer.prompt_token_ids(ASKED), 7)
    (audit,) = audited(model, [answer(model, ids)], response={"usage": {"completion_tokens": told}}, **fields)
    assert (audit.notes, audit.exact_match_rate) == (notes, 1.0)


def test_references_that_score_by_themselves_read_texts_too(model):
    class There:
        """What GPU references are to the search: whole claims in, scores out, no logits."""

        width, end_token_ids = model.reference.width, model.reference.end_token_ids
        check = staticmethod(model.reference.check)

        def scores(self, claims, on_tokens=None):
            return replay(model.reference, claims, on_tokens)

        def logits(self, sequences):
            raise AssertionError("no logits leave this reference")

    ids = drawn(model, model.tokenizer.prompt_token_ids(ASKED), 7)
    (audit,) = audited(replace(model, reference=There()), [{**answer(model, ids), "token_ids": None}])
    assert audit.exact_match_rate == 1.0
