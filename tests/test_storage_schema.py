"""Migrations make what the models say, once, whoever comes first; newer and foreign tables are left alone."""

import asyncio
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, text

from storage import jobs
from storage.database import open_database
from storage.errors import SchemaForeign, SchemaMissing, SchemaOutdated, SchemaTooNew
from storage.models import Base
from storage.schema import VERSION_TABLE, known_revisions, needs_upgrade

ROOT = Path(__file__).parent.parent
NEWEST = known_revisions()[0]


def is_no_partition(_, name: str | None, kind: str, *__) -> bool:
    return not (kind == "table" and re.fullmatch(r"exchanges_\d{8}", name or ""))


def difference_from_models(connection: Connection) -> list:
    options = {"compare_type": True, "version_table": VERSION_TABLE, "include_object": is_no_partition}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


def checks(connection: Connection) -> set[tuple[str, str | None, str]]:
    found = inspect(connection)
    return {
        (table, check["name"], check["sqltext"])
        for table in Base.metadata.tables
        for check in found.get_check_constraints(table)
    }


async def test_the_migrations_make_what_the_models_say(database_url):
    async with open_database(database_url) as database, database.reading() as session:
        assert await (await session.connection()).run_sync(difference_from_models) == []


async def test_the_migrations_check_what_the_models_check(sqlite_url):
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        Base.metadata.create_all(connection)
        expected = checks(connection)
    engine.dispose()
    async with open_database(sqlite_url) as database, database.reading() as session:
        assert await (await session.connection()).run_sync(checks) == expected
    assert len(expected) == 18


async def test_opening_again_finds_the_work_done(database_url):
    for upgrade in (True, True, False):
        async with open_database(database_url, upgrade=upgrade) as database:
            assert database.revision == NEWEST


async def test_without_upgrade_nothing_is_made(sqlite_url, tmp_path):
    with pytest.raises(SchemaMissing, match="run `seedproof db upgrade`"):
        async with open_database(sqlite_url, upgrade=False):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_an_empty_postgres_needs_an_upgrade(postgres_url):
    with pytest.raises(SchemaMissing, match="run `seedproof db upgrade`"):
        async with open_database(postgres_url, upgrade=False):
            pass


async def set_revision(url: str, revision: str) -> None:
    async with open_database(url) as database, database.writing() as session:
        await session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'"))


@pytest.mark.parametrize("upgrade", [True, False])
async def test_a_newer_schema_is_left_alone(database_url, upgrade):
    await set_revision(database_url, "9999")
    sentence = rf"schema 9999, which is newer than this seedproof knows \({NEWEST}\): upgrade seedproof"
    with pytest.raises(SchemaTooNew, match=sentence):
        async with open_database(database_url, upgrade=upgrade):
            pass


async def test_tables_of_another_program_are_left_alone(database_url):
    async with open_database(database_url) as database, database.writing() as session:
        await session.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    tables = r"\(.*audits, calibrations, .*exchanges.*jobs.*streams.*\)"
    with pytest.raises(SchemaForeign, match=f"{tables}: give seedproof a database of its"):
        async with open_database(database_url):
            pass


def test_an_older_schema_names_both_and_the_way_out():
    error = needs_upgrade("0000", "0001", "audit.db")
    assert isinstance(error, SchemaOutdated)
    assert str(error) == (
        "audit.db has schema 0000 and this seedproof works with 0001: run `seedproof db upgrade`"
    )


async def test_first_openers_in_one_process_all_succeed(database_url):
    async def open_and_count() -> int:
        async with open_database(database_url) as database, database.reading() as session:
            return (await jobs.pending(session)).todo

    assert await asyncio.gather(*(open_and_count() for _ in range(6))) == [0] * 6


def test_first_openers_in_several_processes_all_succeed(database_url):
    script = textwrap.dedent("""
        import asyncio, sys
        from storage.database import open_database

        async def main(url):
            sys.stdin.readline()
            async with open_database(url) as database:
                print(database.revision)

        print("ready", flush=True)
        asyncio.run(main(sys.argv[1]))
    """)
    command = [sys.executable, "-c", script, database_url]
    pipe = subprocess.PIPE
    children = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [child.communicate(timeout=60) for child in children]
    assert results == [(f"{NEWEST}\n", "")] * 3
