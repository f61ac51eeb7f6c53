"""The handlers: they relay the provider's bytes to the client and feed a copy to the record.

Rules of this file. Nothing is awaited for the record's sake: it is fed and handed over by plain calls, so
neither a slow database nor a cancelled handler can touch an answer. Every exchange that reached an upstream's
door is recorded in the `finally` of `_exchange`. There are no retries: an auditing proxy must show what
happened.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import aiohttp
import orjson
import uuid_utils
from aiohttp import web
from yarl import URL

from proxy import headers, policy, protocol
from proxy.draft import Copy, Draft
from proxy.errors import RequestError, UpstreamError
from proxy.excerpt import MAX_KEPT_BYTES, Excerpt, json_object
from proxy.recorder import Recorder
from proxy.transcript import Transcript, error_object
from proxy.upstreams import Routes, Upstream

logger = logging.getLogger(__name__)

EXCHANGE_HEADER = "x-seedproof-exchange"
FORCED_HEADER = "x-seedproof-forced"
BODY_SECONDS = 120.0
"""aiohttp has no deadline for a body; one that drips in would hold its connection for ever."""

_UPSTREAM_FAULTS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What is sent to the provider, and where."""

    method: str
    url: URL
    body: bytes
    headers: Mapping[str, str]
    own_headers: Mapping[str, str]


