"""The whole proxy between a real client and a scripted provider."""

import asyncio
import logging
import random
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest
from sqlalchemy import select
from upstreams import SECRET, SSE, Reply, completion, events, scripted, stream_chunk

from proxy.app import DATABASE, RECORDER, make_app, serving
from proxy.config import parse_config
from storage.models import Exchange, Job

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
JSON_BODY = orjson.dumps(completion("hi", token_ids=[5, 2]))
STREAM = events(
    stream_chunk("Grü"), stream_chunk("ße 🙂 漢字", token_ids=[5, 6]), stream_chunk(finish="stop"), newline=b"\r\n"
)


class Proxied:
    """A running proxy, a client for it, and what it has recorded."""

    def __init__(self, app, address, client):
        self.app, self.address, self.client = app, address, client

    def post(self, body=BODY, path="/v1/chat/completions", **options):
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return self.client.post(self.address + path, data=data, **options)

    @staticmethod
    def app_faults(caplog):
        """Log records of errors, which no provider and no client may cause."""
        return [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]

    async def exchanges(self):
        await self.app[RECORDER].drained()
        async with self.app[DATABASE].reading() as session:
            return list(await session.scalars(select(Exchange).order_by(Exchange.id)))

    async def jobs(self):
        async with self.app[DATABASE].reading() as session:
            return [job.exchange_id for job in await session.scalars(select(Job))]


def document(tmp_path, *urls, **upstream):
    tables = [
        {
            "name": f"up{number}", "base_url": url, "kind": "vllm", "prefix_only": number > 0,
            "sampling": {"temperature": 0.7, "top_p": 0.9},
            "models": {"m": {"reference": "ref", "sampler": "vllm@0.26.0/v2"}}, **upstream,
        }
        for number, url in enumerate(urls)
    ]
    return {
        "listen": "127.0.0.1:0", "store": f"sqlite:///{tmp_path / 'test.db'}", "upstreams": tables,
        "seed": {"secret_env": "SEED"}, "limits": {"shutdown_seconds": 0.2, "request_bytes": 100_000},
    }


@asynccontextmanager
async def proxied(tmp_path, *urls, key="sk-upstream-canary", **upstream):
    config = parse_config(document(tmp_path, *urls, **upstream), {"SEED": SECRET, "KEY": key})
    app = make_app(config)
    async with serving(app, config) as address, aiohttp.ClientSession(auto_decompress=False) as client:
        yield Proxied(app, address, client)


@asynccontextmanager
async def between(tmp_path, reply, **options):
    async with scripted(reply) as upstream, proxied(tmp_path, upstream.url, **options) as proxy:
        yield upstream, proxy


def cut(stream, pieces):
    edges = sorted(random.Random(pieces).sample(range(1, len(stream)), pieces - 1))
    return [stream[a:b] for a, b in zip([0, *edges], [*edges, len(stream)], strict=True)]


