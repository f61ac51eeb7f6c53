"""A provider scripted by chunks: a real aiohttp server that says exactly what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer

SSE = "text/event-stream"
SECRET = "a seed secret for tests, quite long"


@dataclass
class Reply:
    """What to answer. `then`: "end" it, "abort" the connection, or "hold" it until the other side leaves ("silent":
    before its headers). With a `gate` only the first chunk goes out until that is set."""

    chunks: Sequence[bytes]
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    then: str = "end"
    gate: asyncio.Event | None = None
    pause: float = 0


@dataclass
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


class ScriptedUpstream:
    """Answers every request with `reply` and keeps what it `received`.

    `reached` is set by the first request, `left` when a held client leaves.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.received: list[Received] = []
        self.reached = asyncio.Event()
        self.left = asyncio.Event()
        self.url = ""

    def choose(self, received: Received) -> Reply:
        """What to answer this request."""
        return self.reply

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.received.append(
            Received(request.method, request.raw_path, dict(request.headers), await request.read())
        )
        self.reached.set()
        reply = self.choose(self.received[-1])
        if reply.then == "abort" and not reply.chunks:
            request.transport.abort()
            return web.Response()
        if reply.then == "silent":
            await self._until_left()
        response = web.StreamResponse(
            status=reply.status, headers={"Content-Type": reply.content_type, **reply.headers}
        )
        await response.prepare(request)
        for number, chunk in enumerate(reply.chunks):
            if number == 1 and reply.gate is not None:
                await reply.gate.wait()
            try:
                await response.write(chunk)
                # so that each chunk is one read of the proxy, as far as a loopback can promise it
                await asyncio.sleep(reply.pause)
            except (ConnectionError, asyncio.CancelledError):
                self.left.set()
                raise
        if reply.then == "abort":
            request.transport.close()
        elif reply.then == "hold":
            await self._until_left()
        return response

    async def _until_left(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.left.set()
            raise


@asynccontextmanager
async def scripted(reply: Reply | ScriptedUpstream) -> AsyncIterator[ScriptedUpstream]:
    upstream = reply if isinstance(reply, ScriptedUpstream) else ScriptedUpstream(reply)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.handle)
    server = TestServer(app)
    await server.start_server(shutdown_timeout=0.1)
    upstream.url = str(server.make_url("/v1"))
    try:
        yield upstream
    finally:
        await server.close()


def events(*values: Any, done: bool = True, newline: bytes = b"\n") -> bytes:
    """A stream of `data` events."""
    lines = [b"data: " + orjson.dumps(value) for value in values] + ([b"data: [DONE]"] if done else [])
    return b"".join(line + newline + newline for line in lines)


def stream_chunk(text: str | None = None, *, index: int = 0, finish: str | None = None, **choice: Any) -> Any:
    """A chat.completion.chunk with one choice."""
    delta = {} if text is None else {"content": text}
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish, **choice}],
    }


def completion(*texts: str, **choice: Any) -> Any:
    """A chat.completion body."""
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [
            {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | choice
            for index, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
