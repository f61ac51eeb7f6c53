"""Column types that mean the same on SQLite and on Postgres, whatever a stranger's bytes hold."""

import json
import math
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import DateTime, Dialect, LargeBinary, Text, TypeDecorator

from storage.sealing import KeyRing

KEYS_OF_DIALECT = "seedproof_payload_keys"


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC: `timestamptz` on Postgres, `YYYY-MM-DD HH:MM:SS.ffffff` text on SQLite.

    Both order by time, and SQLite's `date()` reads the text. A naive datetime is refused with ValueError: it
    would mean another instant on another machine.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; give an aware datetime")
        return value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


class StrangersText(TypeDecorator[str]):
    """Text that a client or a provider may have written.

    Postgres keeps no NUL and no database keeps half a surrogate pair: both are stored as U+FFFD, since one
    such string would otherwise keep a whole batch of exchanges out of the database.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else clean_text(value)


class SealedBytes(TypeDecorator[bytes]):
    """What an answer says, as bytes: sealed at rest where the database was opened with payload keys.

    `storage.database` lays the keys on the engine's dialect, which is all that a column's type gets to see.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        keys: KeyRing | None = getattr(dialect, KEYS_OF_DIALECT, None)
        return value if value is None or keys is None else keys.seal_bytes(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        keys: KeyRing | None = getattr(dialect, KEYS_OF_DIALECT, None)
        return value if value is None or keys is None else keys.open_bytes(bytes(value))


def clean_text(value: str) -> str:
    """`value` with NUL and halves of surrogate pairs as U+FFFD."""
    return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def dump_json(value: Any) -> str:
    """`value` as strict ASCII JSON; NaN and infinities become null, nesting too deep for Python a marker.

    ASCII, because Postgres' `json` keeps the escapes of NUL and of lone surrogates but not the characters.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    except RecursionError:
        return '{"unstorable":"nested too deeply"}'


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