@pytest.mark.parametrize("audit_rate", [0.0, 1.0])
@pytest.mark.parametrize("stream", [
    STREAM, b"\xef\xbb\xbf" + STREAM.replace(b"\r\n", b"\r"), b": hi\n\n" + STREAM + b"data: after the end\n",
    b"no event at all \xff\x00", events({"error": {"message": "boom"}}),
])
@pytest.mark.parametrize("pieces", [1, 9, 0])
async def test_stream_arrives_byte_for_byte(tmp_path, audit_rate, stream, pieces):
    chunks = cut(stream, pieces) if pieces and len(stream) > pieces else [bytes([byte]) for byte in stream]
    async with between(tmp_path, Reply(chunks, content_type=SSE), audit_rate=audit_rate) as (_, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            assert answer.status == 200
            assert await answer.read() == stream
            assert answer.content_type == SSE
        assert len(await proxy.exchanges()) == 1


async def test_json_arrives_byte_for_byte_and_is_recorded_with_its_job(tmp_path):
    async with between(tmp_path, Reply([JSON_BODY[:7], JSON_BODY[7:]])) as (upstream, proxy):
        async with proxy.post({**BODY, "temperature": 2, "seed": 3, "odd": {"kept": True}}) as answer:
            assert await answer.read() == JSON_BODY
            exchange_id = answer.headers["x-seedproof-exchange"]
            forced = answer.headers["x-seedproof-forced"]
        [exchange] = await proxy.exchanges()
        sent = upstream.received[0].json()
        assert forced.startswith("seed, temperature=0.7, top_p=0.9, top_k=-1")
        assert str(sent["seed"]) not in forced
        assert sent["odd"] == {"kept": True}
        assert sent["return_token_ids"] is True
        assert exchange.id == exchange_id
        assert exchange.forced["seed"] == sent["seed"]
        assert exchange.overridden == {"temperature": 2, "seed": 3}
        assert exchange.request["temperature"] == 2
        assert exchange.response["choices"][0]["token_ids"] == [5, 2]
        assert (exchange.outcome, exchange.status, exchange.reference) == ("complete", 200, "ref")
        assert await proxy.jobs() == [exchange_id]


async def test_stream_is_folded_and_first_chunk_does_not_wait_for_the_rest(tmp_path):
    first = events(stream_chunk("a", token_ids=[1]), done=False)
    async with between(tmp_path, Reply([first], content_type=SSE, then="hold")) as (upstream, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            assert await answer.content.readany() == first
            answer.close()
        # the provider notices that nobody listens any more
        await asyncio.wait_for(upstream.left.wait(), 5)
        [exchange] = await proxy.exchanges()
        assert exchange.outcome == "client_left"
        assert exchange.audit
        assert exchange.response["choices"][0]["token_ids"] == [1]
        assert await proxy.jobs() == [exchange.id]


async def test_client_that_leaves_before_the_first_byte(tmp_path):
    async with between(tmp_path, Reply([], content_type=SSE, then="hold")) as (upstream, proxy):
        task = asyncio.ensure_future(proxy.post(BODY).__aenter__())
        await asyncio.wait_for(upstream.reached.wait(), 5)
        task.cancel()
        await asyncio.wait_for(upstream.left.wait(), 5)
        [exchange] = await proxy.exchanges()
        assert (exchange.outcome, exchange.status) == ("client_left", 499)
        assert exchange.unaudited_reason == "client_left"


async def test_upstream_that_dies_mid_stream(tmp_path):
    first = events(stream_chunk("a", token_ids=[1]), done=False)
    async with between(tmp_path, Reply([first], content_type=SSE, then="abort")) as (_, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            assert await answer.content.readany() == first
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.read()
        [exchange] = await proxy.exchanges()
        assert (exchange.outcome, exchange.audit) == ("upstream_failed", True)


async def test_upstream_that_dies_before_its_answer(tmp_path):
    async with between(tmp_path, Reply([], then="abort")) as (_, proxy):
        async with proxy.post() as answer:
            assert answer.status == 502
            assert answer.headers["x-should-retry"] == "false"
            assert (await answer.json())["error"]["code"] == "upstream_broke"
        [exchange] = await proxy.exchanges()
        assert (exchange.outcome, exchange.unaudited_reason) == ("upstream_failed", "upstream_failed")
        assert exchange.response["error"]["code"] == "upstream_broke"


async def test_unreachable_upstream(tmp_path):
    async with proxied(tmp_path, "http://127.0.0.1:1/v1") as proxy:
        async with proxy.post() as answer:
            assert answer.status == 502
            assert "x-should-retry" not in answer.headers
            assert (await answer.json())["error"]["code"] == "upstream_unreachable"
            assert "x-seedproof-exchange" in answer.headers
        [exchange] = await proxy.exchanges()
        assert (exchange.status, exchange.outcome, exchange.audit) == (502, "upstream_failed", False)


async def test_provider_error_passes_and_is_recorded(tmp_path):
    body = b'{"error": {"message": "bad key sk-upstream-canary", "code": 401}}'
    reply = Reply([body], status=401, headers={"x-request-id": "r1", "Set-Cookie": "a=b"})
    async with between(tmp_path, reply, api_key_env="KEY") as (_, proxy):
        async with proxy.post() as answer:
            told = body.replace(b"sk-upstream-canary", b"*" * 18)
            assert (answer.status, await answer.read()) == (401, told)
            assert answer.headers["x-request-id"] == "r1"
            assert "Set-Cookie" not in answer.headers
        [exchange] = await proxy.exchanges()
        assert (exchange.outcome, exchange.unaudited_reason) == ("upstream_error", "upstream_error")
        assert exchange.response["error"]["message"] == "bad key [redacted]"


async def test_secrets_stay_out_of_rows_and_logs(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    headers = {"Authorization": "Bearer sk-client-canary", "Cookie": "c=cookie-canary", "api-key": "other-canary"}
    echo = orjson.dumps({"error": {"message": "Bearer sk-client-canary sk-upstream-canary other-canary"}})
    for reply in (Reply([echo], status=400), Reply([JSON_BODY]), Reply([], then="abort")):
        async with between(tmp_path, reply, api_key_env="KEY") as (upstream, proxy):
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                async with proxy.post(path=path, headers=headers) as answer:
                    await answer.read()
            sent = upstream.received[0].headers
            assert sent["Authorization"] == "Bearer sk-upstream-canary"
            assert "canary" not in "".join(value for name, value in sent.items() if name != "Authorization")
            assert len(await proxy.exchanges()) >= 2
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for canary in ("sk-client-canary", "sk-upstream-canary", "other-canary", "cookie-canary", SECRET):
        assert canary.encode() not in stored
        assert canary not in caplog.text


async def test_headers_to_the_provider_without_an_own_key(tmp_path):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        headers = {"Authorization": "Bearer c", "Connection": "x-hop", "x-hop": "1", "x-stay": "2", "Cookie": "c=1",
                   "User-Agent": "OpenAI/Python 3.54.0"}
        async with proxy.post(headers=headers) as answer:
            await answer.read()
        sent = upstream.received[0].headers
        assert (sent["Authorization"], sent["x-stay"], sent["Accept-Encoding"]) == ("Bearer c", "2", "identity")
        assert sent["User-Agent"] == "OpenAI/Python 3.54.0"  # a provider sees who asks, and no auditor
        assert "seedproof" not in str(sent).lower()
        assert "x-hop" not in sent
        assert "Cookie" not in sent


async def test_encoded_answer_passes_and_is_not_audited(tmp_path):
    reply = Reply([b"\x1f\x8bnot really"], headers={"Content-Encoding": "gzip"})
    async with between(tmp_path, reply) as (_, proxy):
        async with proxy.post() as answer:
            assert await answer.read() == b"\x1f\x8bnot really"
            assert answer.headers["Content-Encoding"] == "gzip"
        [exchange] = await proxy.exchanges()
        assert (exchange.unaudited_reason, exchange.outcome) == ("content_encoding", "complete")


async def test_redirect_is_not_followed(tmp_path):
    async with between(tmp_path, Reply([b""], status=302, headers={"Location": "http://127.0.0.1:1/"})) as (_, proxy):
        async with proxy.post(allow_redirects=False) as answer:
            assert answer.status == 302
        assert [row.outcome for row in await proxy.exchanges()] == ["upstream_error"]


async def test_answer_that_just_stops_is_not_complete(tmp_path):
    stream = events(stream_chunk("a"), done=False)
    async with between(tmp_path, Reply([stream], content_type=SSE)) as (_, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            assert await answer.read() == stream
        assert [row.outcome for row in await proxy.exchanges()] == ["upstream_failed"]


@pytest.mark.parametrize(("body", "status", "code"), [
    (b"{", 400, "invalid_json"), (b"[]", 400, "invalid_json"), ({"messages": []}, 400, "invalid_type"),
    ({**BODY, "model": "unknown"}, 404, "model_not_found"), ({**BODY, "temperature": "hot"}, 400, "invalid_type"),
    ({**BODY, "n": 129}, 400, "invalid_value"),
    (b'{"model": "m", "messages": [], "temperature": NaN}', 400, "invalid_json"),
    (b'{"model":"m","messages":[' + b"[" * 300 + b"]" * 300 + b"]}", 400, "invalid_json"),
    (b" " * 100_001, 413, "request_too_large"),
])
async def test_request_that_cannot_be_forwarded(tmp_path, body, status, code):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        async with proxy.post(body) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
        assert upstream.received == []


async def test_duplicate_seed_reaches_the_provider_once(tmp_path):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        async with proxy.post(b'{"seed":1,"model":"m","messages":[],"seed":2,"big":18446744073709551616}') as answer:
            await answer.read()
        assert upstream.received[0].body.count(b'"seed"') == 1


async def test_prefix_chooses_the_upstream(tmp_path):
    async with scripted(Reply([JSON_BODY])) as one, scripted(Reply([JSON_BODY])) as two:
        async with proxied(tmp_path, one.url, two.url) as proxy:
            for path in ("/v1/chat/completions", "/up1/v1/chat/completions"):
                async with proxy.post(path=path) as answer:
                    assert answer.status == 200
            async with proxy.post(path="/up2/v1/chat/completions") as answer:
                assert (await answer.json())["error"]["code"] == "upstream_not_found"
            async with proxy.post({**BODY, "model": "other"}, path="/up1/v1/chat/completions") as answer:
                assert answer.headers["x-seedproof-forced"] == ""
            rows = await proxy.exchanges()
        assert [(row.upstream, row.unaudited_reason) for row in rows] == [
            ("up0", None), ("up1", None), ("up1", "model_not_configured"),
        ]
        assert two.received[0].path == "/v1/chat/completions"
        assert two.received[1].json() == {**BODY, "model": "other"}


async def test_models(tmp_path):
    async with proxied(tmp_path, "http://127.0.0.1:1/v1") as proxy:
        async with proxy.client.get(proxy.address + "/v1/models") as answer:
            assert (await answer.json())["data"] == [
                {"id": "m", "object": "model", "created": 0, "owned_by": "up0"}
            ]
        async with proxy.client.get(proxy.address + "/up0/v1/models/m") as answer:
            assert (await answer.json())["id"] == "m"
        async with proxy.client.get(proxy.address + "/v1/models/x") as answer:
            assert answer.status == 404
        async with proxy.client.get(proxy.address + "/nothing") as answer:
            assert (await answer.json())["error"]["code"] == "not_found"


async def test_other_paths_pass_unaudited(tmp_path):
    async with between(tmp_path, Reply([b'{"data": []}'])) as (upstream, proxy):
        async with proxy.post({"input": "x" * 20, "model": "e"}, path="/v1/embeddings?a=%26") as answer:
            assert await answer.read() == b'{"data": []}'
        async with proxy.client.get(proxy.address + "/v1/files/a%2Fb") as answer:
            assert answer.status == 200
        async with proxy.post(b"x" * 70_000, path="/v1/audio") as answer:
            assert answer.status == 200
        rows = await proxy.exchanges()
        assert [received.path for received in upstream.received] == [
            "/v1/embeddings?a=%26", "/v1/files/a%2Fb", "/v1/audio",
        ]
        assert [received.method for received in upstream.received] == ["POST", "GET", "POST"]
        assert [(row.endpoint, row.unaudited_reason, row.outcome) for row in rows] == [
            ("/v1/embeddings", "passthrough", "complete"), ("/v1/files/a%2Fb", "passthrough", "complete"),
            ("/v1/audio", "passthrough", "complete"),
        ]
        assert rows[0].response["body"] == {"data": []}
        assert rows[2].request == {}
        assert await proxy.jobs() == []


async def test_path_cannot_climb_out_of_the_base_url(tmp_path):
    async with between(tmp_path, Reply([b"{}"])) as (upstream, proxy):
        host, port = proxy.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/%2e%2e/admin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 404 " in (await reader.read()).splitlines()[0]
        writer.close()
        await writer.wait_closed()
        assert upstream.received == []


async def test_shutdown_records_what_runs(tmp_path):
    first = events(stream_chunk("a", token_ids=[1]), done=False)
    async with between(tmp_path, Reply([first], content_type=SSE, then="hold")) as (_, proxy):
        answer = await proxy.post({**BODY, "stream": True})
        assert await answer.content.readany() == first
        recorder = proxy.app[RECORDER]
    answer.close()
    assert (recorder.recorded, recorder.lost) == (1, 0)
