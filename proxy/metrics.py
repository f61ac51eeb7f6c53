"""This process's metrics for Prometheus: an `Observer` that counts and measures every request.

Names are those of the field with our prefix: base units, `_total`, `_seconds`. Labels are bounded: upstream and
configured model, endpoint, status class, outcome; never a key, a user or an id. With several processes the values lie
in files that any of them adds up (`proxy.shared_metrics`, whose directory must be there before this is imported).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from proxy.observation import Observation
from proxy.recorder import Health
from proxy.shared_metrics import several_processes
from storage.exchange_codec import ExchangeRow
from storage.writer import BATCH, Target

OVERHEAD = (0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
FIRST_BYTE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DURATION = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, BATCH)
OTHER_MODEL = "other"

M = TypeVar("M", bound=MetricWrapperBase)


class Metrics:
    """What one process measures. `registry` collects it, or, with several processes, what all of them did."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self.registry = own
        if several_processes():
            self.registry = CollectorRegistry()
            MultiProcessCollector(self.registry)  # type: ignore[no-untyped-call]
        where = ("upstream", "model", "endpoint")
        self._requests = Counter(
            "seedproof_requests", "Exchanges with a provider, by the status class of the client's answer.",
            (*where, "streamed", "status"), registry=own,
        )  # fmt: skip
        self._duration = Histogram(
            "seedproof_request_duration_seconds", "From the request's first byte to the answer's last.",
            where, buckets=DURATION, registry=own,
        )  # fmt: skip
        self._first_byte = Histogram(
            "seedproof_time_to_first_byte_seconds", "From the request's first byte to the provider's.",
            where, buckets=FIRST_BYTE, registry=own,
        )  # fmt: skip
        self._overhead = Histogram(
            "seedproof_overhead_seconds", "The proxy's own share of an exchange's time.",
            ("upstream",), buckets=OVERHEAD, registry=own,
        )  # fmt: skip
        self._in_flight = Gauge(
            "seedproof_in_flight_requests", "Requests that are being answered.", registry=own,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._refused = Counter(
            "seedproof_refused_requests", "Requests that the proxy itself answered.", ("status", "code"), registry=own
        )
        self._upstream_errors = Counter(
            "seedproof_upstream_errors", "Exchanges that a provider failed.", ("upstream", "reason"), registry=own
        )
        self._disconnects = Counter(
            "seedproof_client_disconnects", "Clients that left before the answer's end.", ("upstream",), registry=own
        )
        self._records = Counter(
            "seedproof_records", "Exchanges handed to the recorder, by outcome.", ("upstream", "outcome"), registry=own
        )
        self._unaudited = Counter(
            "seedproof_unaudited", "Exchanges without audit, by reason.", ("upstream", "reason"), registry=own
        )
        self._written = Counter("seedproof_records_written", "Exchanges that are written down.", registry=own)
        self._lost = Counter("seedproof_records_lost", "Exchanges that are nowhere; must stay 0.", registry=own)
        # the processes share one journal
        shared: dict[str, Any] = {"registry": own, "multiprocess_mode": "livemax"}
        self._journal_bytes = Gauge("seedproof_journal_bytes", "What waits for the database.", **shared)
        self._journal_limit = Gauge("seedproof_journal_max_bytes", "What the journal may hold.", **shared)
        self._journal_oldest = Gauge("seedproof_journal_oldest_seconds", "Age of its oldest segment.", **shared)
        self._batches = Histogram(
            "seedproof_ingest_batch_size", "Exchanges that one transaction writes into the database.",
            buckets=BATCHES, registry=own,
        )  # fmt: skip
        self._told = {"recorded": 0, "lost": 0}
        self._children: dict[tuple[MetricWrapperBase, tuple[str, ...]], Any] = {}

    def began(self) -> None:
        """A request came in."""
        self._in_flight.inc()

    def left(self) -> None:
        """It is no longer being answered."""
        self._in_flight.dec()

    def ended(self, seen: Observation) -> None:
        """An exchange is over."""
        model = seen.model or OTHER_MODEL
        streamed = "true" if seen.streamed else "false"
        status = f"{seen.status // 100}xx"
        self._child(self._requests, seen.upstream, model, seen.endpoint, streamed, status).inc()
        self._child(self._records, seen.upstream, seen.outcome).inc()
        self._child(self._duration, seen.upstream, model, seen.endpoint).observe(seen.total_seconds)
        if seen.first_byte_seconds is not None:
            self._child(self._first_byte, seen.upstream, model, seen.endpoint).observe(seen.first_byte_seconds)
        if seen.overhead_seconds is not None:
            self._child(self._overhead, seen.upstream).observe(seen.overhead_seconds)
        if seen.outcome in ("upstream_failed", "upstream_error", "malformed"):
            self._child(self._upstream_errors, seen.upstream, seen.outcome).inc()
        elif seen.outcome == "client_left":
            self._child(self._disconnects, seen.upstream).inc()
        if seen.unaudited_reason is not None:
            self._child(self._unaudited, seen.upstream, seen.unaudited_reason).inc()

    def refused(self, status: int, code: str) -> None:
        """The proxy itself answered."""
        self._child(self._refused, str(status), code).inc()

    def recorder(self, health: Health) -> None:
        """What this process's recorder tells of itself."""
        for counter, name in ((self._written, "recorded"), (self._lost, "lost")):
            total = getattr(health, name)
            counter.inc(max(0, total - self._told[name]))
            self._told[name] = total
        self._journal_bytes.set(health.journal_bytes)
        self._journal_limit.set(health.max_bytes)
        self._journal_oldest.set(health.journal_oldest_seconds)

    def measured(self, target: Target) -> Target:
        """A writer's target whose batches are measured."""
        return _MeasuredTarget(target, self._batches)

    def _child(self, metric: M, *labels: str) -> M:
        # prometheus_client takes a lock and checks every label; the same few are asked for at every request
        child: M | None = self._children.get((metric, labels))
        if child is None:
            child = self._children[metric, labels] = metric.labels(*labels)
        return child

    def collecting(self, more: Collector) -> CollectorRegistry:
        """A registry of these metrics and of another collector's, for one scrape."""
        registry = CollectorRegistry()
        registry.register(_Both(self.registry, more))
        return registry


class _MeasuredTarget:
    def __init__(self, target: Target, batches: Histogram) -> None:
        self.bury, self._target, self._batches = target.bury, target, batches

    async def record(self, rows: Sequence[ExchangeRow]) -> int:
        written = await self._target.record(rows)
        self._batches.observe(len(rows))
        return written


class _Both(Collector):
    def __init__(self, registry: CollectorRegistry, more: Collector) -> None:
        self._registry, self._more = registry, more

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._more.collect()
