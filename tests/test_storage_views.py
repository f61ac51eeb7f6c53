"""The views that docs/database.md documents, against values computed by hand; the same on both databases."""

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text
from storage_rows import MINUTE, NOON, audit, exchange

from storage import audits, exchanges, history, jobs
from storage.database import Database, open_database
from storage.models import Audit, Stream

STREAM = {"upstream": "honest", "model": "smollm2", "reference": "smollm2-bf16", "sampler": "vllm@0.26.0/v2"}


async def rows(database: Database, query: str) -> list[dict]:
    async with database.reading() as session:
        return [dict(row._mapping) for row in await session.execute(text(query))]


def hour(moment: datetime, database: Database) -> datetime | str:
    return moment if "postgres" in database.where else moment.strftime("%Y-%m-%d %H:%M:%S.%f")


async def weighed(database: Database, *found, at: datetime, **stream: str) -> None:
    """Audits, stored and noted in their stream's history at a moment, as a worker does."""
    names = {**STREAM, **stream}
    standing = Stream(
        **names, updated_at=at, audits=0, requests=0, tokens=0, verdict="inconclusive", reasons=[], log_e=0.0,
        detail={}, state={},
    )  # fmt: skip
    async with database.writing() as session:
        await audits.add(session, found)
        ids = [one.exchange_id for one in found]
        stored = list(await session.scalars(select(Audit).where(Audit.exchange_id.in_(ids))))
        await history.note(session, standing, stored, previous="inconclusive", now=at)


async def test_match_rate_hourly(database_url):
    async with open_database(database_url) as database:
        unsupported = audit(3, verdict_status="unsupported", reason="empty_answer", tokens=0, exact_matches=0,
                            exact_match_rate=None)  # fmt: skip
        worse = audit(2, tokens=300, exact_matches=222, outside_support=5)
        await weighed(database, audit(1), worse, unsupported, at=NOON)
        await weighed(database, audit(4), at=NOON + 59 * MINUTE)
        await weighed(database, audit(5, tokens=50, exact_matches=10), at=NOON + 60 * MINUTE)
        await weighed(database, audit(6, upstream="cheap", tokens=10, exact_matches=7), at=NOON, upstream="cheap")
        found = await rows(database, "SELECT * FROM match_rate_hourly ORDER BY upstream DESC, hour")
        rates = [row.pop("match_rate") for row in found]
        at = {"upstream": "honest", "hour": hour(NOON, database)}
        later = {"hour": hour(NOON + 60 * MINUTE, database)}
        assert found == [
            {**STREAM, **at, "audits": 3, "tokens": 500, "exact_matches": 418, "outside_support": 5},
            {**STREAM, **later, "audits": 1, "tokens": 50, "exact_matches": 10, "outside_support": 0},
            {**STREAM, **at, "upstream": "cheap", "audits": 1, "tokens": 10, "exact_matches": 7, "outside_support": 0},
        ]
        assert rates == pytest.approx([0.836, 0.2, 0.7])


async def test_worst_exchanges(database_url):
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await audits.add(session, [
                audit(1, tokens=100, exact_matches=40, exact_match_rate=0.4, clipped_margin=1.25, outside_support=2),
                audit(2, tokens=20, exact_matches=18, exact_match_rate=0.9),
                audit(3, tokens=19, exact_matches=0, exact_match_rate=0.0),
                audit(4, verdict_status="failed", reason="broken", tokens=50, exact_matches=1, exact_match_rate=0.02),
            ])  # fmt: skip
        found = await rows(database, "SELECT * FROM worst_exchanges ORDER BY exact_match_rate")
        worst = found[0]
        assert worst.pop("created_at") == hour(NOON + timedelta(seconds=61), database)
        assert worst == {
            **STREAM, "exchange_id": "0193-0001", "choice_index": 0, "tokens": 100, "exact_match_rate": 0.4,
            "outside_support": 2, "clipped_margin": 1.25,
        }  # fmt: skip
        assert [row["exchange_id"] for row in found] == ["0193-0001", "0193-0002"]


async def test_audit_lag(database_url):
    now = datetime.now(timezone.utc)
    ages = {1: 3600, 2: 600, 3: 60, 4: 30}
    async with open_database(database_url) as database:
        async with database.writing() as session:
            came = [exchange(number, created_at=now - timedelta(seconds=age)) for number, age in ages.items()]
            await exchanges.record(session, [*came, exchange(5, upstream="cheap", created_at=now)])
            first, second = await jobs.claim(session, worker="w", limit=2, lease=timedelta(1), now=now)
            assert await jobs.complete(session, first)
        assert [first.exchange_id, second.exchange_id] == ["0193-0001", "0193-0002"]
        found = await rows(database, "SELECT * FROM audit_lag ORDER BY upstream, state")
        lags = [row.pop("lag_seconds") for row in found]
        assert found == [
            {"upstream": upstream, "reference": "smollm2-bf16", "state": state, "jobs": count,
             "oldest": hour(now - timedelta(seconds=age), database)}
            for upstream, state, count, age in [
                ("cheap", "todo", 1, 0), ("honest", "leased", 1, 600), ("honest", "todo", 2, 60)]
        ]  # fmt: skip
        assert lags == pytest.approx([0, 600, 60], abs=30)
