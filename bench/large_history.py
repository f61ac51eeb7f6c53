"""What `bench.large_database` leaves out: streams as they stand and their past, until now whenever it is made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import product
from typing import Any

from sqlalchemy import delete

from bench.large_database import DAYS, MODELS, SAMPLER, UPSTREAMS
from storage.database import Database
from storage.models import Stream
from storage.models_history import Span, StreamHistory, VerdictChange

DETECTORS = (
    "mismatch", "margin", "margin_tail", "support", "cross_entropy_high", "cross_entropy_low", "rank_high", "rank_low"
)  # fmt: skip
POWER = [
    {"fault": fault, "power": 0.99, "tokens_for_90_percent": 400}
    for fault in ("int4 weights", "fp8 weights", "temperature +0.1", "hidden system prompt", "top_p 0.9")
]
ASSUMED = ["the reference holds the weights that the provider promises", "the sampler contract is the provider's"]
STREAMS = tuple(product(UPSTREAMS, MODELS))


async def renew(database: Database, audits: int) -> None:
    """The past of the last 90 days, in place of an earlier one."""
    end = datetime.now(timezone.utc)
    async with database.writing() as session:
        for table in (Stream, StreamHistory, VerdictChange):
            await session.execute(delete(table))
        session.add_all(streams(audits, end))
        session.add_all(past(audits, end))


def effects(rate: float) -> list[dict[str, Any]]:
    return [
        {"detector": name, "unit": "share of tokens", "mean": 1 - rate, "low": 1 - rate - 0.0021,
         "high": 1 - rate + 0.0023, "honest": 0.02, "tolerated": 0.05, "tokens": 10**8, "log_e": 0.1}
        for name in DETECTORS
    ]  # fmt: skip


def streams(audits: int, end: datetime) -> list[Stream]:
    share = audits // len(STREAMS)
    return [
        Stream(
            upstream=upstream, model=model, reference=model, sampler=SAMPLER, updated_at=end, audits=share,
            requests=share, tokens=120 * share, verdict="consistent", reasons=["within_band"], log_e=0.2,
            drift_alarm_at=None, calibration_id=None, identified=None, state={},
            detail={"alpha": 0.001, "effects": effects(0.98), "power": POWER, "assumptions": ASSUMED, "skipped": {}},
        )
        for upstream, model in STREAMS
    ]  # fmt: skip


def past(audits: int, end: datetime) -> Iterator[Any]:
    lasts = {
        Span.TEN_SECONDS: (timedelta(hours=2), timedelta(seconds=10)),
        Span.MINUTE: (timedelta(days=2), timedelta(minutes=1)),
        Span.HOUR: (timedelta(days=DAYS), timedelta(hours=1)), Span.DAY: (timedelta(days=DAYS), timedelta(days=1)),
    }  # fmt: skip
    for upstream, model in STREAMS:
        for span, (back, step) in lasts.items():
            count = max(1, int(audits / len(STREAMS) * (step / timedelta(days=DAYS))))
            for number in range(int(back / step)):
                at = (end - back + number * step).replace(microsecond=0)
                at -= timedelta(seconds=at.timestamp() % step.total_seconds())
                yield StreamHistory(
                    upstream=upstream, model=model, reference=model, sampler=SAMPLER, span=span.value, at=at,
                    audits=count, unsupported=0, failed=0, tokens=120 * count, exact_matches=118 * count,
                    outside_support=0, ambiguous_tokens=0, match_rates=[0, 0, 0, 0, 0, 0, 0, count, 0, 0],
                    verdict="consistent", log_e=0.2, total_requests=count * number, total_tokens=120 * count * number,
                    match_mean=0.98 + 0.001 * (number % 7), match_low=0.976, match_high=0.99, match_tolerated=0.95,
                    effects=effects(0.98 + 0.001 * (number % 7)),
                )  # fmt: skip
        for number in range(40):
            yield VerdictChange(
                at=end - timedelta(days=number), upstream=upstream, model=model, reference=model, sampler=SAMPLER,
                previous="inconclusive", verdict="consistent", reasons=["within_band"], log_e=0.2, requests=5,
                tokens=600,
            )  # fmt: skip
