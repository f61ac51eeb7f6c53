"""What the proxy tells whoever watches it: metrics, dashboards, tests. Pure.

One `Observer` per process, called on the event loop in the middle of a request: it must be quick and must not raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""Told apart; every other path is `other`."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One exchange at its end. Seconds are of a monotonic clock.

    `overhead_seconds` is the proxy's own share: from the request's body being read to the call of the provider, and
    from the answer's last byte to the end of the client's answer.
    """

    exchange_id: str
    upstream: str
    model: str | None
    """As configured; None for a model that no upstream lists, so that clients cannot make up label values."""
    endpoint: str
    """One of `ENDPOINTS`, or `other`."""
    streamed: bool
    status: int
    outcome: str
    """A value of `storage.models.Outcome`."""
    audit: bool
    unaudited_reason: str | None
    total_seconds: float
    first_byte_seconds: float | None
    overhead_seconds: float | None
    """None where the provider was never called or never ended."""


class Observer(Protocol):
    """Every request calls `began` and at last `left`; between them `ended` where the provider was asked, and `refused`
    where the proxy itself answered: both where an exchange could not be recorded, and must not be answered then."""

    def began(self) -> None:
        """A request came in: one more in flight."""

    def left(self) -> None:
        """One fewer."""

    def ended(self, seen: Observation) -> None:
        """An exchange is over and handed to the recorder."""

    def refused(self, status: int, code: str) -> None:
        """The proxy itself answered a request, with this status and error code."""


class Unobserved:
    """Nobody watches."""

    def began(self) -> None: ...
    def left(self) -> None: ...
    def ended(self, seen: Observation) -> None: ...
    def refused(self, status: int, code: str) -> None: ...
