import dataclasses

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import policy, protocol, unverifiable
from proxy.config_upstreams import BOUNDS
from proxy.errors import RequestError
from proxy.protocol import CHAT, TEXT, GenerationRequest
from proxy.upstreams import DIALECTS, ForcedSampling, Mode, Model, Policy, Upstream
from verifier.processors import not_modelled
from verifier.samplers.names import parse
from verifier.sampling_params import SamplingParams

SECRET = b"a secret for tests"
MESSAGES = [{"role": "user", "content": "hi"}]
MODEL = Model(name="m", reference="r", sampler="greedy", sampling=ForcedSampling(temperature=0.5, top_p=0.9))
VLLM = Upstream(name="u", base_url="http://h/v1", kind="vllm", audit_rate=1.0, models={"m": MODEL})


def decide(body=None, upstream=VLLM, model=MODEL, exchange_id="id"):
    body = {"model": "m", "messages": MESSAGES, **(body or {})}
    request = GenerationRequest(CHAT, body, "m", False, body.get("n") or 1)
    return policy.decide(request, upstream, model, exchange_id=exchange_id, secret=SECRET)


def test_vllm_gets_every_value_that_its_generation_config_could_fill():
    changes = dict(decide({"min_p": 0.1}).changes)
    assert 0 <= changes.pop("seed") < 2**31
    assert changes == {
        "temperature": 0.5, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.0, "return_token_ids": True,
    }


def test_openai_gets_only_fields_it_knows():
    openai = dataclasses.replace(VLLM, kind="openai")
    assert set(decide(upstream=openai).changes) == {"seed", "temperature", "top_p"}


@pytest.mark.parametrize(("asked", "changed"), [
    ({}, {"logprobs": True, "top_logprobs": 1, "cache_prompt": False}),
    ({"logprobs": True, "top_logprobs": 5, "cache_prompt": True}, {"cache_prompt": False}),
    ({"logprobs": False, "top_logprobs": 0, "cache_prompt": False}, {"logprobs": True, "top_logprobs": 1}),
])
def test_llama_cpp_is_asked_for_the_logprob_entries_that_hold_its_token_ids(asked, changed):
    changes = decide(asked, upstream=dataclasses.replace(VLLM, kind="llama.cpp")).changes
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
    assert changes == {"seed": changes["seed"], **sampling, **changed}


def test_header_names_what_was_forced_but_not_the_seed():
    decision = decide()
    assert decision.header() == (
        "seed, temperature=0.5, top_p=0.9, top_k=-1, min_p=0.0, repetition_penalty=1.0, return_token_ids=true"
    )


def test_forced_is_the_whole_effective_sampling():
    decision = decide({"n": 2, "max_tokens": 9, "max_completion_tokens": 8, "stop": ["x"], "top_k": 5, "seed": 1})
    forced = dict(decision.forced)
    assert forced.pop("seed") == decision.changes["seed"]
    assert forced == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.0, "repetition_penalty": 1.0, "n": 2,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tokens": 8, "stop": ["x"],
    }
    assert decision.overridden == {"seed": 1}


def test_without_a_model_nothing_is_forced():
    decision = decide({"temperature": 3}, model=None)
    assert (decision.changes, decision.audit, decision.unaudited_reason) == ({}, False, "model_not_configured")


