"""The schema's revision: found, compared with the code's, brought up to date by Alembic
(`storage/migrations`).

Any number of processes may open a fresh database at the same moment. One migrates, inside one transaction
that holds the write lock (SQLite) or an advisory lock (Postgres); the others wait and then find the work
done.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from storage import models_alerts, models_history, models_proxies, models_reaudits  # noqa: F401 (its tables belong to Base.metadata)
from storage.errors import SchemaForeign, SchemaMissing, SchemaOutdated, SchemaTooNew
from storage.models import Base

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "seedproof_version"
"""Not Alembic's default name, which another program in the same Postgres database may use."""
# any constant of our own: the first eight bytes of SHA-256("seedproof schema") as a signed integer
_ADVISORY_LOCK = 0x63C7997B61354B1C
# Alembic keeps its context in module globals, so that one process migrates one database at a time. A thread's
# lock, not an asyncio one: event loops in several threads share those globals.
_alembic_in_use = threading.Lock()


async def ensure_schema(reader: AsyncEngine, migrator: AsyncEngine, *, upgrade: bool, where: str) -> str:
    """Leaves the database at the code's revision and returns it, or raises a SchemaError.

    With `upgrade` false nothing is written: SchemaMissing and SchemaOutdated say what an upgrade would mend.
    """
    async with reader.connect() as connection:
        current = await connection.run_sync(_revision)
    known = known_revisions()
    if current == known[0]:
        return current
    _refuse_newer(current, known, where)
    if not upgrade:
        raise needs_upgrade(current, known[0], where)
    async with _one_at_a_time(), migrator.begin() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        await connection.run_sync(_upgrade, known, where)
    return known[0]


def _upgrade(connection: Connection, known: list[str], where: str) -> None:
    current = _revision(connection)
    if current == known[0]:
        return
    _refuse_newer(current, known, where)
    if current is None:
        _refuse_foreign(connection, where)
    # 11 MB, which a process does not need whose database is up to date
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def alembic_config() -> Config:
    """Where the migrations are; its attribute `connection` says where they run."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def known_revisions() -> list[str]:
    """Every revision of this code, the newest first; each file is named after its own."""
    files = (_MIGRATIONS / "versions").glob("[0-9]*_*.py")
    return sorted((file.name.partition("_")[0] for file in files), reverse=True)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return found


def needs_upgrade(current: str | None, newest: str, where: str) -> SchemaMissing | SchemaOutdated:
    """The error for a database at a revision, or none at all, that an upgrade would mend."""
    if current is None:
        return SchemaMissing(f"{where} holds no seedproof tables yet: run `seedproof db upgrade`")
    return SchemaOutdated(
        f"{where} has schema {current} and this seedproof works with {newest}: run `seedproof db upgrade`"
    )


def _refuse_newer(current: str | None, known: list[str], where: str) -> None:
    if current is not None and current not in known:
        raise SchemaTooNew(
            f"{where} has schema {current}, which is newer than this seedproof knows ({known[0]}): "
            "upgrade seedproof, or name another database"
        )


def _refuse_foreign(connection: Connection, where: str) -> None:
    taken = sorted(set(inspect(connection).get_table_names()) & set(Base.metadata.tables))
    if taken:
        raise SchemaForeign(
            f"{where} already holds tables that seedproof did not make ({', '.join(taken)}): "
            "give seedproof a database of its own"
        )


@asynccontextmanager
async def _one_at_a_time() -> AsyncIterator[None]:
    while not _alembic_in_use.acquire(blocking=False):  # noqa: ASYNC110 (an Event belongs to one loop)
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        _alembic_in_use.release()
