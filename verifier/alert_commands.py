"""`seedproof alerts …`: try a configuration, run it without a worker, keep alerts quiet, see what stands."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click

from verifier.errors import InputError

FILE = click.Path(dir_okay=False, path_type=Path)
store_option = click.option(
    "--store", envvar="SEEDPROOF_STORE", required=True, help="Database URL; or set SEEDPROOF_STORE."
)
rules_argument = click.argument("rules", type=FILE)


@click.group("alerts")
def alerts_group() -> None:
    """Alerts: who is told when a provider deviates, audits lag or exchanges are lost."""


@alerts_group.command("check")
@rules_argument
@click.option("--send-test", "receivers", multiple=True, metavar="RECEIVER", help="Send it a test message.")
def check_command(rules: Path, receivers: tuple[str, ...]) -> None:
    """Check the file RULES, its secrets included."""
    from verifier.alert_config import load_alerts

    config = load_alerts(rules)
    for name in receivers:
        if name not in config.receivers:
            raise InputError(f"{rules} names no receiver {name!r}; it has: {', '.join(config.receivers)}")
        asyncio.run(_send_test(config, name))
        click.echo(f"{name} took the test message")
    click.echo(f"{rules}: {len(config.rules)} rules, {len(config.receivers)} receivers")


@alerts_group.command("run")
@rules_argument
@store_option
@click.option("--once", is_flag=True, help="Evaluate once, send what is due, and exit.")
def run_command(rules: Path, store: str, once: bool) -> None:
    """Evaluate RULES and send messages until stopped; a worker with --alerts does the same beside its audits."""
    from verifier.alert_config import load_alerts

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_run(store, load_alerts(rules), once=once))


@alerts_group.command("list")
@store_option
def list_command(store: str) -> None:
    """Show alerts and silences."""
    asyncio.run(_list(store))


@alerts_group.command("silence")
@store_option
@click.option("--for", "hours", type=float, required=True, help="Hours from now.")
@click.option("--comment", required=True, help="Why; others will read it.")
@click.argument("matchers", nargs=-1, required=True, metavar="LABEL=VALUE…")
def silence_command(store: str, hours: float, comment: str, matchers: tuple[str, ...]) -> None:
    """Send no messages of alerts whose labels match: upstream, model, reference, sampler or rule; * is any text."""
    pairs = dict(_pair(text) for text in matchers)
    number = asyncio.run(_silence(store, pairs, timedelta(hours=hours), comment))
    click.echo(f"silence {number} holds for {hours:g} hours; end it with: seedproof alerts unsilence {number}")


@alerts_group.command("unsilence")
@store_option
@click.argument("number", type=int)
def unsilence_command(store: str, number: int) -> None:
    """End a silence."""
    if not asyncio.run(_unsilence(store, number)):
        raise InputError(f"no silence {number} holds; see: seedproof alerts list")


LABELS = ("upstream", "model", "reference", "sampler", "rule")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or name not in LABELS:
        raise InputError(f"{text!r} must read LABEL=VALUE, with a label of {', '.join(LABELS)}")
    return name, value


async def _send_test(config: Any, name: str) -> None:
    from verifier.alert_delivery import Message, Undelivered, deliver
    from verifier.alert_payloads import notices, test_group
    from verifier.alerts import Rule

    receiver, now = config.receivers[name], datetime.now(timezone.utc)
    group = test_group(name, Rule(name="Test", when="verdict", receivers=(name,), severity="info"), now)
    for notice in notices(group, receiver.kind, base_url=config.dashboard_url):
        stamp = int(now.timestamp())
        try:
            await deliver(receiver, Message(id=f"test-{stamp}", payload=notice.payload, timestamp=stamp))
        except Undelivered as error:
            raise InputError(f"{name} did not take the test message: {error}") from error


async def _run(store: str, config: Any, *, once: bool) -> None:
    from storage.database import open_database
    from verifier.alert_watch import Watch
    from verifier.commands import until_signalled

    async with open_database(store) as database:
        watch = Watch(database, config)
        if not once:
            await until_signalled(watch.run())
            return
        await watch.evaluate()
        while await watch.send():
            pass


async def _list(store: str) -> None:
    from rich.table import Table

    from storage import alerts
    from verifier.terminal import console

    now = datetime.now(timezone.utc)
    rows, silences = await _reading(store, alerts.every_alert, lambda s: alerts.silences(s, now=now))
    table = Table(title="Alerts")
    for heading in ("state", "rule", "severity", "since", "summary"):
        table.add_column(heading)
    for row in rows:
        since = f"{row.fired_at or row.started_at:%Y-%m-%d %H:%M} UTC"
        table.add_row(row.state + (" (silenced)" if row.silenced else ""), row.rule, row.severity, since, row.summary)
    console().print(table)
    for silence in silences:
        matchers = " ".join(f"{name}={value}" for name, value in silence.matchers.items())
        click.echo(f"silence {silence.id} until {silence.ends_at:%Y-%m-%d %H:%M} UTC: {matchers} ({silence.comment})")


async def _silence(store: str, matchers: dict[str, str], lasts: timedelta, comment: str) -> int:
    from storage import alerts
    from storage.database import open_database

    now = datetime.now(timezone.utc)
    async with open_database(store) as database, database.writing() as session:
        return await alerts.silence(
            session, matchers, starts_at=now, ends_at=now + lasts, comment=comment, now=now
        )


async def _unsilence(store: str, number: int) -> bool:
    from storage import alerts
    from storage.database import open_database

    async with open_database(store) as database, database.writing() as session:
        return await alerts.end_silence(session, number, now=datetime.now(timezone.utc))


async def _reading(store: str, *reads: Any) -> list[Any]:
    from storage.database import open_database

    async with open_database(store, upgrade=False) as database, database.reading() as session:
        return [await read(session) for read in reads]
