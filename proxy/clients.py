"""Who may use the proxy: keys that are kept as hashes, what each may reach, and how much of it. Pure.

A key reads `sp_NAME_SECRET`, with a secret of 256 random bits: it is found by its name and compared as SHA-256, in
constant time (a slow hash is for passwords, which people choose). Whatever is wrong with a key, its holder learns
the same one sentence.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from proxy.errors import RequestError

_PREFIX = "sp_"
_REFUSED = "the API key is missing or not valid; send it as: Authorization: Bearer KEY"
_FAILURES_PER_MINUTE = 30.0
_MAX_ADDRESSES = 10_000
"""Remembered for failed keys; the oldest is forgotten, since an attacker may have any number."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """One key. None for `upstreams` or `models` means all, for a limit none."""

    name: str
    key_sha256: str
    upstreams: frozenset[str] | None = None
    models: frozenset[str] | None = None
    requests_per_minute: float | None = None
    concurrent_requests: int | None = None
    expires: date | None = None

    def may(self, upstream: str, model: str | None) -> bool:
        """Whether its scope holds this model (None: no model is named) of this upstream."""
        return (self.upstreams is None or upstream in self.upstreams) and (
            self.models is None or model in self.models
        )


class Bucket:
    """A token bucket: `per_minute` on average, at most as many at once. Times are seconds of any clock."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._rate = per_minute / 60
        self._most = max(1.0, per_minute)
        self._left = self._most
        self._at = now

    def wait(self, now: float) -> float:
        """Takes one and returns 0, or the seconds until there is one."""
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class Admission:
    """One request's place among its client's; `leave` it at the request's end."""

    def __init__(self, client: Client | None, running: dict[str, int]) -> None:
        self.client = client
        self._running = running
        if client is not None:
            running[client.name] = running.get(client.name, 0) + 1

    def leave(self) -> None:
        """Free the place."""
        if self.client is not None:
            self._running[self.client.name] -= 1

    def check(self, upstream: str, model: str | None) -> None:
        """Raises RequestError, 404 as for a model that does not exist, where the client's scope does not reach."""
        if self.client is not None and not self.client.may(upstream, model):
            message = f"the model {model!r} of upstream {upstream!r} does not exist or this API key does not reach it"
            raise RequestError(message, status=404, code="model_not_found", param="model")


class Gate:
    """All clients and what they are using. Without clients everybody is admitted."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self._clients = {client.name: client for client in clients}
        self._running: dict[str, int] = {}
        self._buckets: dict[str, Bucket] = {}
        self._failures: OrderedDict[str, Bucket] = OrderedDict()

    @property
    def closed(self) -> bool:
        """Whether a key is needed."""
        return bool(self._clients)

    def admit(self, headers: Mapping[str, str], *, address: str, now: float, today: date) -> Admission:
        """The request's admission.

        Raises:
            RequestError: 401, no valid key; 429, more than the client (or an address without a key) may take.
        """
        if not self._clients:
            return Admission(None, self._running)
        client = self._client(bearer(headers), today)
        if client is None:
            self._count_failure(address, now)
            raise RequestError(_REFUSED, status=401, code="invalid_api_key")
        if client.concurrent_requests is not None and (
            self._running.get(client.name, 0) >= client.concurrent_requests
        ):
            _too_many(f"{client.concurrent_requests} requests at the same time", 1.0)
        if client.requests_per_minute is not None:
            bucket = self._buckets.setdefault(client.name, Bucket(client.requests_per_minute, now))
            if (wait := bucket.wait(now)) > 0:
                _too_many(f"{client.requests_per_minute:g} requests a minute", wait)
        return Admission(client, self._running)

    def _client(self, key: str, today: date) -> Client | None:
        name = key.removeprefix(_PREFIX).rpartition("_")[0]
        client = self._clients.get(name)
        # an unknown name is compared as well, so that time does not tell which names exist
        expected = client.key_sha256 if client is not None else hash_key("")
        matches = hmac.compare_digest(hash_key(key), expected)
        if client is None or not matches or (client.expires is not None and today > client.expires):
            return None
        return client

    def _count_failure(self, address: str, now: float) -> None:
        bucket = self._failures.setdefault(address, Bucket(_FAILURES_PER_MINUTE, now))
        self._failures.move_to_end(address)
        if len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)
        if (wait := bucket.wait(now)) > 0:
            _too_many("wrong API keys from this address", wait)

    def carry_over(self, old: Gate) -> None:
        """Keep counting what runs and what was taken, after a reload."""
        self._running = old._running
        self._failures = old._failures
        for name, bucket in old._buckets.items():
            new, former = self._clients.get(name), old._clients[name]
            if new is not None and new.requests_per_minute == former.requests_per_minute:
                self._buckets[name] = bucket


def bearer(headers: Mapping[str, str]) -> str:
    """The key of an `Authorization: Bearer KEY` header; empty where there is none."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def carries(headers: Mapping[str, str], key: str) -> bool:
    """Whether a request's bearer key is this one, whatever its bytes are; in constant time."""
    return hmac.compare_digest(hash_key(bearer(headers)), hash_key(key))


def hash_key(key: str) -> str:
    """As the configuration keeps it: SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def compose_key(name: str, secret: str) -> str:
    """The key of a client from its name and its secret (hexadecimal, no underscore)."""
    return f"{_PREFIX}{name}_{secret}"


def _too_many(what: str, wait: float) -> None:
    raise RequestError(f"too many requests: {what}", status=429, code="rate_limit_exceeded", retry_after=wait)
