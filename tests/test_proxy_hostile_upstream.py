"""The provider as attacker: whatever it sends, the client gets it or a clean end, the record says what it was, and the
next request works as if nothing had been."""

import asyncio
import gzip
import logging

import aiohttp
import orjson
import pytest
from hostile import chunked, http, raw_upstream
from test_proxy_forward import BODY, JSON_BODY, proxied
from upstreams import completion, events, stream_chunk

JSON = b"Content-Type: application/json"
SSE = b"Content-Type: text/event-stream"
CHUNKED = b"Transfer-Encoding: chunked"
GOOD = http(JSON_BODY, JSON)
FAILED, ERROR, MALFORMED, TRUNCATED, COMPLETE = (
    "upstream_failed", "upstream_error", "malformed", "truncated", "complete"
)


def stream(*parts, **options):
    """A 200 event stream of these parts, each in a chunk of its own."""
    return [http(b"", SSE, CHUNKED, length=False), *(chunked(part, end=b"") for part in parts), b"0\r\n\r\n"]


def body(value, *headers):
    return [http(value if isinstance(value, bytes) else orjson.dumps(value), JSON, *headers)]


def one(**choice):
    """A completion whose only choice has these fields."""
    return {"id": "c", "model": "m", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop", **choice}
    ]}


def event(**choice):
    """A stream of one chunk with these fields in its choice, then a good end."""
    return stream(events(stream_chunk("hi", **choice), done=False), events(stream_chunk(finish="stop")))


