"""The commands ``seedproof model …`` and ``seedproof demo``."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from verifier.commands import result_file

JSON_FILE = click.Path(dir_okay=False, path_type=Path)
POSITIVE = click.IntRange(min=1)


@click.group("model")
def model_group() -> None:
    """Models for demos and tests."""


@model_group.command("demo")
def model_demo_command() -> None:
    """Put SmolLM2-135M-Instruct into the cache directory and print its path; instant once it is there."""
    from verifier.demo_model import ensure_demo_model

    click.echo(str(ensure_demo_model()))


@click.command("demo")
@click.option("--once", is_flag=True, help="Exit after the table instead of serving on.")
@click.option("--json", "json_path", type=JSON_FILE, callback=result_file, help="Write the table here.")
@click.option("--requests", type=POSITIVE, default=16, show_default=True, help="Chats per provider.")
@click.option("--max-tokens", type=POSITIVE, default=96, show_default=True, help="Of each answer.")
def demo_command(once: bool, json_path: Path | None, requests: int, max_tokens: int) -> None:
    """Audit an honest and a cheating provider on this machine, from chat to verdict."""
    from verifier.demo import run_demo
    from verifier.terminal import console

    demo = run_demo(
        requests=requests, max_tokens=max_tokens, once=once, json_path=json_path, console=console()
    )
    try:
        asyncio.run(until_signalled(demo))
    except asyncio.CancelledError:
        click.echo("seedproof: everything is stopped", err=True)
        raise SystemExit(130 if once else 0) from None


async def until_signalled(work: Coroutine[Any, Any, object]) -> None:
    """Run ``work``; the first SIGINT or SIGTERM cancels it, further ones leave its cleaning up in peace."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    task.cancel()
    await task
