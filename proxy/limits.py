"""What clients and providers may take of this process. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on time, bytes and requests; each is a key of `[limits]`."""

    request_bytes: int = 32 * 2**20
    """Of one request's body, decoded; more gets 413."""
    answer_bytes: int = 2**30
    """Of one answer; the connection is cut there."""
    held_bytes: int = 2**30
    """Of all running requests' bodies and answers' copies together; then requests get 503 and records are cut."""
    in_flight: int = 4096
    """Requests at the same time; more get 503."""
    body_seconds: float = 120.0
    """For a request's body to arrive, else 408."""
    connect_seconds: float = 10.0
    first_byte_seconds: float = 600.0
    """The longest wait for an answer's first byte, else 504; the SDK waits as long."""
    idle_seconds: float = 600.0
    """The longest pause inside an answer, whoever makes it: the provider, or a client that stops reading."""
    total_seconds: float = 7200.0
    """The longest answer, so that a stream that never ends does end."""
    drain_seconds: float = 0.0
    """How long requests are still taken after SIGTERM, while /readyz says 503 already and balancers turn away."""
    shutdown_seconds: float = 30.0
    """How long running answers may go on after that."""
