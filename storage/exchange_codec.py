"""An exchange as the journal's bytes and as a row of the database. Pure.

JSON is written once, in the proxy, and travels as text from there into the table. A payload, little-endian: the
version byte 1, five u32 lengths, then the parts: the scalar columns as one JSON array, and the texts of `request`,
`forced`, `overridden` and `response`.
"""

import struct
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from storage.columns import clean_text, dump_json
from storage.errors import CorruptRecord

if TYPE_CHECKING:
    from storage.exchanges import NewExchange

VERSION = 1
_LENGTHS = struct.Struct("<B5I")

Seal = Callable[[str], str]
"""JSON text in, JSON text out that only the holder of a key can read."""


class ExchangeRow(NamedTuple):
    """The columns of `exchanges` in the order in which they are inserted; JSON as text."""

    id: str
    created_at: datetime
    upstream: str
    endpoint: str
    model: str
    streamed: bool
    status: int
    outcome: str
    first_byte_seconds: float | None
    total_seconds: float
    audit: bool
    unaudited_reason: str | None
    reference: str | None
    sampler: str | None
    user_hash: str | None
    request: str
    forced: str
    overridden: str
    response: str


def row_of(exchange: "NewExchange", seal: Seal | None = None) -> ExchangeRow:
    """The row of an exchange; `seal` is applied to what the client and the provider wrote."""
    secret = seal or _as_it_is
    return ExchangeRow(
        id=exchange.id, created_at=exchange.created_at.astimezone(timezone.utc), upstream=exchange.upstream,
        endpoint=clean_text(exchange.endpoint), model=clean_text(exchange.model), streamed=exchange.streamed,
        status=exchange.status, outcome=exchange.outcome, first_byte_seconds=exchange.first_byte_seconds,
        total_seconds=exchange.total_seconds, audit=exchange.audit, unaudited_reason=exchange.unaudited_reason,
        reference=exchange.reference, sampler=exchange.sampler, user_hash=exchange.user_hash,
        request=secret(json_text(exchange.request)), forced=json_text(exchange.forced),
        overridden=json_text(exchange.overridden), response=secret(json_text(exchange.response)),
    )  # fmt: skip


def pack(row: ExchangeRow) -> bytes:
    """The journal's payload."""
    texts = (row.request, row.forced, row.overridden, row.response)
    parts = [orjson.dumps(row[: -len(texts)]), *(text.encode() for text in texts)]
    return _LENGTHS.pack(VERSION, *map(len, parts)) + b"".join(parts)


def unpack(payload: bytes) -> ExchangeRow:
    """The row of a payload. Raises CorruptRecord for what `pack` did not write."""
    try:
        version, *lengths = _LENGTHS.unpack_from(payload)
        if version != VERSION or _LENGTHS.size + sum(lengths) != len(payload):
            raise CorruptRecord(f"a journal record of version {version} and {len(payload)} bytes is not ours to read")
        start, parts = _LENGTHS.size, []
        for length in lengths:
            parts.append(payload[start : start + length])
            start += length
        scalars = orjson.loads(parts[0])
        scalars[1] = datetime.fromisoformat(scalars[1])
        return ExchangeRow(*scalars, *(part.decode() for part in parts[1:]))
    except (struct.error, ValueError, TypeError, IndexError) as error:
        raise CorruptRecord(f"a journal record does not follow its layout ({error})") from error


def json_text(value: Any) -> str:
    """Strict JSON; what orjson refuses (half a surrogate pair, deep nesting) as `dump_json` keeps it."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return dump_json(value)


def _as_it_is(text: str) -> str:
    return text
