"""COPY on Postgres: rows in the driver's binary form, past SQLAlchemy, inside its transaction."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import DatabaseBusy

_UNIQUE_VIOLATION = "23505"


async def copy(session: AsyncSession, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Append rows; the session's transaction must have begun on the server, by any statement.

    Raises SQLAlchemy's errors, as its own statements do, and DatabaseBusy where another transaction has just written a
    row of the same key: whoever tries again finds that row.
    """
    if not rows:
        return
    raw = await (await session.connection()).get_raw_connection()
    with _as_sqlalchemy_tells(table):
        await raw.driver_connection.copy_records_to_table(table, records=rows, columns=columns)  # type: ignore[union-attr]


@contextmanager
def _as_sqlalchemy_tells(table: str) -> Iterator[None]:
    from asyncpg import InterfaceError, PostgresError

    try:
        yield
    except (PostgresError, InterfaceError) as error:
        state = getattr(error, "sqlstate", None) or ""
        if state == _UNIQUE_VIOLATION:
            raise DatabaseBusy(f"another writer has just put the same rows into {table}: try again") from error
        kinds = {"22": DataError, "23": IntegrityError}
        kind = DataError if isinstance(error, ValueError) else kinds.get(state[:2], OperationalError)
        raise kind(f"COPY {table}", None, error) from error
