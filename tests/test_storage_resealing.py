"""Rotation: everything ends sealed under the newest key, and nothing is changed that cannot be opened."""

import base64

import pytest
from sqlalchemy import LargeBinary, select, text, type_coerce
from storage_rows import audit, exchange

from storage import audits, exchanges
from storage.database import open_database
from storage.errors import BadKeys, PayloadSealed
from storage.exchange_codec import row_of
from storage.exchange_rows import insert_rows
from storage.models import Audit
from storage.pieces import pack_pieces
from storage.resealing import reseal
from storage.scores import pack_scores
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


async def test_what_audits_hold_of_an_answer_is_sealed_with_it(database_url, monkeypatch):
    scores, pieces = pack_scores({"token_ids": [1, 2]}), pack_pieces([b" secret", b" word"], [b"a", b"b"])

    async def lying() -> list[bytes]:
        async with open_database(database_url) as database, database.reading() as session:
            raw = select(type_coerce(Audit.scores, LargeBinary), type_coerce(Audit.pieces, LargeBinary))
            return [bytes(blob) for row in await session.execute(raw.order_by(Audit.exchange_id)) for blob in row]

    async def read() -> list:
        async with open_database(database_url) as database, database.reading() as session:
            return [(audit.scores, audit.pieces) for audit in await session.scalars(select(Audit))]

    for number, keys in enumerate((None, OLD)):
        if keys:
            monkeypatch.setenv(KEYS, keys)
        async with open_database(database_url) as database, database.writing() as session:
            await audits.add(session, [audit(number, scores=scores, pieces=pieces)])
    assert [blob[:4] for blob in await lying()] == [b"SPS1", b"SPS1", b"SPK1", b"SPK1"]
    monkeypatch.setenv(KEYS, f"{NEW},{OLD}")
    async with open_database(database_url) as database:
        await reseal(database)
    assert all(blob.startswith(b"SPK1\x03new") for blob in await lying())
    assert await read() == [(scores, pieces)] * 2
    monkeypatch.delenv(KEYS)
    assert all(blob[0].startswith(b"SPK1") for blob in await read())
