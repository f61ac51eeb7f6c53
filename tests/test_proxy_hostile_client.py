"""The client as attacker: what is no honest HTTP/1.1 gets an error or a closed connection and reaches no provider."""

import asyncio

import orjson
import pytest
from hostile import say
from test_proxy_forward import BODY, JSON_BODY, between
from test_proxy_surface import CLIENT_KEY, surface, team
from upstreams import Reply

PAYLOAD = orjson.dumps(BODY)
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(PAYLOAD)
CHUNK = b"%x\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD)
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

DESYNC = {
    "length and chunked": LINE + HOST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n" + SMUGGLED,
    "two different lengths": LINE + HOST + LENGTH + b"Content-Length: 5\r\n\r\n" + PAYLOAD,
    "lengths in a list": LINE + HOST + b"Content-Length: 5, 50\r\n\r\n" + PAYLOAD,
    "signed length": LINE + HOST + b"Content-Length: +%d\r\n\r\n" % len(PAYLOAD) + PAYLOAD,
    "negative length": LINE + HOST + b"Content-Length: -1\r\n\r\n" + PAYLOAD,
    "length in other digits": LINE + HOST + "Content-Length: ١٠\r\n\r\n".encode() + PAYLOAD,
    "space before the colon": LINE + HOST + b"Content-Length : %d\r\n\r\n" % len(PAYLOAD) + PAYLOAD,
    "chunked twice": LINE + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunked, then something": LINE + HOST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunked misspelt": LINE + HOST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "chunk size that is no number": LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0x0\r\n\r\n",
    "chunk size beyond 64 bits": LINE + HOST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx\r\n0\r\n\r\n",
    "folded header": LINE + HOST + b"X-Folded: a\r\n b\r\n" + LENGTH + b"\r\n" + PAYLOAD,
    "bare LF": b"POST /v1/chat/completions HTTP/1.1\nHost: x\n" + LENGTH.replace(b"\r", b"") + b"\n" + PAYLOAD,
    "bare CR": LINE + HOST + b"X-Cr: a\rContent-Length: 0\r\n" + LENGTH + b"\r\n" + PAYLOAD,
    "NUL in a header": LINE + HOST + b"X-Nul: a\x00b\r\n" + LENGTH + b"\r\n" + PAYLOAD,
    "no colon": LINE + HOST + b"Nonsense\r\n" + LENGTH + b"\r\n" + PAYLOAD,
    "empty header name": LINE + HOST + b": x\r\n" + LENGTH + b"\r\n" + PAYLOAD,
    "unknown version": b"POST /v1/chat/completions HTTP/9.9\r\n" + HOST + LENGTH + b"\r\n" + PAYLOAD,
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "two hosts": LINE + HOST + b"Host: y\r\n" + LENGTH + b"\r\n" + PAYLOAD,
    "header of 100 KB": LINE + HOST + b"X-Long: " + b"a" * 100_000 + b"\r\n" + LENGTH + b"\r\n" + PAYLOAD,
    "a thousand headers": LINE + HOST + b"".join(b"X-%d: 1\r\n" % n for n in range(1000)) + LENGTH + b"\r\n" + PAYLOAD,
    "request line of 100 KB": b"GET /v1/" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "method of nonsense": b"G\x01T /v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("name", DESYNC)
async def test_desync(tmp_path, name, caplog):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        said = await say(proxy.address, DESYNC[name])
        statuses = [int(line.split()[1]) for line in said.split(b"\r\n") if line.startswith(b"HTTP/1.")]
        assert all(400 <= status < 500 for status in statuses), said
        assert upstream.received == []
        assert JSON_BODY not in said
        assert proxy.app_faults(caplog) == []
        async with proxy.post() as after:
            assert after.status == 200


async def test_absolute_form_reaches_only_configured_providers(tmp_path):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        data = b"POST http://169.254.169.254/v1/chat/completions HTTP/1.1\r\n" + HOST + LENGTH + (
            b"Connection: close\r\n\r\n" + PAYLOAD)
        assert b" 200 " in (await say(proxy.address, data)).splitlines()[0]
        assert upstream.received[0].headers["Host"] in upstream.url


async def test_pipelined_requests_are_answered_in_order(tmp_path):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        request = LINE + HOST + LENGTH + b"\r\n" + PAYLOAD
        last = LINE + HOST + LENGTH + b"Connection: close\r\n\r\n" + PAYLOAD
        said = await say(proxy.address, request * 4 + last)
        assert said.count(b"HTTP/1.1 200") == said.count(JSON_BODY) == len(upstream.received) == 5


async def test_old_version_expectation_and_upgrade(tmp_path):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        old = await say(proxy.address, b"POST /v1/chat/completions HTTP/1.0\r\n" + LENGTH + b"\r\n" + PAYLOAD)
        assert old.endswith(JSON_BODY)
        assert b"chunked" not in old
        close = b"Connection: close\r\n\r\n"
        expecting = await say(proxy.address, LINE + HOST + LENGTH + b"Expect: 100-continue\r\n" + close + PAYLOAD)
        assert expecting.startswith(b"HTTP/1.1 100 ")
        assert expecting.endswith(JSON_BODY)
        unknown = await say(proxy.address, LINE + HOST + LENGTH + b"Expect: the-unexpected\r\n" + close + PAYLOAD)
        assert b" 417 " in unknown.splitlines()[0]
        head = await say(proxy.address, b"HEAD /v1/files HTTP/1.1\r\n" + HOST + close)
        assert head.endswith(b"\r\n\r\n")
        assert "Upgrade" not in upstream.received[-1].headers


@pytest.mark.parametrize("data", [LINE + HOST, LINE + HOST + LENGTH + b"\r\n" + PAYLOAD[:5]])
async def test_dripping_connections_do_not_stand_in_the_way(tmp_path, data):
    async with surface(tmp_path, Reply([JSON_BODY]), limits={"body_seconds": 0.5}) as (upstream, proxy):
        host, port = proxy.address.removeprefix("http://").split(":")
        writers = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(200)]
        for writer in writers:
            writer.write(data)
        async with proxy.post() as answer:
            assert await answer.read() == JSON_BODY
        for writer in writers:
            writer.close()
        assert len(upstream.received) == 1


