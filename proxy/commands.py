"""The commands of this side. The composition root joins them with the other side's."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.errors import ConfigError, ProxyError

if TYPE_CHECKING:
    from proxy.config import ProxyConfig

Alongside = Callable[[], Awaitable[object]]


@click.command("serve")
@click.option(
    "--config", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The TOML file."
)
def serve_command(path: Path) -> None:
    """Run the auditing proxy until SIGINT or SIGTERM."""
    run_serve(path)


def run_serve(path: Path, *, alongside: Alongside | None = None) -> None:
    """Load the configuration and serve; a failure is one line on stderr and exit code 1 (configuration:
    2)."""
    from proxy.config import load_config
    from storage.errors import StorageError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(load_config(path), alongside=alongside))
    except (ProxyError, StorageError) as error:
        click.echo(f"seedproof: {error}", err=True)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error


async def serve(config: ProxyConfig, *, alongside: Alongside | None = None) -> None:
    """Serve until SIGINT or SIGTERM. `alongside` runs beside the proxy and is cancelled with it; if it fails
    or ends, the proxy stops too, with its error.

    Raises:
        ListenError: the address cannot be used.
        storage.errors.StorageError: the database cannot be opened.
    """
    from proxy.app import listening

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with listening(config) as address:
            names = ", ".join(upstream.name for upstream in config.upstreams)
            click.echo(f"seedproof serves {address}/v1 (upstreams: {names})")
            await _until(stop, alongside)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _until(stop: asyncio.Event, alongside: Alongside | None) -> None:
    waits: list[asyncio.Future[object]] = [asyncio.ensure_future(stop.wait())]
    if alongside is not None:
        waits.append(asyncio.ensure_future(alongside()))
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