@pytest.mark.parametrize(("body", "reason"), [
    ({"response_format": {"type": "json_object"}}, "structured_output"),
    ({"response_format": {"type": "text"}}, None),
    ({"tool_choice": "required"}, "forced_tool_choice"),
    ({"tool_choice": "auto", "tools": [{}]}, None),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "multimodal_content"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, None),
    ({"guided_json": {"type": "object"}}, "structured_output"), ({"use_beam_search": True}, "beam_search"),
    # vLLM
    ({"echo": True}, "echoed_prompt"), ({"truncate_prompt_tokens": 5}, "prompt_transformed"),
    ({"thinking_token_budget": 0}, "custom_logits"), ({"thinking_token_budget": None}, None),
    ({"include_reasoning": False}, "hidden_reasoning"), ({"include_reasoning": True}, None),
    ({"watermarking": True}, "custom_logits"), ({"vllm_xargs": {"a": 1}}, "custom_logits"),
    ({"structured_outputs": {"regex": "a"}}, "structured_output"), ({"skip_special_tokens": False}, None),
    ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low", "min_tokens": 3}, None),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "structured_output"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}], "tool_choice": "none"}, None),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": False}}], "parallel_tool_calls": True}, None),
    # SGLang
    ({"regex": "a+"}, "structured_output"), ({"ebnf": "root ::= a"}, "structured_output"),
    ({"lora_path": "x"}, "other_weights"), ({"session_params": {"id": "s"}}, "prompt_transformed"),
    ({"custom_logit_processor": "x"}, "custom_logits"), ({"separate_reasoning": True, "no_stop_trim": True}, None),
    # OpenRouter
    ({"reasoning": {"exclude": True}}, "hidden_reasoning"), ({"reasoning": {"max_tokens": 9}}, "custom_logits"),
    ({"reasoning": {"effort": "low"}}, None), ({"models": ["a", "b"]}, "other_weights"),
    ({"top_a": 0.1}, "custom_logits"), ({"preset": "mine"}, "prompt_transformed"),
    ({"transforms": ["middle-out"]}, "prompt_transformed"), ({"plugins": [{"id": "web"}]}, "prompt_transformed"),
    # OpenAI
    ({"modalities": ["text", "audio"], "audio": {"voice": "x"}}, "audio_output"),
    ({"functions": [{}]}, "legacy_functions"),
    ({"prediction": {"type": "content"}}, "predicted_output"), ({"web_search_options": {"a": 1}}, "web_search"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "multimodal_content"),
    ({"logprobs": True, "top_logprobs": 5, "max_completion_tokens": 9}, None),
    ({"stream": True, "stream_options": {"include_usage": True}}, None),
    # LMDeploy, Fireworks, llama.cpp
    ({"do_preprocess": False}, "prompt_transformed"), ({"prompt_truncate_len": 9}, "prompt_transformed"),
    ({"lora": [{"id": 0}]}, "other_weights"), ({"mirostat": 2}, "custom_logits"),
    ({"json_schema": {}, "grammar": "root ::= [a-z]"}, "structured_output"),
])
def test_what_no_contract_replays_is_not_audited(body, reason):
    decision = decide(body)
    assert (decision.unaudited_reason, decision.audit) == (reason, reason is None)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6,
)
FIELDS = sorted({
    *unverifiable._NOT_REPLAYABLE, *unverifiable._NOT_REPLAYABLE_OFF, *BOUNDS, "seed", "n", "stop", "min_tokens",
    "max_tokens", "tools", "tool_choice", "response_format", "reasoning", "thinking_token_budget", "provider",
    "modalities", "prompt", "messages", "best_of", "suffix", "logprobs", "top_logprobs", "return_token_ids", "user",
    "logit_bias",
})


@given(st.dictionaries(st.sampled_from(FIELDS), ANY, max_size=5), st.sampled_from([CHAT, TEXT]), st.sampled_from(Mode))
def test_any_fields_are_refused_or_decided(fields, endpoint, mode):
    body = orjson.dumps({"model": "m", "messages": MESSAGES, "prompt": "x", **fields})
    try:
        request = protocol.parse(endpoint, body)
    except RequestError:
        return
    for kind in DIALECTS:
        upstream = dataclasses.replace(VLLM, kind=kind)
        decision = policy.decide(request, upstream, with_mode(mode, bounds=BOUNDS), exchange_id="id", secret=SECRET)
        assert decision.audit == (decision.unaudited_reason is None)
        sent = orjson.loads(protocol.serialise(request, decision.changes))
        assert sent.items() >= orjson.loads(orjson.dumps(dict(decision.changes))).items()
        assert mode is not Mode.OBSERVE or sent == orjson.loads(body)


ENGINES = ("vllm@0.26.0/v1", "vllm@0.26.0/v2", "sglang@0.5.5", "llama.cpp", "lmdeploy", "tgi", "huggingface", "greedy")
PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -1, "min_tokens": 3}


@pytest.mark.parametrize("sampler", ENGINES)
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_that_the_contract_lacks_are_known_beforehand(sampler, name):
    model = dataclasses.replace(MODEL, sampler=sampler)
    lacks = not_modelled(parse(sampler).engine, SamplingParams.from_fields({name: PENALTIES[name]}))
    decision = decide({name: PENALTIES[name]}, model=model)
    assert decision.unaudited_reason == (None if lacks is None else "processor_not_modelled")
    if lacks is not None:
        assert policy.refused(decision, Policy(refuse=True)).code == "unverifiable_request"
    assert decide(dict.fromkeys(PENALTIES, 0) | {"repetition_penalty": 1}, model=model).audit


@given(st.text(max_size=40), st.binary(min_size=16, max_size=40))
def test_seed_is_a_function_of_secret_and_id(exchange_id, secret):
    seed = policy.seed(exchange_id, secret)
    assert 0 <= seed < 2**31
    assert seed == policy.seed(exchange_id, secret)
    assert seed != policy.seed(exchange_id + "x", secret) or seed != policy.seed(exchange_id, secret + b"x")


def test_rate_is_met_and_does_not_depend_on_the_seed():
    ids = [str(number) for number in range(20_000)]
    chosen = [name for name in ids if policy.selected(name, SECRET, 0.25)]
    assert 0.235 < len(chosen) / len(ids) < 0.265
    odd = sum(policy.seed(name, SECRET) % 2 for name in chosen)
    assert 0.46 < odd / len(chosen) < 0.54
    assert all(policy.selected(name, SECRET, 1.0) for name in ids)
    assert not any(policy.selected(name, SECRET, 0.0) for name in ids)


