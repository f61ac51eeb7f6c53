"""The handlers of all routes: who may ask, what is asked, where it goes, what is forced; then `forward` relays it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import aiohttp
import uuid_utils
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from proxy import headers, policy, protocol
from proxy.clients import Admission, Gate
from proxy.config import ProxyConfig
from proxy.draft import Copy, Draft
from proxy.errors import RequestError
from proxy.excerpt import MAX_KEPT_BYTES, Excerpt, json_object
from proxy.faults import frames
from proxy.forward import Call, Forwarder
from proxy.observation import Observer
from proxy.replies import json_reply, request_error
from proxy.secrets import cleared, holds_secret
from proxy.transcript import Transcript
from proxy.upstreams import Routes, Upstream
from proxy.watch import Watch

logger = logging.getLogger(__name__)

EXCHANGE_HEADER = "x-seedproof-exchange"
FORCED_HEADER = "x-seedproof-forced"
OVERLOADED_SECONDS = 1.0

_BROKEN_BODY = (web.RequestPayloadError, aiohttp.ClientPayloadError, HttpProcessingError)

_Handle = Callable[["_Asked"], Awaitable[web.StreamResponse]]


@dataclass(kw_only=True)
class _Asked:
    """One request on its way in; `held` are the bytes of its body that are counted in `Forwarder.held`."""

    request: web.Request
    started_at: float
    watch: Watch
    admission: Admission
    held: int = 0


class Surface:
    """The API. `reload` puts another configuration into force for the requests to come."""

    def __init__(self, forwarder: Forwarder, observer: Observer, config: ProxyConfig) -> None:
        self._forwarder = forwarder
        self._observer = observer
        self._gate = Gate(())
        self.in_flight = 0
        self.reload(config)

    def reload(self, config: ProxyConfig) -> None:
        """Take upstreams, clients, limits and secret from `config`; running exchanges end as they began."""
        gate = Gate(config.clients)
        gate.carry_over(self._gate)
        self._gate = gate
        self._routes = Routes(config.upstreams)
        self.limits = config.limits
        self._secret = config.seed_secret

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST …/v1/chat/completions: forced, forwarded, recorded, perhaps audited."""
        return await self._handled(request, self._chat)

    async def text(self, request: web.Request) -> web.StreamResponse:
        """POST …/v1/completions: the same."""
        return await self._handled(request, self._text)

    async def passthrough(self, request: web.Request) -> web.StreamResponse:
        """Any other …/v1/… path: forwarded as it is and recorded as unaudited."""
        return await self._handled(request, self._passed)

    async def models(self, request: web.Request) -> web.Response:
        """GET …/v1/models[/{model}]: what is configured and within the client's scope, in OpenAI's shape."""
        try:
            admission = self._admit(request)
            admission.leave()
            found = self._routes.models(request.match_info.get("upstream"))
        except RequestError as error:
            return request_error(error)
        client = admission.client
        listed = [
            {"id": model.name, "object": "model", "created": 0, "owned_by": upstream.name}
            for model, upstream in found if client is None or client.may(upstream.name, model.name)
        ]
        wanted = request.match_info.get("model")
        if wanted is None:
            return json_reply({"object": "list", "data": listed})
        for model in listed:
            if model["id"] == wanted:
                return json_reply(model)
        message = f"model {wanted!r} is not configured"
        return request_error(RequestError(message, status=404, code="model_not_found", param="model"))

    async def _handled(self, request: web.Request, handle: _Handle) -> web.StreamResponse:
        """Admission, deadlines and counts around one request; what it raises becomes an answer."""
        self._observer.began()
        self.in_flight += 1
        watch = Watch(total_seconds=self.limits.total_seconds)
        admission, asked = None, None
        try:
            admission = self._admit(request)
            asked = _Asked(request=request, started_at=time.monotonic(), watch=watch, admission=admission)
            return await handle(asked)
        except RequestError as error:
            return self._refused(error)
        finally:
            watch.stop()
            self.in_flight -= 1
            self._observer.left()
            if asked is not None:
                self._forwarder.held -= asked.held
            if admission is not None:
                admission.leave()

    def _refused(self, error: RequestError) -> web.Response:
        self._observer.refused(error.status, error.code)
        return request_error(error)

    def _admit(self, request: web.Request) -> Admission:
        admission = self._gate.admit(
            request.headers, address=request.remote or "", now=time.monotonic(),
            today=datetime.now(timezone.utc).date() if self._gate.closed else _NO_DAY,
        )
        if self.in_flight > self.limits.in_flight:
            admission.leave()
            raise _overloaded("too many requests are running")
        return admission

    async def _chat(self, asked: _Asked) -> web.StreamResponse:
        return await self._generate(asked, protocol.CHAT)

    async def _text(self, asked: _Asked) -> web.StreamResponse:
        return await self._generate(asked, protocol.TEXT)

    async def _generate(self, asked: _Asked, endpoint: str) -> web.StreamResponse:
        request = asked.request
        body = await self._body(asked)
        ready_at = time.monotonic()
        wanted = protocol.parse(endpoint, body)
        upstream = self._routes.upstream(request.match_info.get("upstream"), wanted.model)
        asked.admission.check(upstream.name, wanted.model)
        model = upstream.models.get(wanted.model)
        exchange_id = str(uuid_utils.uuid7())
        decision = policy.decide(wanted, upstream, model, exchange_id=exchange_id, secret=self._secret)
        refusal = policy.refused(decision, upstream.policy if model is None else model.policy)
        if refusal is not None:
            raise refusal
        call = self._call(
            request, upstream, endpoint.removeprefix("/v1"), protocol.serialise(wanted, decision.changes),
            {EXCHANGE_HEADER: exchange_id, FORCED_HEADER: decision.header()},
        )
        draft = Draft(
            id=exchange_id, created_at=datetime.now(timezone.utc), upstream=upstream.name, endpoint=endpoint,
            model=wanted.model, streamed=wanted.stream, request=wanted.body, forced=decision.forced,
            overridden=decision.overridden, audit=decision.audit, unaudited_reason=decision.unaudited_reason,
            reference=model.reference if model else None, sampler=model.sampler if model else None,
            user_hash=policy.user_hash(wanted.body.get("user"), self._secret),
            secrets=_secrets(request, upstream), started_at=asked.started_at, ready_at=ready_at,
        )
        _clear_request(draft, body)

        def copy_of(answer: aiohttp.ClientResponse) -> Copy:
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                draft.unaudited_reason = draft.unaudited_reason or "content_encoding"
                return Excerpt(content_type=answer.content_type)
            is_stream = answer.content_type == "text/event-stream"
            return Transcript(event_stream=is_stream, choices=wanted.choices, text=endpoint == protocol.TEXT)

        return await self._exchange(asked, call, draft, copy_of)

    async def _passed(self, asked: _Asked) -> web.StreamResponse:
        request = asked.request
        tail = _tail(request)
        body = await self._body(asked)
        ready_at = time.monotonic()
        value = json_object(body) or {}
        name = value.get("model") if isinstance(value.get("model"), str) else None
        upstream = self._routes.passthrough(request.match_info.get("upstream"), name)
        asked.admission.check(upstream.name, name)
        exchange_id = str(uuid_utils.uuid7())
        draft = Draft(
            id=exchange_id, created_at=datetime.now(timezone.utc), upstream=upstream.name,
            endpoint=f"/v1{tail}", model=name or "", streamed=value.get("stream") is True,
            request=value if len(body) <= MAX_KEPT_BYTES else {}, forced={}, overridden={},
            audit=False, unaudited_reason="passthrough", reference=None, sampler=None,
            user_hash=policy.user_hash(value.get("user"), self._secret),
            secrets=_secrets(request, upstream), started_at=asked.started_at, ready_at=ready_at,
        )
        _clear_request(draft, body)
        call = self._call(request, upstream, tail, body, {EXCHANGE_HEADER: exchange_id})
        return await self._exchange(asked, call, draft, lambda answer: Excerpt(content_type=answer.content_type))

    async def _exchange(
        self, asked: _Asked, call: Call, draft: Draft, copy_of: Callable[[aiohttp.ClientResponse], Copy]
    ) -> web.StreamResponse:
        return await self._forwarder.exchange(asked.request, call, draft, copy_of, asked.watch, self.limits)

    async def _body(self, asked: _Asked) -> bytes:
        """The request's whole body, decoded.

        Raises:
            RequestError: 400, 408, 413 or 503.
        """
        request, watch, limits = asked.request, asked.watch, self.limits
        self._hold(asked, request.content_length or 0)
        watch.enter("body", limits.body_seconds)
        parts: list[bytes] = []
        size = 0
        try:
            while chunk := await request.content.readany():
                parts.append(chunk)
                size += len(chunk)
                self._hold(asked, size)
        except asyncio.CancelledError:
            if watch.expired is None:
                self._observer.refused(499, "client_left")
                raise
            watch.survive()
            message = f"the request body did not arrive within {limits.body_seconds:g} s"
            raise RequestError(message, status=408, code="request_timeout") from None
        except _BROKEN_BODY as error:
            raise RequestError("the request body's encoding or framing is broken", code="invalid_body") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _hold(self, asked: _Asked, size: int) -> None:
        """Count a body of (so far) `size` bytes, within the limits of one and of all."""
        if size > self.limits.request_bytes:
            message = "the request body is larger than limits.request_bytes allows"
            raise RequestError(message, status=413, code="request_too_large")
        more = size - asked.held
        if more <= 0:
            return
        if self._forwarder.held + more > self.limits.held_bytes:
            raise _overloaded("too many bytes are held for running requests")
        self._forwarder.held += more
        asked.held = size

    def _call(
        self, request: web.Request, upstream: Upstream, tail: str, body: bytes, own: Mapping[str, str]
    ) -> Call:
        query = request.rel_url.raw_query_string
        url = f"{upstream.base_url}{tail}" + (f"?{query}" if query else "")
        return Call(
            method=request.method, url=URL(url, encoded=True), body=body, own_headers=own, api_key=upstream.api_key,
            headers=headers.to_upstream(
                request.headers, api_key=upstream.api_key, keep_credentials=not self._gate.closed
            ),
        )


