"""The hot path: rows of exchanges and their jobs into the tables, a batch in a few statements."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from storage import partitions
from storage.columns import dump_json
from storage.exchange_codec import ExchangeRow
from storage.models import Erasure
from storage.postgres_copy import copy
from storage.turns import turns

_COLUMNS = ExchangeRow._fields
_JOB = "exchange_id, upstream, reference, state, created_at, run_at, turn, attempts, lease_token"

_SQLITE_EXCHANGES = f"INSERT INTO exchanges ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_SQLITE_JOBS = f"INSERT INTO jobs ({_JOB}) VALUES (?, ?, ?, 'todo', ?, ?, ?, 0, 0) ON CONFLICT DO NOTHING"

_POSTGRES_KNOWN = text("""
    SELECT id FROM exchanges WHERE id = ANY(CAST(:ids AS text[])) AND created_at BETWEEN :first AND :last
""")
_POSTGRES_JOBS = f"""
    INSERT INTO jobs ({_JOB})
    SELECT id, upstream, reference, 'todo', created_at, created_at, turn, 0, 0
    FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[])
         AS given (id, upstream, reference, created_at, turn)
    ON CONFLICT DO NOTHING
"""


async def insert_rows(session: AsyncSession, rows: Sequence[ExchangeRow]) -> int:
    """Insert the rows that are new, with the jobs of those to be audited; returns how many were new."""
    if not rows:
        return 0
    unique = list({row.id: row for row in reversed(await _unerased(session, rows))}.values())[::-1]
    if session.get_bind().dialect.name == "postgresql":
        return await _insert_on_postgres(session, unique)
    return await _insert_on_sqlite(session, unique)


async def _unerased(session: AsyncSession, rows: Sequence[ExchangeRow]) -> Sequence[ExchangeRow]:
    """The rows without those of users who were erased after the request: a journal may hold some still."""
    users = {row.user_hash for row in rows if row.user_hash is not None}
    if not users:
        return rows
    found = await session.execute(select(Erasure.user_hash, Erasure.erased_at).where(Erasure.user_hash.in_(users)))
    erased = {user: moment for user, moment in found}  # noqa: C416 (rows are no pairs to the type checker)
    return [row for row in rows if row.user_hash not in erased or row.created_at > erased[row.user_hash]]


async def _insert_on_sqlite(session: AsyncSession, rows: Sequence[ExchangeRow]) -> int:
    # the transaction holds the write lock from its start: what is not there now comes from nobody else
    known = await _known(session, [row.id for row in rows])
    new = [row for row in rows if row.id not in known]
    audited = [row for row in new if row.audit]
    connection = await session.connection()
    if new:
        await connection.exec_driver_sql(_SQLITE_EXCHANGES, [_sqlite_values(row) for row in new])
    jobs = [
        (row.id, row.upstream, row.reference, _sqlite_moment(row.created_at), _sqlite_moment(row.created_at), turn)
        for row, turn in zip(audited, await turns(session, audited), strict=True)
    ]
    if jobs:
        await connection.exec_driver_sql(_SQLITE_JOBS, jobs)
    return len(new)


async def _known(session: AsyncSession, ids: Sequence[str]) -> set[str]:
    found = await session.scalars(
        text("SELECT id FROM exchanges WHERE id IN (SELECT value FROM json_each(:ids))"), {"ids": dump_json(ids)}
    )
    return set(found)


async def _insert_on_postgres(session: AsyncSession, rows: Sequence[ExchangeRow]) -> int:
    """By COPY, which takes half the server's time of an INSERT; it knows no ON CONFLICT, so what is there stays out."""
    moments = [row.created_at for row in rows]
    await partitions.ensure(session, moments)
    bounds = {"first": min(moments, default=None), "last": max(moments, default=None)}
    known = set(await session.scalars(_POSTGRES_KNOWN, {"ids": [row.id for row in rows], **bounds}))
    new = [row for row in rows if row.id not in known]
    await copy(session, "exchanges", _COLUMNS, new)
    audited = [row for row in new if row.audit]
    if audited:
        names = ("id", "upstream", "reference", "created_at")
        columns = [[getattr(row, name) for row in audited] for name in names]
        connection = await session.connection()
        await connection.exec_driver_sql(_POSTGRES_JOBS, (*columns, await turns(session, audited)))
    return len(new)


def _sqlite_values(row: ExchangeRow) -> tuple[Any, ...]:
    return (row[0], _sqlite_moment(row.created_at), *row[2:])


def _sqlite_moment(moment: datetime) -> str:
    """As SQLAlchemy writes it; rows' moments are in UTC."""
    return moment.isoformat(" ", "microseconds")[:26]
