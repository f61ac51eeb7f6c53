"""Metrics of what lies in the database: the backlog, streams and their verdicts. Any process tells them for all.

They are read at most every few seconds, however often and by however many they are asked for.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy.ext.asyncio import AsyncSession

from proxy import dashboard_rows as rows
from storage import dead_letters, history, housekeeping, overview, proxies, streams
from storage.database import Database
from storage.errors import StorageError
from storage.history import RATE_BOUNDS

FRESH_SECONDS = 5.0
VERDICTS = ("consistent", "deviates", "inconclusive", "unsupported")
STREAM = rows.STREAM_KEY


class StoreMetrics:
    """Reads the database for scrapes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._families: Sequence[Metric] = ()
        self._read_at = -math.inf
        self._reading = asyncio.Lock()

    async def families(self) -> Collector:
        """The metrics as of now or of a few seconds ago."""
        async with self._reading:
            if time.monotonic() - self._read_at >= FRESH_SECONDS:
                self._families = await self._read()
                self._read_at = time.monotonic()
        return _Fixed(self._families)

    async def _read(self) -> list[Metric]:
        up = GaugeMetricFamily("seedproof_database_up", "Whether the audit database answers.")
        try:
            async with self._database.reading() as session:
                found = [
                    *await _of_jobs(session), *await _of_chores(session), *await _of_streams(session),
                    *await _of_the_past(session),
                ]  # fmt: skip
        except StorageError:
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *found]


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


async def _of_jobs(session: AsyncSession) -> list[Metric]:
    now = datetime.now(timezone.utc)
    jobs = GaugeMetricFamily("seedproof_jobs", "Audits that are not finished.", labels=("reference", "state"))
    by = ("reference",)
    age = GaugeMetricFamily("seedproof_job_age_seconds", "Age of the oldest exchange without audit.", labels=by)
    retried = GaugeMetricFamily("seedproof_jobs_retried", "Unfinished audits that failed before.", labels=by)
    for waiting in await overview.waiting(session):
        jobs.add_metric([waiting.reference, "todo"], waiting.todo)
        jobs.add_metric([waiting.reference, "leased"], waiting.leased)
        retried.add_metric([waiting.reference], waiting.retried)
        if waiting.oldest is not None:
            age.add_metric([waiting.reference], max(0.0, (now - waiting.oldest).total_seconds()))
    told = await proxies.losses(session, now=now)
    alive = GaugeMetricFamily("seedproof_proxy_processes", "Proxy processes that were heard of in the last minute.")
    alive.add_metric([], told.alive)
    ever = GaugeMetricFamily("seedproof_losses_ever", "Exchanges lost by any process that is remembered; must stay 0.")
    ever.add_metric([], told.lost)
    dead = GaugeMetricFamily("seedproof_dead_letters", "Records that the database refused and a person should see.")
    dead.add_metric([], await dead_letters.count(session))
    return [jobs, age, retried, alive, ever, dead]


async def _of_chores(session: AsyncSession) -> list[Metric]:
    done = GaugeMetricFamily("seedproof_chore_timestamp_seconds", "When a chore last went well.", labels=("chore",))
    failures = CounterMetricFamily("seedproof_chore_failures", "How often a chore went wrong.", labels=("chore",))
    for chore in await housekeeping.standing(session):
        failures.add_metric([chore.name], chore.failures)
        if chore.done_at is not None:
            done.add_metric([chore.name], chore.done_at.timestamp())
    return [done, failures]


GAUGES = {
    "match_rate": ("seedproof_match_rate", "Share of tokens that the sampler contract draws."),
    "match_low": ("seedproof_match_rate_low", "Lower end of its 95 % confidence sequence."),
    "match_high": ("seedproof_match_rate_high", "Upper end of its 95 % confidence sequence."),
    "match_tolerated": ("seedproof_match_rate_tolerated", "Lowest match rate that an honest provider may have."),
    "log_e": ("seedproof_log_e_value", "ln of the stream's highest e-value so far."),
    "alarm_log_e": ("seedproof_log_e_alarm", "ln of the e-value at which a stream deviates."),
}  # fmt: skip
COUNTERS = {
    "tokens": ("seedproof_verify_tokens", "Tokens weighed."),
    "requests": ("seedproof_verify_answers", "Answers weighed."),
    "audits": ("seedproof_audits", "Audits, also those that could not be weighed."),
}


async def _of_streams(session: AsyncSession) -> list[Metric]:
    found = [rows.stream_row(stream) for stream in await streams.standing(session)]
    return [
        *(_gauge(*told, found, name) for name, told in GAUGES.items()),
        *(_counter(*told, found, name) for name, told in COUNTERS.items()),
        _verdicts(found), _updated(found), _drift(found),
    ]  # fmt: skip


def _gauge(name: str, text: str, found: Sequence[dict[str, Any]], column: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=STREAM)
    for stream in found:
        if stream[column] is not None:
            family.add_metric(_labels(stream), stream[column])
    return family


def _counter(name: str, text: str, found: Sequence[dict[str, Any]], column: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=STREAM)
    for stream in found:
        family.add_metric(_labels(stream), stream[column])
    return family


def _verdicts(found: Sequence[dict[str, Any]]) -> Metric:
    family = GaugeMetricFamily("seedproof_verdict", "1 for the stream's verdict.", labels=(*STREAM, "verdict"))
    for stream in found:
        for verdict in VERDICTS:
            family.add_metric([*_labels(stream), verdict], float(stream["verdict"] == verdict))
    return family


def _updated(found: Sequence[dict[str, Any]]) -> Metric:
    name = "seedproof_last_audit_timestamp_seconds"
    family = GaugeMetricFamily(name, "When a stream was last weighed.", labels=STREAM)
    for stream in found:
        family.add_metric(_labels(stream), stream["updated_at"].timestamp())
    return family


def _drift(found: Sequence[dict[str, Any]]) -> Metric:
    family = GaugeMetricFamily("seedproof_drift_alarm", "Whether a stream's drift alarm has rung.", labels=STREAM)
    for stream in found:
        family.add_metric(_labels(stream), float(stream["drift_alarm_at"] is not None))
    return family


async def _of_the_past(session: AsyncSession) -> list[Metric]:
    ratio = HistogramMetricFamily("seedproof_token_match_ratio", "Audited answers by match rate.", labels=STREAM)
    for key, counts in (await history.rate_counts(session)).items():
        total, buckets = 0, []
        for bound, count in zip(RATE_BOUNDS, counts, strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        buckets.append(("+Inf", float(total)))
        ratio.add_metric(list(vars(key).values()), buckets, None)
    text = "Changes of a stream's verdict to this one."
    verdicts = CounterMetricFamily("seedproof_verdicts", text, labels=("verdict",))
    for verdict, count in sorted((await history.changes_by_verdict(session)).items()):
        verdicts.add_metric([verdict], count)
    return [ratio, verdicts]


def _labels(stream: dict[str, Any]) -> list[str]:
    return [stream[name] for name in STREAM]
