"""An OpenAI-compatible server over an injected engine: the provider of demos, calibration and tests.

``seedproof provider`` gives it the verifier side's engine; the server knows only the protocols below.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Protocol

import orjson
from aiohttp import web

from proxy.demo_protocol import (
    ChatRequest,
    Token,
    chunk,
    completion,
    error,
    first_chunk,
    parse_request,
    usage_chunk,
)
from proxy.errors import ListenError, RequestError


class Prompt(Protocol):
    """A rendered conversation; ``token_ids`` is what the provider reports of it."""

    @property
    def token_ids(self) -> Sequence[int]: ...


class Engine(Protocol):
    """What generates the answers."""

    name: str
    fingerprint: str
    max_model_len: int

    def prompt(self, messages: Sequence[dict[str, Any]], **template: Any) -> Any:
        """Render a conversation into a `Prompt`; ValueError where the template refuses it."""

    def token_text(self, token_id: int) -> str:
        """One token alone as text."""

    def generate(
        self,
        prompt: Any,
        *,
        sampling: Mapping[str, Any],
        max_tokens: int,
        seed: int | None,
        n: int,
        stop: Sequence[str],
        stop_token_ids: Sequence[int],
        ignore_eos: bool,
        top_logprobs: int,
    ) -> AsyncGenerator[Any, None]:
        """Yield `Token` after `Token` until every choice has its finish reason."""

    def close(self) -> None:
        """Stop generating."""


ENGINE: web.AppKey[Engine] = web.AppKey("engine")


def create_app(engine: Engine) -> web.Application:
    """The provider's application: chat completions, models, health. Closing it closes the engine."""
    app = web.Application(middlewares=[openai_errors], client_max_size=32 << 20)
    app[ENGINE] = engine
    app.router.add_get("/health", health)
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.on_cleanup.append(close_engine)
    return app


def serve(engine: Engine, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``announce`` gets one line when requests are taken.

    Raises:
        ListenError: the address is in use or not ours.
    """

    def ready(_: str) -> None:
        announce(f"provider: serving {engine.name} on http://{host}:{port}/v1")

    try:
        web.run_app(
            create_app(engine), host=host, port=port, print=ready, handler_cancellation=True, access_log=None
        )
    except OSError as error:
        sentence = f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        raise ListenError(sentence) from error


async def close_engine(app: web.Application) -> None:
    """Stop the engine when the application ends."""
    app[ENGINE].close()


@web.middleware
async def openai_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer every refusal and failure in OpenAI's shape."""
    try:
        response: web.StreamResponse = await handler(request)
    except web.HTTPException as refused:
        kind = "NotFoundError" if refused.status == 404 else "BadRequestError"
        return refusal(f"{request.method} {request.path}: {refused.reason}", kind=kind, code=refused.status)
    except RequestError as wrong:
        kind = "NotFoundError" if wrong.status == 404 else "BadRequestError"
        return refusal(str(wrong), kind=kind, code=wrong.status)
    return response


async def health(_: web.Request) -> web.Response:
    """200 while the server runs."""
    return web.Response()


async def models(request: web.Request) -> web.Response:
    """The one model served."""
    engine = request.app[ENGINE]
    card = {
        "id": engine.name,
        "object": "model",
        "created": 0,
        "owned_by": "seedproof",
        "max_model_len": engine.max_model_len,
    }
    return reply({"object": "list", "data": [card]})


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Generate one answer, whole or streamed."""
    engine = request.app[ENGINE]
    asked = parse_request(body_of(await request.read()))
    if asked.model != engine.name:
        raise RequestError(f"The model `{asked.model}` does not exist.", status=404, code="model_not_found")
    prompt = render(engine, asked)
    room = engine.max_model_len - len(prompt.token_ids)
    if room < (asked.max_tokens or 1):
        raise RequestError(
            f"This model's maximum context length is {engine.max_model_len} tokens; the prompt has "
            f"{len(prompt.token_ids)} and {asked.max_tokens or 1} were asked for",
            code="context_length_exceeded",
        )
    tokens = engine.generate(
        prompt,
        sampling=asked.sampling,
        max_tokens=asked.max_tokens or room,
        seed=asked.seed,
        n=asked.n,
        stop=asked.stop,
        stop_token_ids=asked.stop_token_ids,
        ignore_eos=asked.ignore_eos,
        top_logprobs=asked.top_logprobs,
    )
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": engine.name,
        "system_fingerprint": engine.fingerprint,
    }
    async with contextlib.aclosing(tokens):
        answer = whole if not asked.stream else streamed
        return await answer(request, asked, head, prompt, tokens)


def body_of(raw: bytes) -> Any:
    """The request's JSON."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as broken:
        raise RequestError(f"the body is not JSON: {broken}", code="invalid_json") from broken


def render(engine: Engine, asked: ChatRequest) -> Prompt:
    """The prompt of a request, or a refusal in the template's own words."""
    try:
        prompt: Prompt = engine.prompt(asked.messages, **asked.template)
    except ValueError as wrong:
        raise RequestError(str(wrong), code="invalid_messages") from wrong
    return prompt


async def whole(
    request: web.Request,
    asked: ChatRequest,
    head: Mapping[str, Any],
    prompt: Prompt,
    tokens: AsyncGenerator[Token, None],
) -> web.StreamResponse:
    """The answer in one JSON object."""
    try:
        sampled = [token async for token in tokens]
    except Exception as failed:  # whatever the engine raises, the client gets an error in shape
        return refusal(str(failed), kind="InternalServerError", code=500)
    return reply(completion(asked, head, prompt.token_ids, sampled, request.app[ENGINE].token_text))


async def streamed(
    request: web.Request,
    asked: ChatRequest,
    head: Mapping[str, Any],
    prompt: Prompt,
    tokens: AsyncGenerator[Token, None],
) -> web.StreamResponse:
    """The answer as server-sent events, one per token."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for choice in range(asked.n):
        await send(response, first_chunk(asked, head, prompt.token_ids, choice))
    count = 0
    try:
        async for token in tokens:
            count += 1
            await send(response, chunk(asked, head, token, request.app[ENGINE].token_text))
        if asked.include_usage:
            await send(response, usage_chunk(head, len(prompt.token_ids), count))
    except ConnectionError:
        return response  # the client left; leaving the generator cancels its rows
    except Exception as failed:  # the status is out already: the error goes into the stream
        await send(response, error(str(failed), kind="InternalServerError", code=500))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def send(response: web.StreamResponse, event: Mapping[str, Any]) -> None:
    """Write one server-sent event."""
    await response.write(b"data: " + orjson.dumps(event) + b"\n\n")


def reply(body: Mapping[str, Any], status: int = 200) -> web.Response:
    """A JSON response."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def refusal(message: str, *, kind: str, code: int) -> web.Response:
    """An OpenAI-shaped error response."""
    return reply(error(message, kind=kind, code=code), code)