class Forwarder:
    """The handlers of all routes. `seed_secret` keys the policy; `session` and `recorder` are the app's."""

    def __init__(
        self, *, session: aiohttp.ClientSession, recorder: Recorder, routes: Routes, seed_secret: bytes
    ) -> None:
        self._session = session
        self._recorder = recorder
        self._routes = routes
        self._secret = seed_secret

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST …/v1/chat/completions: forced, forwarded, recorded, perhaps audited."""
        started = time.monotonic()
        try:
            asked = protocol.parse_chat(await _body(request))
            upstream = self._routes.upstream(request.match_info.get("upstream"), asked.model)
            model = upstream.models.get(asked.model)
            exchange_id = str(uuid_utils.uuid7())
            decision = policy.decide(asked, upstream, model, exchange_id=exchange_id, secret=self._secret)
            body = protocol.serialise(asked, decision.changes)
        except RequestError as error:
            return request_error(error)
        own = {EXCHANGE_HEADER: exchange_id, FORCED_HEADER: decision.header()}
        draft = Draft(
            id=exchange_id, created_at=datetime.now(timezone.utc), upstream=upstream.name,
            endpoint="/v1/chat/completions", model=asked.model, streamed=asked.stream, request=asked.body,
            forced=decision.forced, overridden=decision.overridden, audit=decision.audit,
            unaudited_reason=decision.unaudited_reason, reference=model.reference if model else None,
            sampler=model.sampler if model else None, secrets=_secrets(request, upstream),
        )

        def copy_of(answer: aiohttp.ClientResponse) -> Copy:
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                draft.unaudited_reason = draft.unaudited_reason or "content_encoding"
                return _excerpt(answer, draft)
            is_stream = answer.content_type == "text/event-stream"
            return Transcript(event_stream=is_stream, choices=asked.n)

        call = _call(request, upstream, "/chat/completions", body, own)
        return await self._exchange(request, call, draft, copy_of, started)

    async def passthrough(self, request: web.Request) -> web.StreamResponse:
        """Any other …/v1/… path: forwarded as it is and recorded as unaudited."""
        started = time.monotonic()
        try:
            tail = _tail(request)
            body = await _body(request)
            asked = json_object(body) or {}
            name = asked.get("model") if isinstance(asked.get("model"), str) else None
            upstream = self._routes.passthrough(request.match_info.get("upstream"), name)
        except RequestError as error:
            return request_error(error)
        exchange_id = str(uuid_utils.uuid7())
        draft = Draft(
            id=exchange_id, created_at=datetime.now(timezone.utc), upstream=upstream.name,
            endpoint=f"/v1{tail}", model=name or "", streamed=asked.get("stream") is True,
            request=asked if len(body) <= MAX_KEPT_BYTES else {}, forced={}, overridden={},
            audit=False, unaudited_reason="passthrough", reference=None, sampler=None,
            secrets=_secrets(request, upstream),
        )
        call = _call(request, upstream, tail, body, {EXCHANGE_HEADER: exchange_id})
        return await self._exchange(request, call, draft, lambda answer: _excerpt(answer, draft), started)

    async def models(self, request: web.Request) -> web.Response:
        """GET …/v1/models[/{model}]: what is configured, in OpenAI's shape."""
        try:
            found = self._routes.models(request.match_info.get("upstream"))
        except RequestError as error:
            return request_error(error)
        listed = [
            {"id": model.name, "object": "model", "created": 0, "owned_by": upstream.name}
            for model, upstream in found
        ]
        wanted = request.match_info.get("model")
        if wanted is None:
            return _json({"object": "list", "data": listed})
        for model in listed:
            if model["id"] == wanted:
                return _json(model)
        message = f"model {wanted!r} is not configured"
        return request_error(RequestError(message, status=404, code="model_not_found", param="model"))

    async def _exchange(
        self, request: web.Request, call: _Call, draft: Draft,
        copy_of: Callable[[aiohttp.ClientResponse], Copy], started: float,
    ) -> web.StreamResponse:
        try:
            return await self._relay(request, call, draft, copy_of, started)
        except UpstreamError as error:
            draft.status, draft.broken = error.status, "upstream_failed"
            draft.error = error_object({"message": str(error), "type": "upstream_error", "code": error.code})
            return _upstream_error(error, call.own_headers)
        except asyncio.CancelledError:
            # by the client's leaving (handler_cancellation), or at shutdown, which looks the same to the
            # client
            draft.broken = draft.broken or "client_left"
            raise
        finally:
            self._record(draft, time.monotonic() - started)

    def _record(self, draft: Draft, total_seconds: float) -> None:
        try:
            exchange = draft.finish(total_seconds=total_seconds)
        except Exception:
            # the answer has been given; a fault of the record must not take it back
            logger.exception("exchange %s could not be folded", draft.id)
            self._recorder.lost += 1
        else:
            self._recorder.put(exchange)

    async def _relay(
        self, request: web.Request, call: _Call, draft: Draft,
        copy_of: Callable[[aiohttp.ClientResponse], Copy], started: float,
    ) -> web.StreamResponse:
        answer, first = await self._open(call)
        try:
            draft.first_byte_seconds = time.monotonic() - started
            draft.copy = copy_of(answer)
            draft.status = answer.status
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason,
                headers=headers.to_client(answer.headers, call.own_headers),
            )
            try:
                await response.prepare(request)
                await _pump(answer, first, response, draft.copy)
            except ConnectionResetError:
                draft.broken = "client_left"
            except UpstreamError:
                draft.broken = "upstream_failed"
                _hang_up(request)
            return response
        finally:
            # after the answer's end this is too late to close anything: the connection has gone back to its
            # pool; before it, what the connection still carries must neither be waited for nor be reused
            answer.close()

    async def _open(self, call: _Call) -> tuple[aiohttp.ClientResponse, bytes]:
        """The provider's answer up to its first bytes (none if it is empty); before them, a failure has a
        status."""
        answer = None
        try:
            answer = await self._session.request(
                call.method, call.url, data=call.body or None, headers=call.headers, allow_redirects=False
            )
            return answer, await answer.content.readany()
        except BaseException as error:
            if answer is not None:
                answer.close()
            if isinstance(error, _UPSTREAM_FAULTS):
                raise _explained(error, call.url) from error
            raise


