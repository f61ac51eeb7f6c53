"""From a database URL to SQLAlchemy engines, with the settings that each database needs."""

import difflib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, AsyncAdaptedQueuePool, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from storage.columns import dump_json
from storage.errors import BadDatabaseUrl, DriverMissing

BUSY_SECONDS = 10.0
"""How long a writer waits for other writers before it fails."""
CONNECT_SECONDS = 10.0

Loads = Callable[[str], Any]

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


@dataclass(frozen=True)
class Engines:
    """`migrator` is for the schema alone; it lives as long as the migration."""

    reader: AsyncEngine
    writer: AsyncEngine
    migrator: AsyncEngine

    async def dispose(self) -> None:
        for engine in (self.reader, self.writer, self.migrator):
            await engine.dispose()


def parse_url(url: str) -> URL:
    """The URL with the async driver in it. Raises BadDatabaseUrl; the text never repeats a password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise BadDatabaseUrl(
            "the database address is no URL; "
            "write sqlite:///path/to/file.db or postgresql://user@host/database"
        ) from error
    if parsed.drivername not in _DRIVERS:
        near = difflib.get_close_matches(parsed.drivername, ["sqlite", "postgresql"], 1, 0.5)
        raise BadDatabaseUrl(
            f"the database address starts with {parsed.drivername!r}; "
            + (f"did you mean {near[0]!r}?" if near else "use 'sqlite' or 'postgresql'")
        )
    parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    return _sqlite_url(parsed) if is_sqlite(parsed) else _postgres_url(parsed)


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def describe(url: URL) -> str:
    """The address as people know it, without password and driver."""
    if is_sqlite(url):
        return str(url.database)
    return url.set(drivername="postgresql").render_as_string(hide_password=True)


def make_engines(url: URL, *, loads: Loads = json.loads) -> Engines:
    """Engines for the parsed URL; `loads` reads their JSON. Nothing connects yet. Raises DriverMissing."""
    if is_sqlite(url):
        settings: dict[str, Any] = {"url": url, "loads": loads}
        return Engines(
            reader=_sqlite_engine(**settings, begin="BEGIN", pragmas=("query_only = ON",), pool_size=5),
            # one connection: writers of this process queue in order instead of polling the file's lock
            writer=_sqlite_engine(**settings, begin="BEGIN IMMEDIATE", pragmas=("foreign_keys = ON",), pool_size=1),
            # foreign keys off: a migration that rebuilds a table drops the old one, which would cascade
            migrator=_sqlite_engine(
                **settings, begin="BEGIN IMMEDIATE", pragmas=("foreign_keys = OFF",), pool_size=1
            ),
        )
    engine = _postgres_engine(url, loads)
    return Engines(reader=engine.execution_options(postgresql_readonly=True), writer=engine, migrator=engine)


def _sqlite_url(url: URL) -> URL:
    if url.host:
        raise BadDatabaseUrl(f"a SQLite address has three slashes before its path: sqlite:///{url.host}")
    if url.database in (None, "", ":memory:"):
        raise BadDatabaseUrl("a SQLite address needs a file that all processes see: sqlite:///path/to/file.db")
    return url


def _postgres_url(url: URL) -> URL:
    # libpq's name, which every provider of databases prints; asyncpg's is ssl
    mode = url.query.get("sslmode")
    return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode}) if mode else url


def _sqlite_engine(
    url: URL, *, loads: Loads, begin: str, pragmas: tuple[str, ...], pool_size: int
) -> AsyncEngine:
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,  # SQLAlchemy before 2.0.38 does not pool SQLite files
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=BUSY_SECONDS,
        connect_args={"timeout": BUSY_SECONDS},
        json_serializer=dump_json,
        json_deserializer=loads,
    )

    # the driver begins its own transactions too late (at the first write) and none for DDL
    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("synchronous = FULL", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgres_engine(url: URL, loads: Loads) -> AsyncEngine:
    if importlib.util.find_spec("asyncpg") is None:
        raise DriverMissing("Postgres needs its driver: pip install 'seedproof[postgres]'")
    return create_async_engine(
        url,
        pool_size=5,
        max_overflow=5,
        pool_timeout=BUSY_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "timeout": CONNECT_SECONDS,
            "server_settings": {"application_name": "seedproof", "timezone": "UTC"},
        },
        json_serializer=dump_json,
        json_deserializer=loads,
    )
