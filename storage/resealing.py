"""Rotation: payloads that lie sealed under an older key, or open, are sealed under the newest."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import LargeBinary, select, text, tuple_, type_coerce, update

from storage.columns import dump_json
from storage.database import Database
from storage.errors import BadKeys, PayloadSealed
from storage.models import Audit
from storage.sealing import KEYS, KeyRing, bytes_sealed_under, sealed_under

_AT_ONCE = 200
_NEXT = text(
    "SELECT id, created_at, CAST(request AS text) AS request, CAST(response AS text) AS response FROM exchanges "
    "WHERE id > :after ORDER BY id LIMIT :count"
)


_BLOBS = ("scores", "pieces")


async def reseal(database: Database) -> int:
    """Seal every payload, and what audits hold of it, under the newest key; returns how many exchanges changed.

    Raises:
        BadKeys: the environment names no keys.
        PayloadSealed: a payload's key is not among them; what came before it is done.
    """
    if database.keys is None:
        raise BadKeys(f"no payload keys are given: set {KEYS}")
    after, changed = "", 0
    while True:
        async with database.writing() as session:
            found = (await session.execute(_NEXT, {"after": after, "count": _AT_ONCE})).mappings().all()
            if not found:
                break
            for row in found:
                new = _resealed(dict(row), database.keys)
                if new:
                    kind = "json" if session.get_bind().dialect.name == "postgresql" else "text"
                    parts = ", ".join(f"{name} = CAST(:{name} AS {kind})" for name in new)
                    statement = text(f"UPDATE exchanges SET {parts} WHERE id = :id")
                    await session.execute(statement, {**new, "id": row["id"]})
                    changed += 1
            after = found[-1]["id"]
    await _reseal_audits(database, database.keys)
    return changed


async def _reseal_audits(database: Database, keys: KeyRing) -> None:
    # as they lie there: the column's own type would open them
    blobs_of = [type_coerce(getattr(Audit, name), LargeBinary) for name in _BLOBS]
    columns: tuple[Any, ...] = (Audit.exchange_id, Audit.choice_index, *blobs_of)
    place: tuple[str, int] = ("", -1)
    while True:
        async with database.writing() as session:
            after = tuple_(Audit.exchange_id, Audit.choice_index) > place
            query = select(*columns).where(after).order_by(Audit.exchange_id, Audit.choice_index).limit(_AT_ONCE)
            found = (await session.execute(query)).all()
            if not found:
                return
            for exchange_id, choice_index, *blobs in found:
                place = (exchange_id, choice_index)
                new = _opened_blobs(exchange_id, dict(zip(_BLOBS, blobs, strict=True)), keys)
                if new:
                    mine = (Audit.exchange_id == exchange_id, Audit.choice_index == choice_index)
                    await session.execute(update(Audit).where(*mine).values(new))


def _opened_blobs(exchange_id: str, blobs: Mapping[str, bytes | None], keys: KeyRing) -> dict[str, bytes]:
    """The blobs that have to be sealed anew, open: the column seals what it is given."""
    opened = {}
    for name, blob in blobs.items():
        if blob is None or bytes_sealed_under(blob) == keys.newest:
            continue
        opened[name] = keys.open_bytes(blob)
        if (key_id := bytes_sealed_under(opened[name])) is not None:
            raise PayloadSealed(f"the audit of {exchange_id} is sealed under key {key_id!r}, which is not given")
    return opened


def _resealed(row: Mapping[str, Any], keys: KeyRing) -> dict[str, str]:
    """The columns of a row that have to change."""
    changed = {}
    for name in ("request", "response"):
        value = json.loads(row[name])
        if value == {} or sealed_under(value) == keys.newest:
            continue
        opened = keys.loads(row[name])
        if (key_id := sealed_under(opened)) is not None:
            raise PayloadSealed(f"exchange {row['id']} is sealed under key {key_id!r}, which is not given")
        changed[name] = keys.seal(dump_json(opened))
    return changed
