"""`seedproof db`: what it prints, and one line where it cannot."""

import asyncio

import pytest
from click.testing import CliRunner
from storage_rows import exchange

from storage import exchanges
from storage.commands import db
from storage.database import open_database
from storage.schema import known_revisions


async def add_exchange(url: str) -> None:
    async with open_database(url) as database, database.writing() as session:
        await exchanges.record(session, [exchange(1)])


def test_upgrade_then_status(database_url):
    made = CliRunner().invoke(db, ["upgrade", database_url])
    assert (made.exit_code, f"schema {known_revisions()[0]}, up to date" in made.output) == (0, True)
    asyncio.run(add_exchange(database_url))
    shown = CliRunner().invoke(db, ["status"], env={"SEEDPROOF_STORE": database_url})
    assert shown.exit_code == 0
    assert shown.output.splitlines()[1:] == [
        "exchanges  1",
        "jobs       1 todo, 0 leased, 0 done, 0 failed",
        "audits     0",
        "oldest exchange without its audits: 2026-11-23 12:00:01 UTC",
    ]


@pytest.mark.parametrize("url", ["sqlite:///{}/none.db", "sqlite://", "mysql://h/d"])
def test_failures_are_one_line(url, tmp_path):
    result = CliRunner().invoke(db, ["status", url.format(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
