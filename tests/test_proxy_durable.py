"""What a client has received in full is on disk; what cannot be kept is counted, or not answered."""

import asyncio
import threading
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest
from journals import records_in, small_disk
from upstreams import SECRET, SSE, Reply, completion, events, scripted, stream_chunk

from proxy.app import METRICS, RECORDER, make_app, serving
from proxy.config import parse_config
from storage import journal as journal_module

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
WHOLE = Reply([orjson.dumps(completion("hi"))])
PIECES = Reply([b'{"choices": [', b'{"message": {"content": "hi"}, "finish_reason": "stop"}', b"]}"])
STREAM = Reply(
    [events(stream_chunk("a"), stream_chunk("b", finish="stop"), done=False), b"data: [DONE]\n\n"], content_type=SSE
)
UNENDED = Reply([events(stream_chunk("a", finish="stop"), done=False)], content_type=SSE)
BROKEN = Reply([], then="abort")


@asynccontextmanager
async def proxied(tmp_path, reply, journal=None, **more):
    async with scripted(reply) as upstream:
        document = {
            "listen": "127.0.0.1:0", "store": f"sqlite:///{tmp_path / 'test.db'}", "seed": {"secret_env": "SEED"},
            "journal": {"directory": str(tmp_path / "journal"), **(journal or {})},
            "upstreams": [{"name": "up", "base_url": upstream.url, "kind": "vllm", "models": {
                "m": {"reference": "ref", "sampler": "vllm@0.26.0/v2"}}}],
            **more,
        }  # fmt: skip
        config = parse_config(document, {"SEED": SECRET})
        app = make_app(config)
        async with serving(app, config) as address, aiohttp.ClientSession(address) as client:
            yield app, client


class HeldDisk:
    """`fdatasync` that waits for `go`; `reached` is set when it is called."""

    def __init__(self, monkeypatch):
        self.reached, self.go, real = threading.Event(), threading.Event(), journal_module.os.fdatasync

        def held(file):
            self.reached.set()
            assert self.go.wait(20)
            real(file)

        monkeypatch.setattr(journal_module.os, "fdatasync", held)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("reply", [WHOLE, PIECES, STREAM, UNENDED, BROKEN])
async def test_the_last_bytes_wait_for_the_disk(tmp_path, monkeypatch, reply, path):
    disk = HeldDisk(monkeypatch)
    async with proxied(tmp_path, reply) as (_, client):
        async def ask() -> bytes:
            async with client.post(path, json=BODY) as answer:
                return await answer.read()

        asking = asyncio.create_task(ask())
        assert await asyncio.to_thread(disk.reached.wait, 20)
        # everything that could still arrive without the disk has its chance to
        done, _ = await asyncio.wait([asking], timeout=0.2)
        assert not done
        disk.go.set()
        body = await asking
        assert body == b"".join(reply.chunks) or reply is BROKEN


async def test_other_bytes_of_a_stream_do_not_wait(tmp_path, monkeypatch):
    disk = HeldDisk(monkeypatch)
    held = Reply(STREAM.chunks[:1], content_type=SSE, then="hold")
    async with proxied(tmp_path, held) as (_, client), client.post("/v1/chat/completions", json=BODY) as answer:
        assert await answer.content.readany() == STREAM.chunks[0]
        assert not disk.reached.is_set()
        disk.go.set()


async def test_fast_mode_does_not_wait(tmp_path, monkeypatch):
    disk = HeldDisk(monkeypatch)
    async with proxied(tmp_path, WHOLE, {"mode": "fast"}) as (_, client):
        async with client.post("/v1/chat/completions", json=BODY) as answer:
            assert await answer.read() == WHOLE.chunks[0]
        disk.go.set()


@pytest.mark.parametrize("reply", [WHOLE, STREAM])
async def test_fail_closed_acknowledges_nothing_that_is_not_kept(tmp_path, reply):
    with small_disk(tmp_path / "disk", "128k") as disk:
        journal = {"directory": str(disk), "when_full": "fail_closed", "writer": "apart"}
        async with proxied(tmp_path, reply, journal) as (app, client):
            acknowledged, refused = 0, 0
            padded = {**BODY, "padding": "x" * 20_000}
            for _ in range(12):
                try:
                    async with client.post("/v1/chat/completions", json=padded) as answer:
                        body = await answer.read()
                        acknowledged += body == b"".join(reply.chunks)
                        refused += answer.status == 503 and orjson.loads(body)["error"]["code"] == "journal_full"
                except aiohttp.ClientError:
                    refused += 1
            assert (acknowledged + refused, acknowledged > 0, refused > 3) == (12, True, True)
            assert len(records_in(disk)) >= acknowledged
            async with client.get("/readyz") as answer:
                told = await answer.json()
            assert (answer.status, told["ready"]) == (503, False)
            assert "No space left on device" in told["reasons"][0]
            assert app[RECORDER].lost <= refused


async def test_a_providers_failure_that_cannot_be_recorded_is_refused_too(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        journal = {"directory": str(disk), "when_full": "fail_closed", "writer": "apart"}
        async with proxied(tmp_path, BROKEN, journal, metrics={"listen": "127.0.0.1:0"}) as (app, client):
            told = []
            for _ in range(6):
                async with client.post("/v1/chat/completions", json={**BODY, "padding": "x" * 20_000}) as answer:
                    told.append((answer.status, (await answer.json())["error"]["code"]))
            assert told[0] == (502, "upstream_broke")
            assert told[-1] == (503, "journal_full")
            assert set(told) == {told[0], told[-1]}
            assert app[METRICS].registry.get_sample_value("seedproof_in_flight_requests") == 0


async def test_fail_open_answers_all_the_same(tmp_path):
    with small_disk(tmp_path / "disk", "128k") as disk:
        async with proxied(tmp_path, WHOLE, {"directory": str(disk), "writer": "apart"}) as (app, client):
            padded = {**BODY, "padding": "x" * 20_000}
            for _ in range(12):
                async with client.post("/v1/chat/completions", json=padded) as answer:
                    assert await answer.read() == WHOLE.chunks[0]
            assert app[RECORDER].lost > 3