async def not_found(request: web.Request) -> web.Response:
    """Any path outside /v1 and /{upstream}/v1."""
    message = f"no such path: {request.method} {request.path}; the API is under /v1"
    return request_error(RequestError(message, status=404, code="not_found"))


def request_error(error: RequestError) -> web.Response:
    """The client's fault, as OpenAI would say it."""
    body = {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.code}
    return _json({"error": body}, status=error.status)


async def _pump(
    answer: aiohttp.ClientResponse, chunk: bytes, response: web.StreamResponse, copy: Copy
) -> None:
    while chunk:
        copy.feed(chunk)
        await response.write(chunk)
        chunk = await _next(answer)
    try:
        await response.write_eof()
    finally:
        copy.end()


async def _next(answer: aiohttp.ClientResponse) -> bytes:
    try:
        return await answer.content.readany()
    except _UPSTREAM_FAULTS as error:
        message = "the upstream broke off in the middle of its answer"
        raise UpstreamError(message, status=502, code="upstream_broke", reached=True) from error


async def _body(request: web.Request) -> bytes:
    try:
        return await asyncio.wait_for(request.read(), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        message = f"the request body did not arrive within {BODY_SECONDS:.0f} s"
        raise RequestError(message, status=408, code="request_timeout") from error
    except web.HTTPRequestEntityTooLarge as error:
        message = "the request body is larger than limits.request_bytes allows"
        raise RequestError(message, status=413, code="request_too_large") from error


def _call(request: web.Request, upstream: Upstream, tail: str, body: bytes, own: Mapping[str, str]) -> _Call:
    query = request.rel_url.raw_query_string
    url = f"{upstream.base_url}{tail}" + (f"?{query}" if query else "")
    return _Call(
        method=request.method, url=URL(url, encoded=True), body=body, own_headers=own,
        headers=headers.to_upstream(request.headers, api_key=upstream.api_key),
    )


def _tail(request: web.Request) -> str:
    """The path behind /v1, as the client wrote it.

    Raises:
        RequestError: 404, it climbs out of the upstream's base URL.
    """
    tail = "/" + request.rel_url.raw_path.partition("/v1/")[2]
    if ".." in request.match_info["tail"].split("/"):
        raise RequestError("the path must not contain '..'", status=404, code="not_found")
    return tail


def _secrets(request: web.Request, upstream: Upstream) -> tuple[str, ...]:
    own = [] if upstream.api_key is None else [upstream.api_key]
    return (*own, *headers.credentials(request.headers))


def _excerpt(answer: aiohttp.ClientResponse, draft: Draft) -> Excerpt:
    return Excerpt(content_type=answer.content_type, secrets=draft.secrets)


def _hang_up(request: web.Request) -> None:
    # without this aiohttp would end the body properly, and half an answer would look whole
    if request.transport is not None:
        request.transport.close()


def _explained(error: BaseException, url: URL) -> UpstreamError:
    host = f"{url.host}:{url.port}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        text, status, code, reached = "could not be reached in time", 504, "upstream_timeout", False
    elif isinstance(error, asyncio.TimeoutError):
        text, status, code, reached = "did not answer in time", 504, "upstream_timeout", True
    elif isinstance(error, aiohttp.ClientConnectorError):
        text, status, code, reached = "cannot be reached", 502, "upstream_unreachable", False
    else:
        text, status, code, reached = "broke off before it answered", 502, "upstream_broke", True
    return UpstreamError(f"the upstream {host} {text}", status=status, code=code, reached=reached)


def _upstream_error(error: UpstreamError, own_headers: Mapping[str, str]) -> web.Response:
    body = {"message": str(error), "type": "upstream_error", "param": None, "code": error.code}
    # the SDK replays a 5xx on its own: harmless if nothing was sent, a second bill if the provider has worked
    retry = {"x-should-retry": "false"} if error.reached else {}
    return _json({"error": body}, status=error.status, headers={**own_headers, **retry})


def _json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, headers=headers, content_type="application/json"
    )
