"""The door to the database: opened once per process, then transactions."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from storage.columns import KEYS_OF_DIALECT
from storage.engines import (
    BUSY_SECONDS,
    Engines,
    describe,
    is_sqlite,
    make_engines,
    parse_url,
)
from storage.errors import DatabaseBusy, DatabaseUnreachable, SchemaMissing, StorageError
from storage.models import Base
from storage.schema import ensure_schema
from storage.sealing import KeyRing, keys_from


class Database:
    """An open database at the code's schema revision. `where` is its address without secrets; `keys` open and
    seal payloads, None where they lie open."""

    def __init__(self, engines: Engines, *, where: str, revision: str, keys: KeyRing | None) -> None:
        self._engines = engines
        self.where = where
        self.revision = revision
        self.keys = keys

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """One read-only transaction: a consistent view. Never waits for a writer."""
        async with _transaction(self._engines.reader, self.where) as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """One transaction: commits at the end, rolls back on any exception.

        On SQLite it holds the write lock from the start, so that it cannot fail half way for a lock; keep it
        short and never open one inside another. Raises DatabaseBusy or DatabaseUnreachable; IntegrityError
        and the like come through as SQLAlchemy's own.
        """
        async with _transaction(self._engines.writer, self.where) as session:
            yield session


@asynccontextmanager
async def open_database(url: str, *, upgrade: bool = True) -> AsyncIterator[Database]:
    """The database at `sqlite:///path.db` or `postgresql://user@host/name`, at the code's schema.

    With `upgrade` a missing or older schema is made or migrated first (safe from several processes at once);
    without it nothing is created, and SchemaMissing or SchemaOutdated says so. The keys of sealed payloads are those
    of the environment (`storage.sealing`). Raises the errors of `storage.errors`.
    """
    parsed = parse_url(url)
    where, keys = describe(parsed), keys_from()
    engines = make_engines(parsed, loads=json.loads if keys is None else keys.loads)
    for engine in (engines.reader, engines.writer):
        setattr(engine.dialect, KEYS_OF_DIALECT, keys)
    try:
        with _opening(where):
            if is_sqlite(parsed):
                await asyncio.to_thread(_prepare_sqlite, Path(str(parsed.database)), create=upgrade)
            revision = await ensure_schema(engines.reader, engines.migrator, upgrade=upgrade, where=where)
        yield Database(engines, where=where, revision=revision, keys=keys)
    finally:
        await engines.dispose()


async def insert_new(
    session: AsyncSession, model: type[Base], rows: Sequence[Mapping[str, Any]]
) -> list[Any]:
    """Inserts the rows whose primary key (or other unique key) is not there yet.

    Returns the first column of the primary key of each inserted row, in no order.
    """
    if not rows:
        return []
    table = model.__table__
    assert isinstance(table, Table)
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).on_conflict_do_nothing().returning(next(iter(table.primary_key)))
    return list(await session.scalars(statement, [dict(row) for row in rows]))


@asynccontextmanager
async def _transaction(engine: AsyncEngine, where: str) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine, expire_on_commit=False) as session:
        with _clear_errors(where):
            async with session.begin():
                with _opening(where):
                    await session.connection()
                yield session


@contextmanager
def _opening(where: str) -> Iterator[None]:
    """Every failure to connect, whichever library raises it, as one sentence."""
    try:
        with _clear_errors(where):
            yield
    except StorageError:
        raise
    except Exception as error:
        raise DatabaseUnreachable(f"cannot open the database {where}: {_first_line(error)}") from error


@contextmanager
def _clear_errors(where: str) -> Iterator[None]:
    """Failures of the database, not of the statement, as one sentence."""
    try:
        yield
    except PoolTimeoutError as error:
        raise DatabaseBusy(f"the database {where} was busy for {BUSY_SECONDS:g} s: try again") from error
    except (IntegrityError, ProgrammingError, NotSupportedError):
        raise
    except DBAPIError as error:
        raise _translated(error, where) from error


def _translated(error: DBAPIError, where: str) -> Exception:
    reason = _first_line(error.orig or error)
    if "database is locked" in reason:
        return DatabaseBusy(f"the database {where} was locked for {BUSY_SECONDS:g} s: try again")
    # the three classes themselves: what derives from DatabaseError blames the statement
    if type(error) in (OperationalError, InterfaceError, DatabaseError) or error.connection_invalidated:
        return DatabaseUnreachable(f"the database {where} does not work: {reason}")
    return error


def blames_the_row(error: BaseException) -> bool:
    """Whether a failed statement would succeed without the row that it was given: nothing that waiting mends."""
    if isinstance(error, (IntegrityError, DataError, ValueError, TypeError, OverflowError)):
        return True
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    original = getattr(cause, "orig", None)
    # 22: a value that its type cannot hold; 23: a constraint. asyncpg refuses some values before it sends them.
    state = getattr(original, "sqlstate", None) or ""
    return state[:2] in ("22", "23") or isinstance(getattr(original, "__cause__", None), ValueError)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _prepare_sqlite(path: Path, *, create: bool) -> None:
    if not path.exists():
        if not create:
            raise SchemaMissing(f"there is no database at {path} yet: run `seedproof db upgrade`")
        path.parent.mkdir(parents=True, exist_ok=True)
    _switch_to_wal(path)


def _switch_to_wal(path: Path) -> None:
    """Readers and a writer side by side, for good: the file remembers it.

    Retries by itself, because SQLite does not apply its busy timeout to this switch.
    """
    give_up = time.monotonic() + BUSY_SECONDS
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)
                continue
            if mode != "wal":
                raise OSError(f"its file system cannot keep a write-ahead log (journal mode {mode})")
            return
