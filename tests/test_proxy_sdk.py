"""The official SDK, with nothing changed but its base_url."""

import asyncio

import openai
import pytest
from test_proxy_forward import between, proxied
from upstreams import SSE, Reply, completion, events, stream_chunk

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


@pytest.fixture
def reply():
    import orjson

    body = completion("one", "two")
    body["choices"][1]["message"]["tool_calls"] = [TOOL_CALL]
    return Reply([orjson.dumps(body)])


async def test_async_n_and_tools(tmp_path, reply):
    async with between(tmp_path, reply) as (_, proxy):
        async with openai.AsyncOpenAI(base_url=proxy.address + "/v1", api_key="k") as client:
            answer = await client.chat.completions.create(
                model="m", messages=MESSAGES, n=2, extra_body={"top_k": 3}, tools=[
                    {"type": "function", "function": {"name": "f", "parameters": {}}}
                ],
            )
            assert [choice.message.content for choice in answer.choices] == ["one", "two"]
            assert [model.id async for model in client.models.list()] == ["m"]
        [exchange] = await proxy.exchanges()
        assert exchange.response["choices"][1]["tool_calls"] == [TOOL_CALL]
        assert exchange.forced["top_k"] == 3


def test_sync_client_streams(tmp_path):
    chunks = [events(stream_chunk(text), done=False) for text in ("a", "b")]
    chunks.append(events(stream_chunk(finish="stop")))

    def talk(address):
        with openai.OpenAI(base_url=address + "/up0/v1", api_key="k") as client:
            stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            return [chunk.choices[0].delta.content for chunk in stream]

    async def main():
        async with between(tmp_path, Reply(chunks, content_type=SSE)) as (_, proxy):
            assert await asyncio.to_thread(talk, proxy.address) == ["a", "b", None]
            assert [row.outcome for row in await proxy.exchanges()] == ["complete"]

    asyncio.run(main())


async def test_async_client_that_breaks_off(tmp_path):
    first = events(stream_chunk("a"), done=False)
    async with between(tmp_path, Reply([first], content_type=SSE, then="hold")) as (upstream, proxy):
        async with openai.AsyncOpenAI(base_url=proxy.address + "/v1", api_key="k") as client:
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            async for _ in stream:
                break
            await stream.close()
            await asyncio.wait_for(upstream.left.wait(), 5)
        assert [row.outcome for row in await proxy.exchanges()] == ["client_left"]


async def test_errors_are_the_sdks_own(tmp_path):
    async with (
        proxied(tmp_path, "http://127.0.0.1:1/v1") as proxy,
        openai.AsyncOpenAI(base_url=proxy.address + "/v1", api_key="k", max_retries=0) as client,
    ):
        with pytest.raises(openai.NotFoundError, match="no upstream is configured for model 'x'"):
            await client.chat.completions.create(model="x", messages=MESSAGES)
        with pytest.raises(openai.InternalServerError, match="cannot be reached"):
            await client.chat.completions.create(model="m", messages=MESSAGES)


async def test_billed_failure_is_not_replayed(tmp_path):
    async with between(tmp_path, Reply([], then="abort")) as (upstream, proxy):
        async with openai.AsyncOpenAI(base_url=proxy.address + "/v1", api_key="k") as client:
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="m", messages=MESSAGES)
        assert len(upstream.received) == 1
