"""From segments into the database: once, in batches, whoever died; poison aside with its reason."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from datetime import datetime, timezone
from pathlib import Path

import pytest
from databases import someone_waits
from journals import until
from sqlalchemy import func, select
from storage_rows import exchange, unaudited

from storage import exchanges
from storage.database import Database, open_database
from storage.errors import DatabaseUnreachable
from storage.exchange_codec import ExchangeRow, pack, row_of, unpack
from storage.journal import Journal, segments
from storage.models import DeadLetter, Exchange, Job
from storage.writer import BATCH, DatabaseTarget, Writer

ROOT = Path(__file__).parent.parent


@pytest.fixture
async def database(database_url):
    async with open_database(database_url) as database:
        yield database


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "journal"


async def append(directory: Path, *payloads: bytes) -> None:
    async with Journal(directory) as journal:
        await asyncio.gather(*map(journal.append, payloads))


async def emptied(writer: Writer) -> None:
    async with writer.turn():
        while await writer.step():
            pass


async def ids(database: Database, column=Exchange.id) -> list[str]:
    async with database.reading() as session:
        return list(await session.scalars(select(column).order_by(column)))


class Failing(DatabaseTarget):
    """A database that first raises the given errors, and keeps the sizes of the batches that it took."""

    def __init__(self, database: Database, *errors: Exception) -> None:
        super().__init__(database)
        self.errors, self.batches = list(errors), []

    async def record(self, rows):
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append(len(rows))
        return await super().record(rows)


async def test_everything_is_written_once_and_the_segments_go(database, directory):
    payloads = [pack(row_of(exchange(number))) for number in range(BATCH + 20)]
    await append(directory, *payloads, *payloads[:9])
    writer = Writer(target := Failing(database), directory)
    await emptied(writer)
    assert target.batches == [BATCH, 29]
    assert await ids(database) == await ids(database, Job.exchange_id) == [f"0193-{n:04}" for n in range(BATCH + 20)]
    assert segments(directory) == []
    assert (writer.recorded, writer.buried) == (BATCH + 20, 0)


async def test_a_living_segment_is_read_while_it_grows(database, directory):
    writer = Writer(DatabaseTarget(database), directory)
    async with Journal(directory) as journal, writer.turn():
        for number in range(3):
            await journal.append(pack(row_of(unaudited(number))))
            assert await writer.step() == 1
        assert len(segments(directory)) == 1
        assert await writer.step() == 0
        assert len(await ids(database)) == 3


async def test_a_database_that_is_away_delays_and_loses_nothing(database, directory, caplog):
    await append(directory, pack(row_of(exchange(1))))
    away = DatabaseUnreachable("the database does not work: gone")
    await emptied(Writer(Failing(database, away, away), directory))
    assert await ids(database) == ["0193-0001"]
    assert "gone; 1 exchanges wait in the journal" in caplog.text


async def test_poison_goes_to_the_dead_letters_and_its_neighbours_do_not(database, directory, caplog):
    rows = [row_of(exchange(number)) for number in range(20)]
    rows[7] = rows[7]._replace(unaudited_reason="a user's words", audit=True)
    rows[9] = rows[9]._replace(request="{no json")
    await append(directory, *map(pack, rows), b"no record")
    writer = Writer(DatabaseTarget(database), directory, now=lambda: datetime(2026, 1, 1, tzinfo=timezone.utc))
    await emptied(writer)
    bad = {7, 9} if "postgres" in database.where else {7}
    assert await ids(database) == [f"0193-{n:04}" for n in range(20) if n not in bad]
    assert writer.buried == len(bad) + 1
    async with database.reading() as session:
        letters = list(await session.scalars(select(DeadLetter).order_by(DeadLetter.id)))
    assert unpack(letters[0].record).id == "0193-0007"
    assert letters[0].reason.startswith("IntegrityError")
    assert (letters[-1].record, "does not follow its layout" in letters[-1].reason) == (b"no record", True)
    assert "a user's words" not in caplog.text


class Slow(DatabaseTarget):
    """A database whose second batch waits until it is let through."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.reached, self.through, self.batches = asyncio.Event(), asyncio.Event(), 0

    async def record(self, rows):
        self.batches += 1
        if self.batches == 2:
            self.reached.set()
            await self.through.wait()
        return await super().record(rows)


