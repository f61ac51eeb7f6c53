"""The relay: the provider's bytes to the client, untouched and as they come, and a copy to the record.

Rules of this file. Only the last bytes of an answer wait for the record, and only for the journal's sync (`strict`,
see `proxy.recorder`); all others go on as they come, and the database is never waited for. Every exchange that
reached an upstream's door is recorded, at the latest in the `finally` of `exchange`. There are no retries: an
auditing proxy must show what happened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from yarl import URL

from proxy import headers
from proxy.draft import Copy, Draft
from proxy.entry import Entry
from proxy.errors import RequestError, UpstreamError
from proxy.limits import Limits
from proxy.observation import Observer
from proxy.recorder import Recorder
from proxy.replies import upstream_error
from proxy.secrets import Mask
from proxy.transcript import error_object
from proxy.watch import Watch
from storage.errors import JournalFull

_UPSTREAM_FAULTS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
_EXPIRED = {
    "first_byte": "the upstream did not answer in time",
    "idle": "the upstream paused too long in the middle of its answer",
    "client": "the client stopped reading",
    "total": "the answer took longer than limits.total_seconds allows",
}

CopyOf = Callable[[aiohttp.ClientResponse], Copy]


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is sent to the provider, and where; `own_headers` go to the client. `api_key` never does: where a provider
    quotes it (the key that it refuses, say), the client reads asterisks."""

    method: str
    url: URL
    body: bytes
    headers: Mapping[str, str]
    own_headers: Mapping[str, str]
    api_key: str | None = None


class Forwarder:
    """Relays exchanges; `session`, `recorder` and `observer` are the app's.

    `held` counts the bytes that running exchanges keep in memory. `draining` says that the process is about to end,
    `ends_at` (monotonic seconds) when it cuts the answers that still run.
    """

    def __init__(self, *, session: aiohttp.ClientSession, recorder: Recorder, observer: Observer) -> None:
        self._session = session
        self._recorder = recorder
        self._observer = observer
        self.held = 0
        self.draining = False
        self.ends_at: float | None = None

    async def exchange(
        self, request: web.Request, call: Call, draft: Draft, copy_of: CopyOf, watch: Watch, limits: Limits
    ) -> web.StreamResponse:
        """Call the provider and relay its answer; whatever happens, the exchange is recorded once.

        Raises:
            RequestError: 503, it could not be recorded, and the configuration refuses unrecorded answers.
        """
        if not self._recorder.accepting:
            raise _not_recordable()
        entry = Entry(draft, recorder=self._recorder, observer=self._observer)
        try:
            return await self._relay(request, call, draft, copy_of, entry, watch, limits)
        except UpstreamError as error:
            _failed(draft, error)
            await _recorded(entry)
            return upstream_error(error, call.own_headers, draft.id)
        except asyncio.CancelledError:
            if watch.expired is None:
                # by the client's leaving (handler_cancellation), or at shutdown, which looks the same to the client
                draft.broken = draft.broken or "client_left"
                if self.ends_at is not None and time.monotonic() >= self.ends_at:
                    draft.error = error_object({"message": "the proxy was shut down", "code": "proxy_shutdown"})
                raise
            watch.survive()
            return _out_of_time(request, call, draft, watch)
        except JournalFull:
            raise _not_recordable() from None
        finally:
            entry.put()

    async def _relay(
        self, request: web.Request, call: Call, draft: Draft, copy_of: CopyOf, entry: Entry, watch: Watch,
        limits: Limits,
    ) -> web.StreamResponse:
        watch.enter("first_byte", limits.connect_seconds + limits.first_byte_seconds)
        draft.called_at = time.monotonic()
        answer, first = await self._open(call)
        try:
            draft.first_byte_at = time.monotonic()
            draft.copy = copy = copy_of(answer)
            draft.status = answer.status
            head = headers.to_client(answer.headers, call.own_headers, secret=call.api_key)
            whole = bool(first) and answer.content.at_eof()
            response: web.StreamResponse
            reason = answer.reason if (answer.reason or "").isprintable() else None
            if whole:
                told = _masked(first, call.api_key)
                response = web.Response(status=answer.status, reason=reason, headers=head, body=told)
            else:
                response = web.StreamResponse(status=answer.status, reason=reason, headers=head)
            if self.draining:
                response.force_close()
            try:
                if whole:
                    await _deliver(request, first, response, copy, entry)
                else:
                    await response.prepare(request)
                    await self._pump(call, answer, first, response, copy, entry, watch, limits)
            except ConnectionResetError:
                draft.broken = "client_left"
            except UpstreamError as error:
                _failed(draft, error)
                _hang_up(request)
            except JournalFull:
                if not response.prepared:
                    raise
                _hang_up(request)
            return response
        finally:
            # after the answer's end this is too late to close anything: the connection has gone back to its
            # pool; before it, what the connection still carries must neither be waited for nor be reused
            answer.close()

    async def _pump(
        self, call: Call, answer: aiohttp.ClientResponse, chunk: bytes, response: web.StreamResponse, copy: Copy,
        entry: Entry, watch: Watch, limits: Limits,
    ) -> None:
        """All bytes to the client, the last ones when the record is durable.

        The last bytes of a stream are those with its [DONE]; of any other answer, which is of use only as a whole,
        what came last.
        """
        streamed, late = answer.content_type == "text/event-stream", b""
        mask, size, held = Mask(call.api_key), 0, 0
        watch.enter("idle", limits.idle_seconds)
        try:
            while chunk:
                size += len(chunk)
                if size > limits.answer_bytes:
                    raise _broken("the answer is larger than limits.answer_bytes allows", code="answer_too_large")
                if copy.keeping:
                    held += len(chunk)
                    self.held += len(chunk)
                    copy.truncated = self.held > limits.held_bytes
                copy.feed(chunk)
                if streamed and (copy.done or (not copy.keeping and b"[DONE]" in chunk)):
                    await entry.durable()
                told = mask.feed(chunk)
                ready, late = (told, b"") if streamed else (late, told)
                if ready:
                    watch.phase = "client"
                    await response.write(ready)
                    watch.phase = "idle"
                watch.touch()
                chunk = await _next(answer)
            copy.end()
            await entry.durable()
            late += mask.end()
            if late:
                await response.write(late)
            await response.write_eof()
        except UpstreamError:
            if late:  # the client gets what came, though not as if it were all
                await response.write(late)
            raise
        finally:
            self.held -= held

    async def _open(self, call: Call) -> tuple[aiohttp.ClientResponse, bytes]:
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


