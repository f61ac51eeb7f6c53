"""Rotation: payloads that lie sealed under an older key, or open, are sealed under the newest."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text

from storage.columns import dump_json
from storage.database import Database
from storage.errors import BadKeys, PayloadSealed
from storage.sealing import KEYS, KeyRing, sealed_under

_AT_ONCE = 200
_NEXT = text(
    "SELECT id, created_at, CAST(request AS text) AS request, CAST(response AS text) AS response FROM exchanges "
    "WHERE id > :after ORDER BY id LIMIT :count"
)


async def reseal(database: Database) -> int:
    """Seal every payload under the newest key; returns how many exchanges changed.

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
                return changed
            for row in found:
                new = _resealed(dict(row), database.keys)
                if new:
                    kind = "json" if session.get_bind().dialect.name == "postgresql" else "text"
                    parts = ", ".join(f"{name} = CAST(:{name} AS {kind})" for name in new)
                    statement = text(f"UPDATE exchanges SET {parts} WHERE id = :id")
                    await session.execute(statement, {**new, "id": row["id"]})
                    changed += 1
            after = found[-1]["id"]


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