async def test_what_is_read_ahead_is_not_lost_with_the_writer(database, directory):
    payloads = [pack(row_of(exchange(number))) for number in range(3 * BATCH + 20)]
    async with Journal(directory, segment_bytes=100_000) as journal:
        for first in range(0, len(payloads), 100):
            await asyncio.gather(*map(journal.append, payloads[first : first + 100]))
    running = asyncio.create_task(Writer(target := Slow(database), directory).run())
    await target.reached.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await ids(database) == [f"0193-{n:04}" for n in range(BATCH)]

    running = asyncio.create_task(Writer(DatabaseTarget(database), directory).run())
    await until(lambda: not segments(directory))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    everything = [f"0193-{n:04}" for n in range(len(payloads))]
    assert await ids(database) == await ids(database, Job.exchange_id) == everything


async def test_a_row_that_another_transaction_is_just_writing_is_no_poison(postgres_url, directory):
    """As after a lost connection whose COMMIT the server still works on when the batch comes again."""
    async with open_database(postgres_url) as database:
        await append(directory, pack(row_of(exchange(1))))
        writer = Writer(DatabaseTarget(database), directory)
        async with database.writing() as session:
            await exchanges.record(session, [exchange(1)])
            emptying = asyncio.create_task(emptied(writer))
            await someone_waits(database)
        await emptying
        assert await ids(database) == await ids(database, Job.exchange_id) == ["0193-0001"]
        assert (writer.recorded, writer.buried) == (0, 0)


async def test_writers_take_turns(database, directory):
    await append(directory, pack(row_of(exchange(1))))
    first, second = (Writer(DatabaseTarget(database), directory) for _ in range(2))
    async with first.turn():
        waiting = asyncio.create_task(second.run())
        await asyncio.sleep(0.02)
        assert await first.step() == 1
    async with Journal(directory) as journal:
        await journal.append(pack(row_of(exchange(2))))
        await until(lambda: second.recorded > 0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await ids(database) == ["0193-0001", "0193-0002"]


async def test_what_a_dead_process_left_is_written_and_nothing_twice(database, directory):
    """The child dies by kill -9 after some commits, with its segment and its turn in hand."""
    script = textwrap.dedent("""
        import asyncio, os, signal, sys
        from pathlib import Path
        sys.path[:0] = ["tests"]
        from storage_rows import exchange
        from storage.database import open_database
        from storage.exchange_codec import pack, row_of
        from storage.journal import Journal
        from storage.writer import DatabaseTarget, Writer

        async def main(url, directory):
            async with open_database(url) as database, Journal(directory) as journal:
                writer = Writer(DatabaseTarget(database), directory)
                async with writer.turn():
                    for number in range(40):
                        await journal.append(pack(row_of(exchange(number))))
                        if number < 25:
                            await writer.step()
                    os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
    """)
    command = [sys.executable, "-c", script, database_url_of(database), str(directory)]
    child = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert len(await ids(database)) == 25
    async with Journal(directory) as journal:
        await journal.append(pack(row_of(exchange(99))))
    await emptied(Writer(DatabaseTarget(database), directory))
    expected = [f"0193-{number:04}" for number in [*range(40), 99]]
    assert await ids(database) == await ids(database, Job.exchange_id) == expected
    assert segments(directory) == []


def database_url_of(database: Database) -> str:
    if database.where.startswith("/"):
        return f"sqlite:///{database.where}"
    return database.where


async def test_leftovers_of_a_death_at_birth_are_swept(directory, database):
    directory.mkdir()
    stale, young = directory / ".1-2-aa.journal", directory / ".2-2-bb.journal"
    for path in (stale, young):
        path.touch()
    os.utime(stale, (0, 0))
    async with Writer(DatabaseTarget(database), directory).turn():
        assert (stale.exists(), young.exists()) == (False, True)


async def test_a_bug_of_the_target_is_no_reason_to_drop_a_record(database, directory):
    await append(directory, pack(row_of(exchange(1))))
    with pytest.raises(ZeroDivisionError):
        await emptied(Writer(Failing(database, ZeroDivisionError()), directory))
    await emptied(Writer(DatabaseTarget(database), directory))
    assert await ids(database) == ["0193-0001"]
    async with database.reading() as session:
        assert await session.scalar(select(func.count()).select_from(DeadLetter)) == 0


def test_rows_are_plain_tuples():
    assert isinstance(row_of(exchange(1)), ExchangeRow)
