"""One exchange while it runs: the handler notes what happens, and at its end the draft becomes a
`NewExchange`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from proxy.observation import ENDPOINTS, Observation
from proxy.secrets import cleared, holds_secret
from storage.exchanges import NewExchange

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left before an answer began."""


class Copy(Protocol):
    """What a draft needs from the copy of an answer: `Transcript`, or `Excerpt` for what is not audited."""

    malformed: bool
    truncated: bool

    @property
    def done(self) -> bool: ...
    @property
    def keeping(self) -> bool: ...
    @property
    def ended(self) -> bool: ...
    @property
    def empty(self) -> bool: ...
    @property
    def error(self) -> dict[str, Any] | None: ...
    def feed(self, chunk: bytes) -> None: ...
    def end(self) -> None: ...
    def finish(self) -> dict[str, Any]: ...


@dataclass(kw_only=True)
class Draft:
    """All that is known of an exchange so far. `broken` is the outcome of a connection that did not reach its
    end.

    Times are seconds of a monotonic clock: the request's beginning, its body's end, the provider's call, the answer's
    first and last byte.
    """

    id: str
    created_at: datetime
    upstream: str
    endpoint: str
    model: str
    streamed: bool
    request: Mapping[str, Any]
    forced: Mapping[str, Any]
    overridden: Mapping[str, Any]
    audit: bool
    unaudited_reason: str | None
    reference: str | None
    sampler: str | None
    user_hash: str | None
    started_at: float
    ready_at: float
    secrets: tuple[str, ...] = field(default=(), repr=False)
    copy: Copy | None = None
    status: int = CLIENT_CLOSED_REQUEST
    broken: str | None = None
    error: dict[str, Any] | None = None
    called_at: float | None = None
    first_byte_at: float | None = None
    ended_at: float | None = None

    def finish(self, now: float) -> NewExchange:
        """The record. An exchange that was to be audited and has nothing to audit gets its reason instead."""
        response: dict[str, Any] = {} if self.copy is None else self.copy.finish()
        error = self.error or response.get("error")
        if error is not None:
            response["error"] = error
        outcome = self._outcome()
        reason = self.unaudited_reason or self._unauditable(outcome)
        if holds_secret(response, self.secrets):
            # without the secret the text is another one, and what its tokens spell is the secret
            response, reason = _without(response, self.secrets), reason or "secret_in_answer"
        return NewExchange(
            id=self.id, created_at=self.created_at, upstream=self.upstream, endpoint=self.endpoint,
            model=self.model, streamed=self.streamed, request=dict(self.request), forced=dict(self.forced),
            overridden=dict(self.overridden), response=response, status=self.status, outcome=outcome,
            first_byte_seconds=None if self.first_byte_at is None else self.first_byte_at - self.started_at,
            total_seconds=now - self.started_at, audit=self.audit and reason is None, unaudited_reason=reason,
            reference=self.reference, sampler=self.sampler,
            user_hash=self.user_hash,
        )

    def observation(self, exchange: NewExchange, now: float) -> Observation:
        """The same for whoever watches the proxy."""
        overhead = None
        if self.called_at is not None and self.ended_at is not None:
            overhead = self.called_at - self.ready_at + now - self.ended_at
        return Observation(
            exchange_id=self.id, upstream=self.upstream, model=self.model if self.reference is not None else None,
            endpoint=self.endpoint if self.endpoint in ENDPOINTS else "other", streamed=self.streamed,
            status=self.status, outcome=exchange.outcome, audit=exchange.audit,
            unaudited_reason=exchange.unaudited_reason, total_seconds=exchange.total_seconds,
            first_byte_seconds=exchange.first_byte_seconds, overhead_seconds=overhead,
        )

    def _outcome(self) -> str:
        copy = self.copy
        if copy is None:
            return self.broken or "upstream_failed"
        if self.status >= 300 or copy.error is not None:
            return "upstream_error"
        if self.broken is not None and not copy.ended:
            return self.broken
        if copy.malformed:
            return "malformed"
        if copy.truncated:
            return "truncated"
        return "complete" if copy.ended else "upstream_failed"

    def _unauditable(self, outcome: str) -> str | None:
        """Why the answer cannot be audited. A part of an answer can: a prefix is verified like a whole."""
        if outcome == "malformed" or self.copy is None or self.copy.empty:
            return outcome
        return None


def _without(response: dict[str, Any], secrets: Sequence[str]) -> dict[str, Any]:
    cleaned: dict[str, Any] = cleared(response, secrets)
    for choice in cleaned.get("choices") or ():
        choice["token_ids"] = choice["logprobs"] = None
    return cleaned
