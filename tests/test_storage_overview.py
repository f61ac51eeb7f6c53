"""The backlog: counted by reference, with its oldest exchange and its last trouble."""

from datetime import timedelta

from sqlalchemy import text
from storage_rows import NOON, exchange

from storage import exchanges, jobs, overview
from storage.database import open_database
from storage.overview import Waiting


async def test_what_waits_is_counted_by_reference(database_url):
    later = NOON + timedelta(hours=1)
    async with open_database(database_url) as database, database.writing() as session:
        recorded = [exchange(n, reference="a" if n < 3 else "b") for n in range(5)]
        await exchanges.record(session, recorded)
        claims = await jobs.claim(session, worker="w", limit=2, lease=timedelta(minutes=1), now=later, reference="a")
        await jobs.retry(session, claims[0], at=later, reason="BadWeights: no")
        await jobs.complete(session, (await jobs.claim(session, worker="w", limit=1, lease=timedelta(minutes=1),
                                                       now=later, reference="b"))[0])  # fmt: skip
        found = await overview.waiting(session)
    assert found == [
        Waiting("a", todo=2, leased=1, oldest=NOON, retried=1, reason="BadWeights: no"),
        Waiting("b", todo=1, leased=0, oldest=NOON + timedelta(seconds=4), retried=0, reason=None),
    ]


async def test_a_long_backlog_is_not_counted_to_its_end(database_url):
    async with open_database(database_url) as database, database.writing() as session:
        several = [exchange(n, upstream="ab"[n % 2], reference="r" if n < 12 else "s") for n in range(13)]
        await exchanges.record(session, several)
        told = [(row.reference, row.todo, row.more) for row in await overview.waiting(session, most=3)]
    assert told == [("r", 6, True), ("s", 1, False)]


async def test_the_backlog_is_counted_by_its_index_alone(sqlite_url):
    async with open_database(sqlite_url) as database, database.reading() as session:
        for statement in (overview._TODO, overview._LEASED):
            plan = await session.execute(text(f"EXPLAIN QUERY PLAN {statement.element.text}"), {"most": 1})
            read = [step for *_, step in plan if "jobs" in step]
            assert read
            assert all("COVERING INDEX ix_jobs_unfinished (state=?" in step for step in read)
