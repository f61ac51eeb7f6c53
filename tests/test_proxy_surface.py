"""Who is admitted, what is refused, and when the proxy gives up: the whole proxy before a scripted provider."""

import asyncio
import gzip
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest
from test_proxy_forward import BODY, JSON_BODY, Proxied, document
from upstreams import SECRET, SSE, Reply, completion, events, scripted, stream_chunk

from proxy.app import CHORES, DATABASE, FORWARDER, SURFACE, drain, make_app, reload, serving
from proxy.clients import compose_key, hash_key
from proxy.config import parse_config
from proxy.observation import Observer
from storage import retention

ENVIRONMENT = {"SEED": SECRET, "KEY": "sk-upstream-canary"}
CLIENT_KEY = compose_key("team", "a" * 64)


class Watching(Observer):
    """Keeps what it is told."""

    def __init__(self):
        self.begun, self.gone, self.seen, self.refusals = 0, 0, [], []

    def began(self):
        self.begun += 1

    def left(self):
        self.gone += 1

    def ended(self, seen):
        self.seen.append(seen)

    def refused(self, status, code):
        self.refusals.append((status, code))


@asynccontextmanager
async def surface(tmp_path, reply, *, limits=None, clients=(), **upstream_options):
    """A scripted provider and the proxy before it; `proxy.watching` is its observer."""
    async with scripted(reply) as upstream:
        config = configured(tmp_path, upstream.url, limits=limits, clients=clients, **upstream_options)
        watching = Watching()
        app = make_app(config, observer=watching)
        async with serving(app, config) as address, aiohttp.ClientSession(auto_decompress=False) as client:
            proxy = Proxied(app, address, client)
            proxy.config, proxy.watching = config, watching
            yield upstream, proxy
        assert app[FORWARDER].held == 0
        assert app[SURFACE].in_flight == 0
        assert watching.begun == watching.gone == len(watching.seen) + len(watching.refusals)


def configured(tmp_path, url, *, limits=None, clients=(), **options):
    written = document(tmp_path, url, **options)
    written["limits"] |= limits or {}
    if clients:
        written["clients"] = list(clients)
    return parse_config(written, ENVIRONMENT)


def team(**options):
    return {"name": "team", "key_sha256": hash_key(CLIENT_KEY), **options}


def bearer(key=CLIENT_KEY):
    return {"Authorization": f"Bearer {key}"}


async def error_of(answer):
    return (answer.status, (await answer.json())["error"]["code"])


# --- text completions -------------------------------------------------------------------------------------------


