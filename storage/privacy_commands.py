"""`seedproof db purge|reseal` and `seedproof export`: what is taken away, sealed anew and carried out."""

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import click

from storage.errors import StorageError

T = TypeVar("T")

_url = click.argument("url", envvar="SEEDPROOF_STORE")


@click.command("purge")
@_url
def purge_command(url: str) -> None:
    """Delete at URL what is past the days of `[upstreams.retention]`; a running proxy does so every hour, beside it."""
    from storage.database import open_database
    from storage.retention import purge

    async def work() -> None:
        async with open_database(url) as database:
            done = await purge(database, now=datetime.now(timezone.utc))
        click.echo(
            f"{done.redacted} exchanges emptied, {done.exchanges} deleted; audits of {done.audits} exchanges deleted; "
            f"{done.partitions} days dropped"
        )

    _run(work())


@click.command("reseal")
@_url
def reseal_command(url: str) -> None:
    """Seal all payloads at URL under the newest key of SEEDPROOF_PAYLOAD_KEYS."""
    from storage.database import open_database
    from storage.resealing import reseal

    async def work() -> None:
        async with open_database(url) as database:
            click.echo(f"{await reseal(database)} exchanges sealed anew")

    _run(work())


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--store", envvar="SEEDPROOF_STORE", help="Database URL; or set SEEDPROOF_STORE.")
@click.option("--table", type=click.Choice(["audits", "exchanges"]), default="audits", show_default=True,
              help="What is written.")
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv", "parquet"]), default="jsonl", show_default=True,
              help="jsonl is chained by hashes and can be verified.")
@click.option("--upstream", help="Of this upstream alone.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="From this day on, UTC.")
@click.option("--verify", "check", is_flag=True, help="Check a JSON lines FILE instead of writing it.")
def export_command(
    file: Path, store: str | None, table: str, kind: str, upstream: str | None, since: datetime | None, check: bool
) -> None:
    """Write audits or exchanges into FILE: jsonl (all columns, tamper-evident), or audits as csv or parquet."""
    if check:
        _verify(file)
        return
    if store is None:
        raise click.UsageError("--store is needed (or SEEDPROOF_STORE)")
    if table == "exchanges" and kind != "jsonl":
        raise click.UsageError("exchanges are exported as jsonl only")
    moment = None if since is None else since.replace(tzinfo=timezone.utc)
    _run(_export(file, store, table, kind, upstream=upstream, since=moment))


async def _export(file: Path, store: str, table: str, kind: str, **wanted: Any) -> None:
    from storage import export_files
    from storage.database import open_database

    async with open_database(store, upgrade=False) as database, database.reading() as session:
        if kind == "jsonl":
            head = await export_files.write_chain(session, table, file, **wanted)
            click.echo(f"{head.count} {table} written; keep this head elsewhere: {head.head}")
            return
        write = export_files.write_csv if kind == "csv" else export_files.write_parquet
        click.echo(f"{await write(session, file, **wanted)} audits written")


def _verify(file: Path) -> None:
    from storage.export import verify

    try:
        with file.open(encoding="ascii") as lines:
            head = verify(lines)
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} cannot be read: {error}") from error
    except StorageError as error:
        raise click.ClickException(f"{file}: {error}") from error
    click.echo(f"{head.count} {head.table}, whole and unchanged; head {head.head}")


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except StorageError as error:
        raise click.ClickException(str(error)) from error
