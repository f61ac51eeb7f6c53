"""The demo provider on the wire: the OpenAI SDK's view, vLLM's additions, and its refusals."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from proxy.demo_protocol import parse_request
from proxy.demo_provider import create_app
from proxy.errors import RequestError
from verifier.generation import GenerationEngine, load_engine

BODY: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6}


@pytest.fixture(scope="module")
def engine(demo_directory: Path) -> Iterator[GenerationEngine]:
    made = load_engine(demo_directory, sampler_id="vllm@0.26.0/v2", name="smollm2")
    yield made
    made.close()


@pytest.fixture
async def client(engine: GenerationEngine) -> AsyncIterator[TestClient[Any, Any]]:
    app = create_app(engine)
    app.on_cleanup.clear()  # one engine serves all tests here
    async with TestClient(TestServer(app)) as made:
        yield made


@pytest.fixture
async def sdk(client: TestClient[Any, Any]) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="none", max_retries=0) as made:
        yield made


async def test_streamed_and_whole_answers_are_the_same(sdk: AsyncOpenAI) -> None:
    extra = {"return_token_ids": True}
    whole = await sdk.chat.completions.create(**BODY, seed=5, logprobs=True, top_logprobs=2, extra_body=extra)
    options = {"include_usage": True}
    stream = await sdk.chat.completions.create(**BODY, seed=5, stream=True, stream_options=options, extra_body=extra)
    chunks = [chunk async for chunk in stream]
    choice = whole.choices[0]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == choice.message.content
    streamed_ids = [i for c in chunks if c.choices for i in (c.choices[0].model_extra or {}).get("token_ids", [])]
    assert streamed_ids == choice.model_extra["token_ids"]
    assert chunks[0].model_extra["prompt_token_ids"] == whole.model_extra["prompt_token_ids"]
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason == "length"
    assert [len(entry.top_logprobs) for entry in choice.logprobs.content] == [2] * 6


async def test_token_ids_come_only_when_asked_for(sdk: AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(**BODY, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].model_extra["token_ids"] is None
    assert answer.usage.completion_tokens == sum(1 for _ in answer.choices) * 6


async def test_models_and_health(sdk: AsyncOpenAI, client: TestClient[Any, Any]) -> None:
    assert [model.id async for model in sdk.models.list()] == ["smollm2"]
    assert (await client.get("/health")).status == 200


async def test_an_unknown_model_and_a_prompt_too_long_are_refused(sdk: AsyncOpenAI) -> None:
    with pytest.raises(NotFoundError, match="gpt-9"):
        await sdk.chat.completions.create(**{**BODY, "model": "gpt-9"})
    with pytest.raises(BadRequestError, match="maximum context length"):
        await sdk.chat.completions.create(**{**BODY, "max_tokens": 10**6})


async def test_what_is_no_request_gets_an_openai_error(client: TestClient[Any, Any]) -> None:
    for body in (b"{", b"[]", b'{"model": "smollm2"}'):
        response = await client.post("/v1/chat/completions", data=body)
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "BadRequestError"
    missing = await client.get("/v1/unknown")
    assert (missing.status, (await missing.json())["error"]["code"]) == (404, 404)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1), ("temperature", True), ("top_p", 0), ("top_k", -2), ("min_p", 2),
        ("seed", 1 << 63), ("n", 0),
        ("max_tokens", "many"), ("messages", []), ("stop", [1]), ("presence_penalty", 0.5), ("logit_bias", {"1": 2}),
        ("chat_template_kwargs", {"tokenize": False}), ("stop_token_ids", ["a"]), ("max_tokens", 0),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field):
        parse_request({**BODY, field: value})


def test_defaults_are_off_and_a_seed_of_minus_one_is_none() -> None:
    asked = parse_request({**BODY, "seed": -1, "stop": "x", "top_logprobs": 3})
    assert asked.sampling == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    assert (asked.seed, asked.n, asked.stop, asked.top_logprobs) == (None, 1, ["x"], 0)


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = parse_request({**BODY, "messages": [{"role": "user", "content": parts}]})
    assert asked.messages[0]["content"] == "a\nb"
    with pytest.raises(RequestError, match="text parts"):
        parse_request({**BODY, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]})
