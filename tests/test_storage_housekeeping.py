"""Retention by itself: by one process at a time, in small steps, and again after a failure."""

import asyncio
from datetime import datetime, timedelta, timezone

from journals import until
from sqlalchemy import select, text
from storage_rows import NOON, audit, exchange, unaudited

from storage import audits, exchanges, housekeeping, jobs, retention
from storage.database import Database, open_database
from storage.errors import DatabaseUnreachable
from storage.housekeeping import EVERY, LEASE, RETRY, Housekeeper
from storage.models import Audit, Chore, Exchange
from storage.retention import CHUNK
from storage.retention_rule import Rule

DAY = timedelta(days=1)


class Clock:
    def __init__(self, now: datetime = NOON + 9 * DAY) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


async def fill(database: Database, numbers: range, *rules: Rule) -> None:
    async with database.writing() as session:
        await retention.set_rules(session, ["honest"], rules)
        await exchanges.record(session, [unaudited(number) for number in numbers])


async def ids(database: Database) -> list[str]:
    async with database.reading() as session:
        return list(await session.scalars(select(Exchange.id).order_by(Exchange.id)))


async def chore(database: Database) -> Chore:
    async with database.reading() as session:
        return (await session.scalars(select(Chore))).one()


async def test_what_is_past_its_days_goes_once_an_hour(database_url):
    clock = Clock()
    async with open_database(database_url) as database:
        await fill(database, range(2 * CHUNK + 5), Rule(upstream="honest", payload_days=7))
        keeper = Housekeeper(database, now=clock)
        assert (await keeper.look()).exchanges == 2 * CHUNK + 5
        assert await ids(database) == []
        assert await keeper.look() is None
        await fill(database, range(86_500, 86_501), Rule(upstream="honest", payload_days=7))
        clock.now += EVERY
        assert (await keeper.look()).exchanges == 1
        row = await chore(database)
        assert (row.lease_until, row.holder, row.failures, row.done_at) == (None, None, 0, clock.now)


async def test_one_process_at_a_time_and_a_dead_ones_lease_runs_out(database_url, monkeypatch):
    clock = Clock()
    async with open_database(database_url) as database:
        await fill(database, range(3), Rule(upstream="honest", payload_days=7))
        at_it, through = [], asyncio.Event()

        async def slow(*arguments, **options):
            at_it.append(1)
            await through.wait()
            return await retention.purge(*arguments, **options)

        monkeypatch.setattr(housekeeping, "purge", slow)
        first = asyncio.create_task(Housekeeper(database, now=clock).look())
        await until(lambda: len(at_it) == 1)
        assert await Housekeeper(database, now=clock).look() is None
        clock.now += LEASE + timedelta(seconds=1)
        second = asyncio.create_task(Housekeeper(database, now=clock).look())
        await until(lambda: len(at_it) == 2)
        through.set()
        assert (await second).exchanges == 3
        assert await first is None, "it lost the lease, and does not say that it is done"


async def test_a_failure_is_counted_logged_and_tried_again(database_url, monkeypatch, caplog):
    clock = Clock()
    async with open_database(database_url) as database:
        await fill(database, range(3), Rule(upstream="honest", payload_days=7))
        keeper = Housekeeper(database, now=clock)

        async def gone(*_, **__):
            raise DatabaseUnreachable("the database does not work: gone")

        with monkeypatch.context() as patched:
            patched.setattr(housekeeping, "purge", gone)
            assert await keeper.look() is None
        row = await chore(database)
        assert (row.failures, row.problem, row.lease_until) == (1, "the database does not work: gone", None)
        assert "retention failed" in caplog.text
        assert await keeper.look() is None, "not before its time"
        clock.now += RETRY
        assert (await keeper.look()).exchanges == 3
        assert ((await chore(database)).failures, (await chore(database)).problem) == (1, None)


async def test_it_runs_beside_the_writer_and_ends_with_it(database_url, monkeypatch):
    monkeypatch.setattr(housekeeping, "LOOK_SECONDS", 0.01)
    async with open_database(database_url) as database:
        await fill(database, range(0), Rule(upstream="honest", payload_days=7))
        async with database.writing() as session:
            await exchanges.record(session, [unaudited(1, created_at=datetime(2020, 1, 1, tzinfo=timezone.utc))])
        async with housekeeping.housekeeping(database):
            while await ids(database):  # noqa: ASYNC110 (a database tells nobody)
                await asyncio.sleep(0.01)
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "housekeeping"]


async def test_tomorrows_partition_is_there_before_tomorrow(postgres_url):
    now = datetime(2026, 12, 1, 23, 59, tzinfo=timezone.utc)
    async with open_database(postgres_url) as database:
        await Housekeeper(database, now=Clock(now)).look()
        async with database.reading() as session:
            assert await session.scalar(text("SELECT to_regclass('exchanges_20261202') IS NOT NULL"))


async def test_the_next_purge_begins_where_the_last_one_ended(database_url):
    """What waits for its audit holds the mark back; what comes late by less than a day is found."""
    rule = Rule(upstream="honest", redact_verified=True)
    async with open_database(database_url) as database:
        await fill(database, range(1000, 1003), rule)
        async with database.writing() as session:
            await exchanges.record(session, [exchange(1)])
        now = NOON + 9 * DAY
        assert (await retention.purge(database, now=now, again=False)).redacted == 3
        async with database.writing() as session:
            (claim,) = await jobs.claim(session, worker="w", limit=9, lease=DAY, now=now)
            assert await jobs.complete(session, claim)
            await audits.add(session, [audit(1)])
        assert (await retention.purge(database, now=now, again=False)).redacted == 1
        await fill(database, range(4, 5), rule)
        assert (await retention.purge(database, now=now, again=False)).redacted == 0, "nine days late"
        await fill(database, range(8 * 86_400 + 100, 8 * 86_400 + 101), rule)
        assert (await retention.purge(database, now=now, again=False)).redacted == 1, "within a day"
        assert (await retention.purge(database, now=now)).redacted == 1, "a purge by hand looks at all"


async def test_audits_go_in_small_steps(database_url):
    async with open_database(database_url) as database:
        await fill(database, range(0), Rule(upstream="honest", verdict_days=5))
        async with database.writing() as session:
            await audits.add(session, [audit(number) for number in range(CHUNK + 7)])
        steps = []

        async def pace(seconds: float) -> None:
            steps.append(seconds)

        assert (await retention.purge(database, now=NOON + 9 * DAY, pace=pace)).audits == CHUNK + 7
        assert len(steps) == 2
        async with database.reading() as session:
            assert list(await session.scalars(select(Audit))) == []