BODIES = {
    "empty": b"", "an array": b"[]", "NaN": b'{"model":"m","messages":[],"temperature":NaN}',
    "huge integer as seed": b'{"model":"m","messages":[],"seed":' + b"9" * 400 + b"}",
    "integer beyond 64 bits": b'{"model":"m","messages":[],"n":18446744073709551617}',
    "n of a million": b'{"model":"m","messages":[],"n":1000000}', "n zero": b'{"model":"m","messages":[],"n":0}',
    "depth": b'{"model":"m","messages":' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    "depth of objects": b'{"model":"m","messages":[],"x":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
    "depth that can be read but not written": b'{"model":"m","messages":[],"x":' + b"[" * 600 + b"]" * 600 + b"}",
    "invalid UTF-8": b'{"model":"\xff","messages":[]}', "lone surrogate": b'{"model":"\\ud800","messages":[]}',
    "messages an object": b'{"model":"m","messages":{}}', "model a list": b'{"model":["m"],"messages":[]}',
    "stream a text": b'{"model":"m","messages":[],"stream":"yes"}',
    "temperature true": b'{"model":"m","messages":[],"temperature":true}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_body(tmp_path, name):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        async with proxy.post(BODIES[name]) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["type"]) == (400, "invalid_request_error")
        assert upstream.received == []


ODD = [
    {"messages": [None, 1, "x", [], {"content": 3}, {"content": [None]}]}, {"modalities": 7}, {"tool_choice": {"a": []}},
    {"response_format": []}, {"provider": "x"}, {"logit_bias": "x"}, {"stop": {"a": 1}}, {"functions": 1}, {"tools": 5},
    {"stream_options": 3}, {"max_tokens": -1}, {"top_k": 2**62}, {"temperature": 1e308}, {"logprobs": [], "top_logprobs": "x"},
]


@pytest.mark.parametrize("extra", ODD)
async def test_odd_fields_are_the_providers_to_judge(tmp_path, extra, caplog):
    async with between(tmp_path, Reply([JSON_BODY])) as (upstream, proxy):
        async with proxy.post({**BODY, **extra}) as answer:
            assert answer.status == 200
        assert len(upstream.received) == len(await proxy.exchanges()) == 1
        assert proxy.app_faults(caplog) == []


async def test_nobody_without_a_key_makes_the_proxy_read_a_body(tmp_path):
    async with surface(tmp_path, Reply([JSON_BODY]), clients=[team()]) as (upstream, proxy):
        data = LINE + HOST + b"Authorization: Bearer wrong\r\nContent-Length: 90000\r\n\r\n"
        said = await asyncio.wait_for(_first_line(proxy.address, data), 5)
        assert b" 401 " in said
        assert CLIENT_KEY.encode() not in said
        assert upstream.received == []


async def _first_line(address, data):
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    line = await reader.readline()
    writer.close()
    return line
