"""Rotation: everything ends sealed under the newest key, and nothing is changed that cannot be opened."""

import base64

import pytest
from sqlalchemy import text
from storage_rows import exchange

from storage import exchanges
from storage.database import open_database
from storage.errors import BadKeys, PayloadSealed
from storage.exchange_codec import row_of
from storage.exchange_rows import insert_rows
from storage.resealing import reseal
from storage.sealing import KEYS, KeyRing

OLD, NEW = (f"{name}:{base64.b64encode(bytes([number]) * 32).decode()}" for number, name in enumerate(("old", "new")))


async def filled(url, monkeypatch):
    monkeypatch.setenv(KEYS, OLD)
    async with open_database(url) as database, database.writing() as session:
        await exchanges.record(session, [exchange(1)])
        await insert_rows(session, [row_of(exchange(2), KeyRing.parse(OLD).seal)])


async def lying_there(url):
    async with open_database(url) as database, database.reading() as session:
        rows = await session.execute(text("SELECT CAST(request AS text) FROM exchanges ORDER BY id"))
        return list(rows.scalars())


async def test_open_and_older_payloads_are_sealed_under_the_newest_key(database_url, monkeypatch):
    await filled(database_url, monkeypatch)
    monkeypatch.setenv(KEYS, f"{NEW},{OLD}")
    async with open_database(database_url) as database:
        assert await reseal(database) == 2
        assert await reseal(database) == 0
        async with database.reading() as session:
            found = await exchanges.get(session, ["0193-0001", "0193-0002"])
        assert [row.request["model"] for row in found.values()] == ["smollm2", "smollm2"]
    assert all(stored.startswith('{"$sealed":"new:') for stored in await lying_there(database_url))


async def test_a_missing_key_is_named_and_changes_nothing(database_url, monkeypatch):
    await filled(database_url, monkeypatch)
    before = await lying_there(database_url)
    monkeypatch.setenv(KEYS, NEW)
    async with open_database(database_url) as database:
        with pytest.raises(PayloadSealed, match="0193-0002 is sealed under key 'old'"):
            await reseal(database)
    assert await lying_there(database_url) == before
    monkeypatch.delenv(KEYS)
    async with open_database(database_url) as database:
        with pytest.raises(BadKeys, match="set SEEDPROOF_PAYLOAD_KEYS"):
            await reseal(database)
