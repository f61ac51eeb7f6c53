"""Audits and exchanges out of the database into files: JSON lines in a chain of hashes, CSV, Parquet."""

import base64
import csv
import importlib.util
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import DriverMissing
from storage.export import Chain, Head
from storage.models import Audit, Exchange

TABLES = {"audits": Audit, "exchanges": Exchange}
FLAT = tuple(
    column.name for column in Audit.__table__.columns if column.name not in ("sampling", "notes", "scores", "pieces")
)
"""What of an audit stands in a table of plain values."""
_AT_ONCE = 1_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


async def write_chain(
    session: AsyncSession, table: str, path: Path, *, upstream: str | None, since: datetime | None
) -> Head:
    """All columns of the rows as JSON lines that `storage.export.verify` checks; bytes are base64."""
    chain = Chain(table)
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.write(chain.opening + "\n")
        async for row in _rows(session, table, upstream, since):
            file.write(chain.line({name: _json_ready(value) for name, value in row.items()}) + "\n")
        file.write(chain.closing() + "\n")
    return Head(table, chain.count, chain.head)


async def write_csv(session: AsyncSession, path: Path, *, upstream: str | None, since: datetime | None) -> int:
    """Audits as CSV; text that a spreadsheet would take for a formula gets an apostrophe before it."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FLAT)
        async for row in _rows(session, "audits", upstream, since):
            writer.writerow([_cell(row[name]) for name in FLAT])
            count += 1
    return count


async def write_parquet(session: AsyncSession, path: Path, *, upstream: str | None, since: datetime | None) -> int:
    """Audits as Parquet. Raises DriverMissing where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise DriverMissing("Parquet needs pyarrow: pip install 'seedproof[parquet]'")
    count, batch = 0, []
    with _parquet(path) as write:
        async for row in _rows(session, "audits", upstream, since):
            batch.append({name: _plain(row[name]) for name in FLAT})
            count += 1
            if len(batch) == _AT_ONCE:
                write(batch)
                batch = []
        write(batch)
    return count


async def _rows(
    session: AsyncSession, table: str, upstream: str | None, since: datetime | None
) -> AsyncIterator[dict[str, Any]]:
    model: Any = TABLES[table]
    query = select(model).order_by(model.created_at)
    if upstream is not None:
        query = query.where(model.upstream == upstream)
    if since is not None:
        query = query.where(model.created_at >= since)
    names = [column.name for column in model.__table__.columns]
    async for row in await session.stream_scalars(query.execution_options(yield_per=_AT_ONCE)):
        yield {name: getattr(row, name) for name in names}
        session.expunge(row)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    kinds = {int: pyarrow.int64(), float: pyarrow.float64()}
    columns = Audit.__table__.columns
    fields = {name: kinds.get(columns[name].type.python_type, pyarrow.string()) for name in FLAT}
    schema = pyarrow.schema([*{**fields, "created_at": pyarrow.timestamp("us", tz="UTC")}.items()])
    with parquet.ParquetWriter(path, schema) as writer:  # type: ignore[no-untyped-call,unused-ignore]
        yield lambda rows: writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _cell(value: Any) -> Any:
    value = _plain(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _json_ready(value: Any) -> Any:
    value = _plain(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
