"""Opening a database: its address, its failures in one sentence, its transactions."""

import asyncio
import sqlite3

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from storage_rows import exchange

from storage import exchanges, jobs
from storage.database import Database, open_database
from storage.engines import describe, parse_url
from storage.errors import BadDatabaseUrl, DatabaseUnreachable, StorageError


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("audit.db", "is no URL; write sqlite:///"),
        ("sqllite:///x.db", "did you mean 'sqlite'"),
        ("postgress://h/d", "did you mean 'postgresql'"),
        ("mongodb://h/d", "use 'sqlite' or 'postgresql'"),
        ("sqlite://x.db", "three slashes before its path: sqlite:///x.db"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
    ],
)
def test_a_bad_address_is_explained(url, sentence):
    with pytest.raises(BadDatabaseUrl, match=sentence):
        parse_url(url)


def test_addresses_are_shown_without_password():
    assert describe(parse_url("postgres://me:secret@db/audit")) == "postgresql://me:***@db/audit"
    assert describe(parse_url("sqlite:////var/audit.db")) == "/var/audit.db"


def test_libpq_says_sslmode_where_asyncpg_says_ssl():
    assert dict(parse_url("postgresql://db/audit?sslmode=require").query) == {"ssl": "require"}


async def check_refused(url: str, *sentences: str) -> None:
    with pytest.raises(DatabaseUnreachable) as caught:
        async with open_database(url):
            pass
    message = str(caught.value)
    assert "\n" not in message
    assert all(sentence in message for sentence in sentences), message


async def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    await check_refused(f"sqlite:///{tmp_path}/file/audit.db", "cannot open the database", "/file/audit.db")
    await check_refused(f"sqlite:///{tmp_path}", "unable to open database file")


async def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "notes.txt").write_text("dear diary, " * 100)
    await check_refused(f"sqlite:///{tmp_path}/notes.txt", "file is not a database")


async def test_a_postgres_that_is_not_there(tmp_path):
    pytest.importorskip("asyncpg")
    await check_refused(f"postgresql://me:secret@/audit?host={tmp_path}", "cannot open", "me:***@")


async def test_a_postgres_database_that_is_not_there(postgres_server):
    await check_refused(f"postgresql://postgres@/none?host={postgres_server}", '"none" does not exist')


async def test_missing_directories_are_made(tmp_path):
    async with open_database(f"sqlite:///{tmp_path}/a/b/audit.db"):
        assert (tmp_path / "a/b/audit.db").exists()


async def test_sqlite_keeps_a_synchronous_write_ahead_log(sqlite_url):
    async with open_database(sqlite_url) as database, database.writing() as session:
        pragmas = {
            name: await session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


async def test_reading_cannot_write(database_url):
    async with open_database(database_url) as database:
        with pytest.raises((StorageError, DBAPIError)):
            async with database.reading() as session:
                await exchanges.record(session, [exchange(1)])


async def test_a_reader_sees_one_moment_and_waits_for_no_writer(sqlite_url):
    async with open_database(sqlite_url) as database, database.reading() as reader:
        assert (await jobs.pending(reader)).todo == 0
        async with database.writing() as writer:
            await exchanges.record(writer, [exchange(1)])
        assert (await jobs.pending(reader)).todo == 0


async def test_writers_of_one_process_take_turns(database_url):
    async def write(number: int) -> None:
        async with database.writing() as session:
            await exchanges.record(session, [exchange(number)])

    async with open_database(database_url) as database:
        await asyncio.gather(*(write(i) for i in range(40)))
        async with database.reading() as session:
            assert (await jobs.pending(session)).todo == 40


async def test_a_writer_that_is_cancelled_leaves_the_database_usable(database_url):
    async def write(started: asyncio.Event) -> None:
        async with database.writing() as session:
            await exchanges.record(session, [exchange(1)])
            started.set()
            await asyncio.Event().wait()

    async with open_database(database_url) as database:
        started = asyncio.Event()
        task = asyncio.create_task(write(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with database.writing() as session:
            assert await exchanges.record(session, [exchange(1)]) == 1


async def test_a_database_that_breaks_later_says_so(sqlite_url, tmp_path):
    async def fill_the_disk(database: Database) -> None:
        async with database.writing() as session:
            await session.execute(text("PRAGMA max_page_count = 1"))
            await exchanges.record(session, [exchange(i) for i in range(500)])

    async with open_database(sqlite_url) as database:
        with pytest.raises(DatabaseUnreachable, match=r"audit\.db does not work: database or disk is full"):
            await fill_the_disk(database)
    with sqlite3.connect(tmp_path / "audit.db") as connection:
        assert connection.execute("SELECT count(*) FROM exchanges").fetchone() == (0,)
    connection.close()