async def _deliver(
    request: web.Request, body: bytes, response: web.StreamResponse, copy: Copy, entry: Entry
) -> None:
    """An answer that came in one piece goes out in one piece."""
    copy.feed(body)
    copy.end()
    await entry.durable()
    await response.prepare(request)
    await response.write_eof()


async def _recorded(entry: Entry) -> None:
    """The record of an exchange that the proxy itself answers. Raises RequestError, 503."""
    try:
        await entry.durable()
    except JournalFull:
        raise _not_recordable() from None


def _masked(body: bytes, secret: str | None) -> bytes:
    mask = Mask(secret)
    return mask.feed(body) + mask.end()


async def _next(answer: aiohttp.ClientResponse) -> bytes:
    try:
        return await answer.content.readany()
    except _UPSTREAM_FAULTS as error:
        raise _broken("the upstream broke off in the middle of its answer", code="upstream_broke") from error


def _broken(message: str, *, code: str) -> UpstreamError:
    return UpstreamError(message, status=502, code=code, reached=True)


def _failed(draft: Draft, error: UpstreamError) -> None:
    draft.broken = "upstream_failed"
    if draft.copy is None:
        draft.status = error.status
    draft.error = error_object({"message": str(error), "type": "upstream_error", "code": error.code})


def _out_of_time(request: web.Request, call: Call, draft: Draft, watch: Watch) -> web.StreamResponse:
    """The end of an exchange whose deadline passed: a status before the answer, a cut connection inside it."""
    phase = watch.expired or ""
    status = 502 if draft.copy is not None else 504
    code = "client_stalled" if phase == "client" else "upstream_timeout"
    error = UpstreamError(_EXPIRED[phase], status=status, code=code, reached=True)
    _failed(draft, error)
    if phase == "client":
        draft.broken = "client_left"
    if draft.copy is None:
        return upstream_error(error, call.own_headers, draft.id)
    _hang_up(request)
    return web.Response(status=status)


def _hang_up(request: web.Request) -> None:
    # without this aiohttp would end the body properly, and half an answer would look whole; what a stalled client
    # has not read yet would keep a closing connection open, so it is cut
    if request.transport is not None:
        request.transport.abort()


def _not_recordable() -> RequestError:
    message = "the audit journal cannot take this exchange now, and the configuration refuses unrecorded answers"
    return RequestError(message, status=503, code="journal_full", retry_after=1.0)


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
