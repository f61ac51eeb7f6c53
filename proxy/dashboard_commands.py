"""`seedproof dashboard …`: the dashboard beside the proxy, and its password."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.errors import ConfigError

if TYPE_CHECKING:
    from proxy.config import ProxyConfig

FEWEST_CHARACTERS = 8


@click.group("dashboard")
def dashboard_group() -> None:
    """The dashboard: its password, and a process of its own for it."""


@dashboard_group.command("password")
@click.option("--stdin", is_flag=True, help="Read the password's line from stdin instead of asking twice.")
def password_command(stdin: bool) -> None:
    """Ask for a password and print the hash that `[dashboard] password_hash_file` holds."""
    from proxy.dashboard_login import password_hash

    if stdin:
        password: str = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    if len(password) < FEWEST_CHARACTERS:
        raise click.ClickException(f"a password of the dashboard has at least {FEWEST_CHARACTERS} characters")
    click.echo(password_hash(password, secrets.token_bytes(16)))


@dashboard_group.command("serve")
@click.option("--config", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The TOML file.")
@click.option("--listen", help="Another address than the file's, as in 127.0.0.1:8082.")
def serve_command(path: Path, listen: str | None) -> None:
    """Serve the dashboard alone until SIGINT or SIGTERM, on this machine or another one near the database."""
    from proxy.config import load_config
    from proxy.dashboard_config import listen_address

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = load_config(path)
    if config.dashboard is None:
        raise ConfigError(f"{path} has no table [dashboard]: add it, with listen = \"127.0.0.1:8081\"")
    if listen is not None:
        host, port = listen_address(listen, "--listen")
        config = replace(config, dashboard=replace(config.dashboard, host=host, port=port).checked())
    asyncio.run(_serve(config))


async def _serve(config: ProxyConfig) -> None:
    from proxy.dashboard import dashboard_listening

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with dashboard_listening(config) as address:
        click.echo(f"the dashboard is at {address}")
        await stop.wait()