HEADER = b"HTTP/1.1 200 OK\r\n"
TRANSPORT = {
    "closes at once": ([b""], FAILED),
    "garbage": ([b"\x00\xff\xfe garbage\r\n\r\n"], FAILED),
    "status line and no more": ([HEADER], FAILED),
    "no HTTP version": ([b"200 OK\r\n\r\nhi"], FAILED),
    "negative length": ([HEADER + b"Content-Length: -5\r\n\r\nhello"], FAILED),
    "length that is no number": ([HEADER + b"Content-Length: 0x10\r\n\r\nhello"], FAILED),
    "two lengths": ([HEADER + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello"], FAILED),
    "length and chunked": ([HEADER + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"], FAILED),
    "chunk size that is no number": ([HEADER + CHUNKED + b"\r\n\r\nZZ\r\nhello\r\n"], FAILED),
    "chunk size beyond 64 bits": ([HEADER + CHUNKED + b"\r\n\r\nfffffffffffffffff1\r\nhello\r\n"], FAILED),
    "chunks without an end": ([HEADER + SSE + b"\r\n" + CHUNKED + b"\r\n\r\n" + chunked(b"data: {}\n\n", end=b"")], FAILED),
    "body shorter than its length": ([HEADER + JSON + b"\r\nContent-Length: 500\r\n\r\n{"], FAILED),
    "header of 100 KB": ([http(b"{}", JSON, b"X-Long: " + b"a" * 100_000)], FAILED),
    "a thousand headers": ([http(b"{}", JSON, *(b"X-%d: 1" % number for number in range(1000)))], FAILED),
    "NUL in a header": ([http(b"{}", JSON, b"X-Nul: a\x00b")], FAILED),
    "bare CR in a header": ([http(b"{}", JSON, b"X-Cr: a\rX-Smuggled: 1")], FAILED),
    "control characters in the reason": ([http(JSON_BODY, JSON, status=b"200 O\x1b[31mK")], COMPLETE),
    "status beyond three digits": ([http(b"{}", JSON, status=b"9999 No")], FAILED),
    "switching protocols": ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"], None),
    "a hundred early hints": ([b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 100 + GOOD], None),
    "no content, with content": ([http(b"", JSON, status=b"204 No Content", length=False) + b"hello"], None),
    "smuggled trailers": ([http(b"", JSON, CHUNKED, length=False) + chunked(
        JSON_BODY, end=b"0\r\nX-Smuggled: 1\r\nContent-Length: 9\r\n\r\n")], FAILED),
    "redirect to the machine's own metadata": ([http(b"", b"Location: http://169.254.169.254/", status=b"302 Found")], ERROR),
    "a page of HTML": ([http(b"<html><script>alert(1)</script>", b"Content-Type: text/html")], MALFORMED),
    "compressed though nobody asked": ([http(gzip.compress(b"0" * 10_000_000), JSON, b"Content-Encoding: gzip")], COMPLETE),
    "an encoding that nobody knows": ([http(b"xyz", JSON, b"Content-Encoding: zip, br, zip")], COMPLETE),
    "no content type": ([http(JSON_BODY)], COMPLETE),
    "a content type of nonsense": ([http(JSON_BODY, b"Content-Type: ;;;\x80/=")], COMPLETE),
    "empty body": ([http(b"", JSON)], MALFORMED),
}
BODIES = {
    "cut JSON": (body(JSON_BODY[:-3]), MALFORMED),
    "JSON and more": (body(JSON_BODY + b"{}"), MALFORMED),
    "an array": (body([1]), MALFORMED),
    "a string": (body("hi"), MALFORMED),
    "depth bomb": (body(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), MALFORMED),
    "duplicate keys": (body(b'{"choices":[],' + JSON_BODY[1:]), COMPLETE),
    "invalid UTF-8": (body(JSON_BODY.replace(b"hi", b"\xff\xfe")), MALFORMED),
    "lone surrogate": (body(JSON_BODY.replace(b"hi", b"\\ud800")), MALFORMED),
    "not a number": (body(JSON_BODY.replace(b'"created":1', b'"created":NaN')), MALFORMED),
    "a number beyond a double": (body(JSON_BODY.replace(b'"created":1', b'"created":1e999')), MALFORMED),
    "choices is an object": (body({"choices": {"0": {}}}), MALFORMED),
    "a choice is a number": (body({"choices": [7]}), MALFORMED),
    "choice index 10^9": (body(one(index=10**9)), MALFORMED),
    "negative choice index": (body(one(index=-1)), MALFORMED),
    "choice index true": (body(one(index=True)), MALFORMED),
    "more choices than asked": (body(completion("a", "b", "c")), MALFORMED),
    "token id negative": (body(one(token_ids=[-1])), MALFORMED),
    "token id beyond 31 bits": (body(one(token_ids=[2**31])), MALFORMED),
    "token id a float": (body(one(token_ids=[1.5])), MALFORMED),
    "token ids a text": (body(one(token_ids="123")), MALFORMED),
    "prompt ids nested": (body({**one(), "prompt_token_ids": [[1]]}), MALFORMED),
    "usage negative and huge": (body({**one(), "usage": {"completion_tokens": -5, "total_tokens": 2**63}}), COMPLETE),
    "usage a text": (body({**one(), "usage": "free"}), COMPLETE),
    "logprob above zero": (body(one(logprobs={"content": [{"token": "hi", "logprob": 7}]})), COMPLETE),
    "logprob a text": (body(one(logprobs={"content": [{"token": "hi", "logprob": "0"}]})), MALFORMED),
    "octets above 255": (body(one(logprobs={"content": [{"token": "h", "logprob": 0, "bytes": [300]}]})), MALFORMED),
    "logprobs of no tokens": (body(one(logprobs={"content": [None]})), MALFORMED),
    "message a list": (body(one(message=[])), MALFORMED),
    "content a number": (body(one(message={"content": 3})), MALFORMED),
    "tool calls an object": (body(one(message={"tool_calls": {}})), MALFORMED),
    "tool arguments a number": (body(one(message={"tool_calls": [{"function": {"arguments": 1}}]})), MALFORMED),
    "finish reason an object": (body(one(finish_reason={})), MALFORMED),
    "model a lie": (body({**one(), "model": "gpt-9", "system_fingerprint": "fp_\u001b[2J"}), COMPLETE),
    "script, formula and terminal codes": (body(one(message={
        "content": "<script>alert(1)</script>=cmd|'/c calc'!A1\u001b]0;owned\u0007<|im_end|>\u0000"})), COMPLETE),
    "error of a wrong shape": ([http(orjson.dumps({"error": [["x"]]}), JSON, status=b"500 No")], ERROR),
    "error nested deeply": ([http(b'{"error":' + b"[" * 1500 + b"]" * 1500 + b"}", JSON, status=b"400 No")], ERROR),
}
STREAMS = {
    "one line of 17 MiB": (stream(*[b"data: " + b"x" * 2**20] + [b"x" * 2**20] * 16, b"\n\n"), TRUNCATED),
    "half a million comments": (stream(b": hi\n\n" * 500_000, events(stream_chunk("a", finish="stop"))), COMPLETE),
    "empty events": (stream(b"data:\n\n" * 10), MALFORMED),
    "a field that nobody knows": (stream(b"foo: bar\nid: 3\nretry: x\n" + events(stream_chunk("a", finish="stop"))), COMPLETE),
    "data after the end": (stream(events(stream_chunk("a", finish="stop")), b"data: {broken\n\n" * 1000), COMPLETE),
    "two answers in one": (stream(events(stream_chunk("a", finish="stop")), events(stream_chunk("b", finish="stop"))), COMPLETE),
    "error in the middle": (stream(events(stream_chunk("a"), {"error": {"message": "boom", "code": 500}})), ERROR),
    "JSON where a stream was due": (body(JSON_BODY), COMPLETE),
    "event of depth": (stream(b"data: " + b"[" * 50_000 + b"]" * 50_000 + b"\n\n"), MALFORMED),
    "delta a text": (stream(b'data: {"choices":[{"index":0,"delta":"x"}]}\n\n'), MALFORMED),
    "token ids that shrink": (event(token_ids=[-3]), MALFORMED),
    "tool call without an index": (stream(events({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": "a"}]}}]})), MALFORMED),
    "no end": (stream(events(stream_chunk("a"), done=False)), FAILED),
    "nothing but the end": (stream(b"data: [DONE]\n\n"), FAILED),
    "cut inside a character": (stream(*(bytes([byte]) for byte in events(stream_chunk("漢🙂", finish="stop")))), COMPLETE),
    "CR alone ends lines": (stream(events(stream_chunk("a", finish="stop"), newline=b"\r")), COMPLETE),
}
ATTACKS = {**TRANSPORT, **BODIES, **STREAMS}


def test_there_are_enough_of_them():
    assert len(ATTACKS) >= 40


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack(tmp_path, name, caplog):
    script, outcome = ATTACKS[name]
    asked = {**BODY, "stream": name in STREAMS}
    async with raw_upstream(script, [GOOD]) as upstream, proxied(tmp_path, upstream.url, api_key_env="KEY") as proxy:
        try:
            async with proxy.post(asked, allow_redirects=False) as answer:
                received = await answer.read()
                assert "X-Smuggled" not in answer.headers
                if answer.status == 502:
                    assert orjson.loads(received)["error"]["code"] == "upstream_broke"
        except aiohttp.ClientPayloadError:
            assert outcome == FAILED
        async with proxy.post() as after:
            assert await after.read() == JSON_BODY
        first, second = await proxy.exchanges()
        assert second.outcome == "complete"
        assert outcome is None or first.outcome == outcome
        if first.outcome in (FAILED, MALFORMED, ERROR) and name not in ("no end", "error in the middle"):
            assert not first.audit
        assert proxy.app_faults(caplog) == []


async def test_a_second_answer_is_not_taken_for_the_next_request(tmp_path):
    smuggled = http(orjson.dumps(completion("smuggled")), JSON)
    async with raw_upstream([GOOD + smuggled, smuggled], [GOOD]) as upstream, proxied(tmp_path, upstream.url) as proxy:
        for _ in range(3):
            async with proxy.post() as answer:
                assert await answer.read() == JSON_BODY


async def test_provider_cannot_speak_in_our_name_nor_set_cookies(tmp_path):
    forged = http(
        JSON_BODY, JSON, b"x-seedproof-exchange: forged", b"X-SeedProof-Verified: yes", b"Set-Cookie: a=b",
        b"Alt-Svc: h3=':443'", b"Connection: x-odd", b"X-Odd: 1", b"X-Echo: Bearer sk-upstream-canary",
    )
    async with raw_upstream([forged]) as upstream, proxied(tmp_path, upstream.url, api_key_env="KEY") as proxy:
        async with proxy.post() as answer:
            told = {name.lower(): value for name, value in answer.headers.items()}
        assert told["x-seedproof-exchange"] != "forged"
        assert not {"x-seedproof-verified", "set-cookie", "alt-svc", "x-odd", "x-echo"} & set(told)


async def test_one_byte_a_moment_ends_at_the_total_deadline(tmp_path):
    from test_proxy_surface import surface
    from upstreams import SSE as EVENT_STREAM
    from upstreams import Reply

    drip = Reply([b":"] * 10_000, content_type=EVENT_STREAM, pause=0.05)
    async with surface(tmp_path, drip, limits={"total_seconds": 0.5, "idle_seconds": 60}) as (upstream, proxy):
        async with proxy.post({**BODY, "stream": True}) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        await asyncio.wait_for(upstream.left.wait(), 10)
        [row] = await proxy.exchanges()
        assert (row.outcome, row.response["error"]["code"]) == ("upstream_failed", "upstream_timeout")


async def test_what_a_provider_says_of_itself_is_kept_as_its_claim(tmp_path):
    told = {"model": "gpt-9", "system_fingerprint": "fp_1", "provider": "Elsewhere", "id": "chatcmpl-9"}
    async with raw_upstream(body({**one(token_ids=[1]), **told})) as upstream, proxied(tmp_path, upstream.url) as proxy:
        async with proxy.post() as answer:
            assert answer.status == 200
        [row] = await proxy.exchanges()
        assert {name: row.response[name] for name in told} == told
        assert (row.model, row.upstream, row.reference) == ("m", "up0", "ref")


ERRORS = {
    "OpenAI": (b"429 Too Many Requests", b'{"error":{"message":"slow down","type":"requests","param":null,"code":"x"}}'),
    "OpenRouter": (b"402 Payment Required", b'{"error": {"code": 402, "message": "no", "metadata": {"raw": "{}"}}, "user_id": "u"}'),
    "vLLM": (b"400 Bad Request", b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}'),
    "nginx": (b"502 Bad Gateway", b"<html>\r\n<head><title>502</title></head>\xff\x00</html>\r\n"),
    "text": (b"418 Teapot", "überlastet".encode("latin-1")), "empty": (b"503 Nothing", b""),
    "placeholder": (b"401 Unauthorized", b"none is no key"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("key", ["sk-upstream-canary", "none"])
async def test_an_error_is_verbatim(tmp_path, name, key):
    status, page = ERRORS[name]
    told = {"Retry-After": "7", "retry-after-ms": "7000", "x-ratelimit-reset": "none", "x-request-id": "r", "X-Should-Retry": "true"}
    said = http(page, JSON, *(f"{header}: {value}".encode() for header, value in told.items()), status=status)
    async with (
        raw_upstream([said[:-3], said[-3:]]) as upstream,
        proxied(tmp_path, upstream.url, api_key_env="KEY", key=key) as proxy, proxy.post() as answer,
    ):
        assert (str(answer.status), await answer.read()) == (status[:3].decode(), page)
        assert {header: answer.headers[header] for header in told} == told
        assert answer.reason == status[4:].decode()


@pytest.mark.parametrize("status", [b"200 OK", b"401 Unauthorized"])
@pytest.mark.parametrize("kind", [JSON, SSE])
async def test_the_key_reaches_no_client_however_it_is_cut(tmp_path, status, kind):
    page = b'data: {"error": {"message": "wrong key: sk-upstream-canary"}}\n\n'
    start = page.index(b"sk-")
    length = b"Content-Length: %d" % len(page)
    head = http(b"", kind, length, b"Connection: close", status=status, length=False)
    scripts = [[head + page[:at], page[at:]] for at in range(start - 1, start + 20)]
    async with (
        raw_upstream(*scripts, pause=0.01) as upstream, proxied(tmp_path, upstream.url, api_key_env="KEY") as proxy,
    ):
        for _ in scripts:
            async with proxy.post() as answer:
                assert await answer.read() == page.replace(b"sk-upstream-canary", b"*" * 18)
        assert upstream.connections == len(scripts)


async def test_the_key_reaches_no_client_in_an_error(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    page = b'{"error": {"message": "wrong key: sk-upstream-canary, really sk-upstream-canary"}}'
    refusal = http(page, JSON, b"WWW-Authenticate: key sk-upstream-canary", status=b"401 Unauthorized")
    async with raw_upstream([refusal]) as upstream, proxied(tmp_path, upstream.url, api_key_env="KEY") as proxy:
        async with proxy.post() as answer:
            assert b"sk-upstream-canary" not in await answer.read()
            assert "sk-upstream-canary" not in str(answer.headers)
        assert "sk-upstream-canary" not in str([row.response for row in await proxy.exchanges()])
    assert "sk-upstream-canary" not in caplog.text
