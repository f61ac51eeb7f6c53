"""Exchange and job are one: both are written, or neither, and only once."""

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from storage_rows import exchange, unaudited

from storage import exchanges, jobs
from storage.database import Database, open_database
from storage.models import Exchange, Job


async def test_exchanges_to_be_audited_get_a_job(database_url):
    batch = [exchange(1), unaudited(2), exchange(3)]
    async with open_database(database_url) as database:
        async with database.writing() as session:
            assert await exchanges.record(session, batch) == 3
        async with database.reading() as session:
            assert set(await session.scalars(select(Job.exchange_id))) == {"0193-0001", "0193-0003"}
            backlog = await jobs.pending(session)
    assert (backlog.todo, backlog.oldest) == (2, batch[0].created_at)


async def test_writing_again_changes_nothing(database_url):
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [exchange(1)])
        async with database.writing() as session:
            twice = [exchange(1, model="other"), exchange(2), exchange(2)]
            assert await exchanges.record(session, twice) == 1
        async with database.reading() as session:
            stored = await exchanges.get(session, ["0193-0001", "0193-0002", "unknown"])
            assert await exchanges.get(session, ["0193-0001"], since=exchange(2).created_at) == {}
            between = {"since": exchange(1).created_at, "until": exchange(1).created_at}
            assert set(await exchanges.get(session, list(stored), **between)) == {"0193-0001"}
            assert await session.scalar(select(func.count()).select_from(Job)) == 2
    assert [row.model for row in stored.values()] == ["smollm2", "smollm2"]


async def test_an_exception_leaves_neither_exchange_nor_job(database_url):
    async def record_and_break(database: Database) -> None:
        async with database.writing() as session:
            await exchanges.record(session, [exchange(1)])
            raise RuntimeError("power cut")

    async with open_database(database_url) as database:
        with pytest.raises(RuntimeError, match="power cut"):
            await record_and_break(database)
        async with database.reading() as session:
            assert await session.scalar(select(func.count()).select_from(Exchange)) == 0
            assert (await jobs.pending(session)).todo == 0


async def test_a_large_batch_exceeds_no_limit_on_parameters(database_url):
    async with open_database(database_url) as database, database.writing() as session:
        assert await exchanges.record(session, [exchange(i) for i in range(2500)]) == 2500
        assert await exchanges.record(session, []) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"unaudited_reason": "passthrough"}, "must be audited or have one reason"),
        ({"audit": False}, "must be audited or have one reason"),
        ({"reference": None}, "names no reference"),
        ({"outcome": "fine"}, "'fine' is not a valid Outcome"),
    ],
)
def test_an_exchange_is_audited_or_has_one_reason(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        exchange(1, **changes)


async def test_the_database_holds_that_too(database_url):
    values = {**vars(exchange(1)), "unaudited_reason": "passthrough"}
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [exchange(2)])
        with pytest.raises(IntegrityError, match="audited_or_reason"):
            async with database.writing() as session:
                session.add(Exchange(**values))
