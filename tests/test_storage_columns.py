"""What strangers write is stored on both databases, and time is one instant everywhere."""

import json
import math
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import text
from sqlalchemy.exc import StatementError
from storage_rows import NOON, audit, exchange

from storage import audits, exchanges
from storage.columns import dump_json
from storage.database import open_database
from storage.exchange_codec import ExchangeRow
from storage.models import Exchange

HOSTILE = "a\0b\ud800c😀"


async def test_hostile_text_and_json_come_back(database_url):
    not_numbers = {"logprob": [-math.inf, math.nan]}
    written = exchange(1, model=HOSTILE, request={"content": HOSTILE}, response=not_numbers)
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [written])
        async with database.reading() as session:
            row = (await exchanges.get(session, [written.id]))[written.id]
    assert row.model == "a\ufffdb\ufffdc😀"
    assert row.request == {"content": HOSTILE}
    assert row.response == {"logprob": [None, None]}


async def test_every_field_comes_back(database_url):
    written = exchange(1)
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [written])
        async with database.reading() as session:
            row = (await exchanges.get(session, [written.id]))[written.id]
    assert {name: getattr(row, name) for name in vars(written)} == vars(written)


async def test_time_is_compared_as_an_instant(database_url):
    eastern = NOON.astimezone(timezone(timedelta(hours=9))) + timedelta(minutes=2)
    rows = [audit(1, created_at=NOON), audit(2, created_at=eastern)]
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await audits.add(session, rows)
        async with database.reading() as session:
            (later,) = await audits.summary(session, since=NOON + timedelta(minutes=1))
            days = await session.execute(text("SELECT date(created_at) FROM audits"))
            assert {str(day) for (day,) in days} == {"2026-11-23"}
    assert later.requests == 1


async def test_a_time_without_zone_is_refused(sqlite_url):
    naive = datetime(2026, 1, 1)
    async with open_database(sqlite_url) as database, database.writing() as session:
        with pytest.raises(StatementError, match="no time zone"):
            await audits.add(session, [audit(1, created_at=naive)])
    with pytest.raises(ValueError, match="no time zone"):
        exchange(1, created_at=naive)


def test_json_nested_beyond_python_leaves_a_marker():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert json.loads(dump_json(deep)) == {"unstorable": "nested too deeply"}


def test_exchange_columns_are_the_fields():
    assert set(Exchange.__table__.columns.keys()) - {"redacted_at"} == set(vars(exchange(1)))
    assert set(ExchangeRow._fields) == set(vars(exchange(1)))
