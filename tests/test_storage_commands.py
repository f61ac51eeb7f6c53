"""`seedproof db`: what it prints, and one line where it cannot."""

import asyncio
import base64
from datetime import timedelta

import pytest
from click.testing import CliRunner
from storage_rows import NOON, exchange, unaudited

from storage import exchanges, retention
from storage.commands import db
from storage.database import open_database
from storage.housekeeping import Housekeeper
from storage.retention_rule import Rule
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


async def add_old_exchange(url: str) -> None:
    async with open_database(url) as database, database.writing() as session:
        await retention.set_rules(session, ["honest"], [Rule(upstream="honest", payload_days=7)])
        await exchanges.record(session, [unaudited(1, created_at=NOON - timedelta(days=2000))])


def test_purge_takes_away_what_is_past_its_days_and_status_tells_of_the_chore(database_url):
    asyncio.run(add_old_exchange(database_url))
    days = 2 if database_url.startswith("postgresql") else 0
    purged = CliRunner().invoke(db, ["purge", database_url])
    assert (purged.exit_code, purged.output) == (
        0, f"0 exchanges emptied, 1 deleted; audits of 0 exchanges deleted; {days} days dropped\n"
    )  # fmt: skip
    asyncio.run(keep_house(database_url))
    shown = CliRunner().invoke(db, ["status", database_url])
    assert shown.output.splitlines()[1] == "exchanges  0"
    assert shown.output.splitlines()[4] == "retention  done at 2026-11-23 12:00:00 UTC, 0 failures"


async def keep_house(url: str) -> None:
    async with open_database(url) as database:
        assert await Housekeeper(database, now=lambda: NOON).look() is not None


def test_reseal_needs_keys_and_seals_what_lies_open(database_url, monkeypatch):
    asyncio.run(add_exchange(database_url))
    assert CliRunner().invoke(db, ["reseal", database_url]).exit_code == 1
    monkeypatch.setenv("SEEDPROOF_PAYLOAD_KEYS", f"k1:{base64.b64encode(bytes(32)).decode()}")
    for sealed in (1, 0):
        done = CliRunner().invoke(db, ["reseal", database_url])
        assert (done.exit_code, done.output) == (0, f"{sealed} exchanges sealed anew\n")


@pytest.mark.parametrize("url", ["sqlite:///{}/none.db", "sqlite://", "mysql://h/d"])
def test_failures_are_one_line(url, tmp_path):
    result = CliRunner().invoke(db, ["status", url.format(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