def test_what_is_sent_does_not_tell_whether_it_is_audited():
    never = dataclasses.replace(VLLM, audit_rate=0.0)
    assert decide().changes == decide(upstream=never).changes
    assert decide(upstream=never).unaudited_reason == "not_selected"


def with_mode(mode, sampling=None, **policy_fields):
    chosen = MODEL.sampling if sampling is None else sampling
    return dataclasses.replace(MODEL, policy=Policy(mode=mode, **policy_fields), sampling=chosen)


def bounded(**bounds):
    return with_mode(Mode.BOUND, bounds={**BOUNDS, **bounds})


@pytest.mark.parametrize(("body", "sent"), [
    ({"temperature": 1.9}, 1.2), ({"temperature": 0}, 0.2), ({"temperature": 0.7}, None), ({}, 0.5),
])
def test_bound_moves_values_to_the_nearest_edge_and_fills_gaps(body, sent):
    assert decide(body, model=bounded(temperature=(0.2, 1.2))).changes.get("temperature") == sent


@pytest.mark.parametrize(("top_k", "sent"), [(-1, 50), (0, 50), (60, 50), (5, 10), (20, None)])
def test_bound_knows_that_top_k_off_is_the_largest(top_k, sent):
    assert decide({"top_k": top_k}, model=bounded(top_k=(10, 50))).changes.get("top_k") == sent
    assert "top_k" not in decide({"top_k": top_k}, model=bounded()).changes


def test_seed_only_changes_the_seed_and_asks_for_ids():
    asked = {"temperature": 0.3, "top_p": 0.8, "top_k": 4, "min_p": 0.0, "repetition_penalty": 1.0}
    decision = decide(asked, model=with_mode(Mode.SEED_ONLY))
    assert set(decision.changes) == {"seed", "return_token_ids"}
    assert (decision.audit, decision.forced["temperature"]) == (True, 0.3)


def test_seed_only_audits_only_what_is_known_of_the_sampling():
    named = ForcedSampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, repetition_penalty=1.0)
    assert decide(model=with_mode(Mode.SEED_ONLY)).unaudited_reason == "sampling_unknown"
    decision = decide({"top_p": None}, model=with_mode(Mode.SEED_ONLY, named))
    assert decision.audit
    assert (decision.forced["temperature"], decision.forced["top_p"], decision.forced["top_k"]) == (0.6, 0.95, 20)
    assert "temperature" not in decision.changes


@pytest.mark.parametrize(("body", "reason"), [
    ({}, "no_seed"), ({"seed": 3}, None), ({"temperature": 0}, None), ({"seed": 3, "tool_choice": "required"},
     "forced_tool_choice"),
])
def test_observe_touches_nothing(body, reason):
    named = ForcedSampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, repetition_penalty=1.0)
    decision = decide(body, model=with_mode(Mode.OBSERVE, named))
    assert (decision.changes, decision.overridden, decision.unaudited_reason) == ({}, {}, reason)
    assert decision.header() == ""


def test_router_is_told_its_provider_and_to_ignore_nothing():
    router = dataclasses.replace(VLLM, kind="openrouter")
    model = with_mode(Mode.FORCE, providers=("deepinfra",), quantizations=("bf16",))
    decision = decide({"provider": {"order": ["x"], "data_collection": "deny"}}, upstream=router, model=model)
    assert decision.changes["provider"] == {
        "data_collection": "deny", "allow_fallbacks": False, "require_parameters": True, "only": ["deepinfra"],
        "quantizations": ["bf16"],
    }
    assert "deepinfra" not in decision.header()
    assert "provider" not in decide(upstream=router, model=with_mode(Mode.OBSERVE)).changes


def text(body):
    request = GenerationRequest(TEXT, {"model": "m", "prompt": "x", **body}, "m", False, 1)
    return policy.decide(request, VLLM, MODEL, exchange_id="id", secret=SECRET)


@pytest.mark.parametrize(("body", "reason"), [
    ({}, None), ({"prompt": [1, 2]}, None), ({"prompt": ["x"]}, None), ({"prompt": [[1, 2]]}, None),
    ({"prompt": ["x", "y"]}, "several_prompts"), ({"prompt": None}, "no_prompt"), ({"echo": True}, "echoed_prompt"),
    ({"best_of": 2}, "best_of"), ({"n": 2, "best_of": 2}, None), ({"suffix": "z"}, "suffix"),
    ({"prompt_embeds": "AA"}, "multimodal_content"),
])
def test_text_completions_that_no_contract_replays(body, reason):
    assert text(body).unaudited_reason == reason


def test_what_cannot_be_verified_is_known_even_where_it_is_not_selected():
    never = dataclasses.replace(VLLM, audit_rate=0.0)
    decision = decide({"tool_choice": "required"}, upstream=never)
    assert decision.unverifiable == decision.unaudited_reason == "forced_tool_choice"
    assert policy.refused(decision, Policy(refuse=True)).code == "unverifiable_request"
    assert policy.refused(decision, Policy()) is None
    assert policy.refused(decide(upstream=never), Policy(refuse=True)) is None