_NO_DAY = datetime.min.date()


async def not_found(request: web.Request) -> web.Response:
    """Any path outside /v1 and /{upstream}/v1."""
    message = f"no such path: {request.method} {request.path}; the API is under /v1"
    return request_error(RequestError(message, status=404, code="not_found"))


@web.middleware
async def own_faults(request: web.Request, handler: Any) -> web.StreamResponse:
    """A fault of ours as a 500 in OpenAI's shape, and a log line without anybody's words in it."""
    try:
        response: web.StreamResponse = await handler(request)
    except (web.HTTPException, asyncio.CancelledError, ConnectionError):
        raise
    except Exception as error:
        logger.error("a request failed by a fault of the proxy: %s", frames(error))  # noqa: TRY400
        message = "the proxy failed; its log says where"
        return request_error(RequestError(message, status=500, code="proxy_fault"))
    return response


def _overloaded(why: str) -> RequestError:
    return RequestError(
        f"the proxy is overloaded: {why}; try again", status=503, code="overloaded", retry_after=OVERLOADED_SECONDS
    )


def _clear_request(draft: Draft, body: bytes) -> None:
    """Keep a key that the client wrote into its own request out of the record."""
    if any(secret.encode("utf-8", "surrogateescape") in body for secret in draft.secrets) and holds_secret(
        draft.request, draft.secrets
    ):
        draft.request = cleared(draft.request, draft.secrets)
        draft.forced = cleared(draft.forced, draft.secrets)
        draft.overridden = cleared(draft.overridden, draft.secrets)
        draft.model = cleared(draft.model, draft.secrets)
        draft.unaudited_reason = draft.unaudited_reason or "secret_in_request"


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
