"""The commands of this side. The composition root joins them with the other side's."""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.clients import compose_key, hash_key
from proxy.errors import ConfigError, ProxyError
from proxy.upstreams import NAME

if TYPE_CHECKING:
    from proxy.config import ProxyConfig

logger = logging.getLogger(__name__)

Alongside = Callable[[], Awaitable[object]]
Load = Callable[[], "ProxyConfig"]


@click.command("serve")
@click.option(
    "--config", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The TOML file."
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="All at one address.")
def serve_command(path: Path, processes: int) -> None:
    """Run the auditing proxy until SIGINT or SIGTERM; SIGHUP reads the configuration again."""
    run_serve(path, processes=processes)


@click.command("key")
@click.argument("name")
def key_command(name: str) -> None:
    """Make an API key for the client NAME, and the lines that let it in."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a client's name: use a-z, 0-9, '-' and '_'")
    key = compose_key(name, secrets.token_hex(32))
    click.echo(f"The client's key, shown only now: {key}\n\nFor the configuration:\n")
    click.echo(f'[[clients]]\nname = "{name}"\nkey_sha256 = "{hash_key(key)}"')


def run_serve(path: Path, *, alongside: Alongside | None = None, processes: int = 1) -> None:
    """Load the configuration and serve; a failure is one line on stderr and exit code 1 (configuration:
    2)."""
    from proxy.config import load_config
    from storage.errors import StorageError

    set_up_logging()
    try:
        config = load_config(path)
        if processes > 1:
            from proxy.processes import supervise

            raise SystemExit(supervise(path, config, processes))
        run(serve(config, alongside=alongside, load=lambda: load_config(path)))
    except (ProxyError, StorageError) as error:
        click.echo(f"seedproof: {error}", err=True)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error


def set_up_logging() -> None:
    """One line an event on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end, on uvloop where it is installed (`pip install 'seedproof[fast]'`)."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def serve(
    config: ProxyConfig, *, alongside: Alongside | None = None, load: Load | None = None, share_port: bool = False,
    on_listening: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGINT, or `limits.drain_seconds` after SIGTERM (a second one: at once).

    `alongside` runs beside the proxy and is cancelled with it; if it fails or ends, the proxy stops too, with its
    error. At SIGHUP what `load` gives comes into force.

    Raises:
        ListenError: the address cannot be used.
        storage.errors.StorageError: the database cannot be opened.
    """
    from proxy.app import listening, make_app

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    app = make_app(config)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    loop.add_signal_handler(signal.SIGTERM, _Terminator(app, stop))
    try:
        async with listening(config, app, share_port=share_port) as address:
            if load is not None:
                loop.add_signal_handler(signal.SIGHUP, _Reloader(app, config, load))
            names = ", ".join(upstream.name for upstream in config.upstreams)
            click.echo(f"seedproof serves {address}/v1 (upstreams: {names})")
            if on_listening is not None:
                on_listening()
            # what stands now stays: without this each full collection walks through it, and all answers wait for 70 ms
            gc.collect()
            gc.freeze()
            await _until(stop, alongside)
    finally:
        gc.unfreeze()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)


class _Terminator:
    """What SIGTERM does: `/readyz` says 503 from now on, and after the time for balancers to notice the proxy stops."""

    def __init__(self, app: Any, stop: asyncio.Event) -> None:
        self._app, self._stop = app, stop

    def __call__(self) -> None:
        from proxy.app import drain

        seconds = drain(self._app)
        if seconds:
            logger.info("shutting down: requests are taken for %g s more", seconds)
        asyncio.get_running_loop().call_later(seconds, self._stop.set)


class _Reloader:
    """What SIGHUP does. A configuration that cannot be used leaves the running one in force."""

    def __init__(self, app: Any, config: ProxyConfig, load: Load) -> None:
        self._app, self._config, self._load = app, config, load

    def __call__(self) -> None:
        from proxy.app import reload

        try:
            self._config = reload(self._app, self._config, self._load())
        except ConfigError as error:
            logger.error("the old configuration stays in force: %s", error)  # noqa: TRY400
        else:
            logger.info("the configuration was read again")


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