async def test_text_completion_is_forced_recorded_and_audited(tmp_path):
    choice = {
        "index": 0, "text": " world", "finish_reason": "stop", "token_ids": [5, 6], "prompt_token_ids": [1, 2],
        "logprobs": {"tokens": [" wor", "ld"], "token_logprobs": [-0.5, None], "top_logprobs": [{" wor": -0.5}, None]},
    }
    body = orjson.dumps({"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]})
    async with surface(tmp_path, Reply([body])) as (upstream, proxy):
        async with proxy.post({"model": "m", "prompt": "hello", "seed": 1}, path="/v1/completions") as answer:
            assert await answer.read() == body
        sent = upstream.received[0]
        assert (sent.path, sent.json()["return_token_ids"]) == ("/v1/completions", True)
        [row] = await proxy.exchanges()
        assert (row.endpoint, row.audit, row.outcome) == ("/v1/completions", True, "complete")
        assert row.response["prompt_token_ids"] == [1, 2]
        [recorded] = row.response["choices"]
        assert (recorded["text"], recorded["token_ids"]) == (" world", [5, 6])
        assert recorded["logprobs"][0] == {
            "token": " wor", "logprob": -0.5, "bytes": None,
            "top_logprobs": [{"token": " wor", "logprob": -0.5, "bytes": None}],
        }


async def test_text_stream_folds_every_choice(tmp_path):
    def chunk(index, text, finish=None):
        return {"id": "c", "choices": [{"index": index, "text": text, "finish_reason": finish}]}

    stream = events(chunk(0, "a"), chunk(1, "b"), chunk(1, "d", "length"), chunk(0, "c", "stop"))
    async with surface(tmp_path, Reply([stream], content_type=SSE)) as (_, proxy):
        asked = {"model": "m", "prompt": ["x", "y"], "stream": True}
        async with proxy.post(asked, path="/v1/completions") as answer:
            assert await answer.read() == stream
        [row] = await proxy.exchanges()
        assert [choice["text"] for choice in row.response["choices"]] == ["ac", "bd"]
        assert row.unaudited_reason == "several_prompts"


# --- what cannot be verified ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", {**BODY, "response_format": {"type": "json_object"}}),
    ("/v1/completions", {"model": "m", "prompt": "x", "echo": True}),
    ("/up0/v1/chat/completions", {**BODY, "model": "unlisted"}),
])
async def test_unverifiable_requests_are_forwarded_or_refused_as_configured(tmp_path, path, body):
    async with surface(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        async with proxy.post(body, path=path) as answer:
            assert answer.status == 200
        assert not (await proxy.exchanges())[0].audit
    async with surface(tmp_path, Reply([JSON_BODY]), unverifiable="refuse") as (upstream, proxy):
        async with proxy.post(body, path=path) as answer:
            assert await error_of(answer) == (400, "unverifiable_request")
        assert upstream.received == []


# --- clients ----------------------------------------------------------------------------------------------------


async def test_client_keys_are_needed_and_stay_here(tmp_path):
    async with surface(tmp_path, Reply([JSON_BODY]), clients=[team()]) as (upstream, proxy):
        bodies = []
        for headers in ({}, bearer("wrong"), bearer(CLIENT_KEY + "0"), {"Authorization": f"Basic {CLIENT_KEY}"}):
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
                async with proxy.post(headers=headers, path=path) as answer:
                    assert answer.status == 401
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
                    bodies.append(await answer.read())
        async with proxy.client.get(proxy.address + "/v1/models") as answer:
            bodies.append(await answer.read())
        assert len(set(bodies)) == 1
        assert upstream.received == []
        async with proxy.post(headers=bearer()) as answer:
            assert answer.status == 200
        assert "Authorization" not in upstream.received[0].headers


async def test_client_scope_hides_other_models(tmp_path):
    async with surface(tmp_path, Reply([JSON_BODY]), clients=[team(models=["other"])]) as (upstream, proxy):
        async with proxy.post(headers=bearer()) as answer:
            assert await error_of(answer) == (404, "model_not_found")
        async with proxy.client.get(proxy.address + "/v1/models", headers=bearer()) as answer:
            assert (await answer.json())["data"] == []
        assert upstream.received == []


async def test_client_limits_answer_429_with_the_time_to_wait(tmp_path):
    held = Reply([events(stream_chunk("a"), done=False)], content_type=SSE, then="hold")
    clients = [team(concurrent_requests=1, requests_per_minute=2)]
    async with surface(tmp_path, held, clients=clients) as (upstream, proxy):
        async with proxy.post({**BODY, "stream": True}, headers=bearer()) as answer:
            await answer.content.readany()
            async with proxy.post(headers=bearer()) as second:
                assert await error_of(second) == (429, "rate_limit_exceeded")
                assert second.headers["Retry-After"] == "1"
            answer.close()
        await asyncio.wait_for(upstream.left.wait(), 5)
        await proxy.exchanges()
        upstream.reply = Reply([JSON_BODY])
        async with proxy.post(headers=bearer()) as answer:
            assert answer.status == 200
        async with proxy.post(headers=bearer()) as answer:
            assert answer.status == 429
            assert 0 < int(answer.headers["Retry-After"]) <= 30


# --- deadlines and limits ---------------------------------------------------------------------------------------


async def test_first_byte_deadline_is_a_504_that_forbids_a_retry(tmp_path):
    limits = {"connect_seconds": 0.05, "first_byte_seconds": 0.05}
    async with surface(tmp_path, Reply([], content_type=SSE, then="silent"), limits=limits) as (upstream, proxy):
        async with proxy.post() as answer:
            assert await error_of(answer) == (504, "upstream_timeout")
            assert answer.headers["x-should-retry"] == "false"
        await asyncio.wait_for(upstream.left.wait(), 5)
        [row] = await proxy.exchanges()
        assert (row.outcome, row.status, row.unaudited_reason) == ("upstream_failed", 504, "upstream_failed")


@pytest.mark.parametrize("limits", [{"idle_seconds": 0.5}, {"total_seconds": 1.0}, {"answer_bytes": 200}])
async def test_answer_without_end_is_cut_and_its_prefix_recorded(tmp_path, limits):
    first = events(stream_chunk("a", token_ids=[1]), done=False)
    chunks = [first, events(stream_chunk("b" * 300), done=False)] if "answer_bytes" in limits else [first]
    reply = Reply(chunks, content_type=SSE, then="hold", gate=asyncio.Event())
    async with surface(tmp_path, reply, limits=limits) as (upstream, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            assert await answer.content.readany() == first
            reply.gate.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        await asyncio.wait_for(upstream.left.wait(), 5)
        [row] = await proxy.exchanges()
        assert (row.outcome, row.audit) == ("upstream_failed", True)
        assert row.response["error"]["code"] in {"upstream_timeout", "answer_too_large"}


async def test_client_that_stops_reading_stops_the_provider_and_is_cut_off(tmp_path):
    flood = Reply([events(stream_chunk("x" * 60_000), done=False)] * 400, content_type=SSE, then="hold")
    async with surface(tmp_path, flood, limits={"idle_seconds": 0.3}) as (upstream, proxy):
        host, port = proxy.address.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        body = orjson.dumps({**BODY, "stream": True})
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.wait_for(upstream.left.wait(), 20)
        [row] = await proxy.exchanges()
        assert (row.outcome, row.response["error"]["code"]) == ("client_left", "client_stalled")
        writer.close()


async def test_slow_request_body_is_a_408(tmp_path):
    async with surface(tmp_path, Reply([JSON_BODY]), limits={"body_seconds": 0.2}) as (upstream, proxy):
        async def drip():
            yield b'{"model":'
            await asyncio.Event().wait()

        async with proxy.client.post(proxy.address + "/v1/chat/completions", data=drip()) as answer:
            assert await error_of(answer) == (408, "request_timeout")
        assert upstream.received == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
async def test_compressed_request_body_counts_as_what_it_becomes(tmp_path, path):
    async with surface(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        async with proxy.post(gzip.compress(orjson.dumps(BODY)), path=path, headers=headers) as answer:
            assert answer.status == 200
        assert upstream.received[0].json()["messages"] == BODY["messages"]
        async with proxy.post(gzip.compress(b" " * 10_000_000), path=path, headers=headers) as answer:
            assert await error_of(answer) == (413, "request_too_large")
        async with proxy.post(b"\x1f\x8bnothing", path=path, headers=headers) as answer:
            assert answer.status == 400
        assert len(upstream.received) == 1


@pytest.mark.parametrize("limits", [{"in_flight": 1}, {"held_bytes": 300}])
async def test_overload_is_a_503_that_may_be_retried(tmp_path, limits):
    held = Reply([events(stream_chunk("a"), done=False)], content_type=SSE, then="hold")
    async with surface(tmp_path, held, limits=limits) as (_, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            await answer.content.readany()
            async with proxy.post({**BODY, "user": "x" * 100}) as second:
                assert await error_of(second) == (503, "overloaded")
                assert second.headers["Retry-After"] == "1"
            answer.close()
        await proxy.exchanges()


async def test_records_are_cut_before_memory_runs_out_but_answers_are_not(tmp_path):
    stream = events(*(stream_chunk("x" * 1000) for _ in range(50)), stream_chunk(finish="stop"))
    chunks = [stream[place:place + 2000] for place in range(0, len(stream), 2000)]
    async with surface(tmp_path, Reply(chunks, content_type=SSE), limits={"held_bytes": 20_000}) as (_, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            assert await answer.read() == stream
        [row] = await proxy.exchanges()
        assert (row.outcome, row.audit) == ("truncated", True)


# --- secrets by value -------------------------------------------------------------------------------------------


async def test_a_key_in_an_answer_or_a_prompt_is_not_recorded(tmp_path):
    body = orjson.dumps(completion("my key is sk-upstream-canary", token_ids=[1, 2]))
    headers = bearer("sk-client-canary")
    async with surface(tmp_path, Reply([body]), api_key_env="KEY") as (_, proxy):
        async with proxy.post(headers=headers) as answer:
            assert await answer.read() == body.replace(b"sk-upstream-canary", b"*" * 18)
        prompt = {**BODY, "messages": [{"role": "user", "content": "is sk-client-canary mine?"}]}
        async with proxy.post(prompt, headers=headers) as answer:
            await answer.read()
        first, second = await proxy.exchanges()
        assert first.unaudited_reason == "secret_in_answer"
        assert first.response["choices"][0]["text"] == "my key is [redacted]"
        assert first.response["choices"][0]["token_ids"] is None
        assert second.request["messages"][0]["content"] == "is [redacted] mine?"
        assert second.unaudited_reason == "secret_in_request"


# --- reload, readiness, observation -----------------------------------------------------------------------------


async def test_reload_takes_effect_without_dropping_a_stream(tmp_path):
    rest = asyncio.Event()
    first = events(stream_chunk("a"), done=False)
    reply = Reply([first, events(stream_chunk("b", finish="stop"))], content_type=SSE, gate=rest)
    async with surface(tmp_path, reply) as (upstream, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            assert await answer.content.readany() == first
            new = configured(tmp_path, upstream.url, clients=[team()], audit_rate=0.0)
            in_force = reload(proxy.app, proxy.config, new)
            assert in_force.port == proxy.config.port
            async with proxy.post() as refused:
                assert refused.status == 401
            rest.set()
            assert (await answer.read()).endswith(b"[DONE]\n\n")
        upstream.reply = Reply([JSON_BODY])
        async with proxy.post(headers=bearer()) as answer:
            assert answer.status == 200
        assert [row.unaudited_reason for row in await proxy.exchanges()] == [None, "not_selected"]


async def test_reload_says_what_only_a_restart_changes(tmp_path, caplog):
    async with surface(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        limits = {"connect_seconds": 3, "shutdown_seconds": 4, "in_flight": 5}
        in_force = reload(proxy.app, proxy.config, configured(tmp_path / "other", upstream.url, limits=limits))
        assert "to change store, journal, limits.connect_seconds, limits.shutdown_seconds;" in caplog.text
        assert (in_force.store, in_force.limits.in_flight) == (proxy.config.store, 5)
        assert in_force.limits.shutdown_seconds == proxy.config.limits.shutdown_seconds


async def test_reload_renews_the_rules_of_retention(tmp_path):
    async with surface(tmp_path, Reply([JSON_BODY]), retention={"payload_days": 30}) as (upstream, proxy):
        new = configured(tmp_path, upstream.url, retention={"payload_days": 7, "redact_verified": True})
        reload(proxy.app, proxy.config, new)
        await asyncio.gather(*proxy.app[CHORES])
        async with proxy.app[DATABASE].reading() as session:
            (rule,) = await retention.rules(session)
        assert (rule.payload_days, rule.redact_verified) == (7, True)


async def test_readiness_says_why_not(tmp_path):
    async with surface(tmp_path, Reply([JSON_BODY]), limits={"drain_seconds": 7}) as (_, proxy):
        async with proxy.client.get(proxy.address + "/readyz") as answer:
            assert (answer.status, (await answer.json())["ready"]) == (200, True)
        assert drain(proxy.app) == 7.0
        async with proxy.client.get(proxy.address + "/readyz") as answer:
            assert (answer.status, (await answer.json())["reasons"]) == (503, ["shutting down"])
        async with proxy.post() as answer:
            assert (await answer.read(), answer.headers["Connection"]) == (JSON_BODY, "close")
        assert drain(proxy.app) == 0.0


async def test_observer_is_told_of_each_exchange_and_each_refusal(tmp_path):
    async with surface(tmp_path, Reply([JSON_BODY])) as (_, proxy):
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/odd/path/1"):
            async with proxy.post(path=path) as answer:
                await answer.read()
        async with proxy.post(b"{") as answer:
            assert answer.status == 400
        chat, embeddings, other = proxy.watching.seen
        assert (chat.upstream, chat.model, chat.endpoint, chat.outcome) == (
            "up0", "m", "/v1/chat/completions", "complete"
        )
        assert (embeddings.endpoint, other.endpoint, other.model) == ("/v1/embeddings", "other", None)
        assert 0 < chat.overhead_seconds < chat.total_seconds
        assert 0 < chat.first_byte_seconds <= chat.total_seconds
        assert proxy.watching.refusals == [(400, "invalid_json")]
