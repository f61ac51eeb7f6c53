"""The backlog: counted by reference, with its oldest exchange and its last trouble."""

from datetime import timedelta

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


async def test_a_long_backlog_is_not_counted_to_its_end(database_url, monkeypatch):
    monkeypatch.setattr(overview, "MOST_COUNTED", 3)
    async with open_database(database_url) as database, database.writing() as session:
        await exchanges.record(session, [exchange(n) for n in range(9)])
        assert [row.todo for row in await overview.waiting(session)] == [3]
