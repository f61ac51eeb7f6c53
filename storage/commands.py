"""`seedproof db`: the schema's commands. `seedproof.py` hangs the group into the command line."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from storage.errors import StorageError
from storage.privacy_commands import purge_command, reseal_command

T = TypeVar("T")

_url = click.argument("url", envvar="SEEDPROOF_STORE")


@click.group()
def db() -> None:
    """Look after the audit database."""


@db.command()
@_url
def upgrade(url: str) -> None:
    """Make the tables at URL, or bring them up to date.

    URL reads sqlite:///path/to/file.db or postgresql://user@host/database; SEEDPROOF_STORE may hold it.
    `serve` and `worker` do this by themselves when they start.
    """
    _run(_upgrade(url))


@db.command()
@_url
def status(url: str) -> None:
    """Show the schema and the counts of rows at URL; changes nothing."""
    _run(_status(url))


db.add_command(purge_command)
db.add_command(reseal_command)


@click.command("writer")
@click.option("--store", envvar="SEEDPROOF_STORE", required=True, help="Database URL.")
@click.option("--journal", type=click.Path(file_okay=False, path_type=Path), help="The proxies' directory.")
def writer_command(store: str, journal: Path | None) -> None:
    """Move exchanges from a journal into the database until SIGINT or SIGTERM.

    Runs beside proxies whose configuration says `writer = "apart"`; a second one waits and takes over.
    """
    from storage.journal import default_directory

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _run(_write(store, journal or default_directory(store)))


async def _write(store: str, directory: Path) -> None:
    from storage.database import open_database
    from storage.housekeeping import housekeeping
    from storage.writer import DatabaseTarget, Writer

    async with open_database(store) as database, housekeeping(database):
        task = asyncio.ensure_future(Writer(DatabaseTarget(database), directory).run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        click.echo(f"seedproof writes {directory} into {database.where}")
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _upgrade(url: str) -> None:
    from storage.database import open_database

    async with open_database(url) as database:
        click.echo(f"{database.where}: schema {database.revision}, up to date")


async def _status(url: str) -> None:
    from sqlalchemy import func, select

    from storage import housekeeping, jobs
    from storage.database import open_database
    from storage.models import Audit, Exchange

    async with open_database(url, upgrade=False) as database, database.reading() as session:
        exchanges = await session.scalar(select(func.count()).select_from(Exchange))
        audits = await session.scalar(select(func.count()).select_from(Audit))
        backlog = await jobs.pending(session)
        click.echo(f"{database.where}: schema {database.revision}, up to date")
        click.echo(f"exchanges  {exchanges}")
        unfinished = f"{backlog.todo} todo, {backlog.leased} leased"
        click.echo(f"jobs       {unfinished}, {backlog.done} done, {backlog.failed} failed")
        click.echo(f"audits     {audits}")
        for chore in await housekeeping.standing(session):
            done = "not done yet" if chore.done_at is None else f"done at {chore.done_at:%Y-%m-%d %H:%M:%S} UTC"
            problem = "" if chore.problem is None else f": {chore.problem}"
            click.echo(f"{chore.name}  {done}, {chore.failures} failures{problem}")
        if backlog.oldest is not None:
            click.echo(f"oldest exchange without its audits: {backlog.oldest:%Y-%m-%d %H:%M:%S} UTC")


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except StorageError as error:
        raise click.ClickException(str(error)) from error
