"""`seedproof reverify`: old traffic, another reference or contract."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from verifier.commands import device_option, json_option, token_progress, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from storage.database import Database
    from storage.reaudits import Comparison
    from verifier.executors import Plan
    from verifier.remote_auditor import Loading
    from verifier.reverify import Ask


@click.command("reverify")
@click.option("--store", envvar="SEEDPROOF_STORE", required=True, help="Database URL; or set SEEDPROOF_STORE.")
@click.option("--since", type=click.DateTime(), required=True, help="Exchanges of that time (UTC) and later.")
@click.option("--until", type=click.DateTime(), help="Only those before.  [default: now]")
@click.option("--upstream", help="Only this one's exchanges.")
@click.option("--model", help="Only those of this model, as clients name it.")
@click.option("--reference", metavar="NAME[=DIR]", help="Another trusted model; each exchange's own unless told.")
@click.option("--sampler", help="Another contract id; each exchange's own unless told.")
@click.option("--run", "name", help="The run's name; the same goes on where it stopped.  [default: REFERENCE SAMPLER]")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Tokens per second at most.")
@click.option("--fresh", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Pause while a live job has waited for so many seconds.")  # noqa: E501
@click.option("--executor", "kind", default="inline", show_default=True, help="Or ray.")
@click.option("--address", default="auto", show_default=True, help="Of the Ray cluster: HOST:PORT of its head.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="In Ray.")
@click.option("--gpus-per-worker", type=click.IntRange(min=0), default=0, help="In Ray.")
@click.option("--backend", default="transformers", show_default=True, help="transformers, vllm or vllm-logprobs.")
@click.option("--dtype", default="float32", show_default=True, help="Of the reference's weights.")
@device_option
@json_option
def reverify_command(
    store: str, since: datetime, until: datetime | None, upstream: str | None, model: str | None,
    reference: str | None, sampler: str | None, name: str | None, rate: float | None, fresh: float, kind: str,
    address: str, workers: int, gpus_per_worker: int, backend: str, dtype: str, device: str, json_path: str | None,
) -> None:  # fmt: skip
    """Audit recorded exchanges once more and compare: by another reference, or another contract.

    Live audits and verdicts stay as they are; what is found is kept apart, in `reaudits`. Stopped, the same command
    goes on where it was.
    """
    from storage.reaudits import Selection
    from verifier.executors import Plan
    from verifier.remote_auditor import Loading
    from verifier.reverify import Ask
    from verifier.samplers import contract
    from verifier.terminal import console

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if sampler is not None:
        contract(sampler)  # an unknown one is said now, not once an hour of traffic has been read
    trusted, _, directory = (reference or "").partition("=")
    run = name or f"{trusted or 'own reference'} {sampler or 'own sampler'}"
    first, end = (moment.replace(tzinfo=timezone.utc) for moment in (since, until or datetime.now(timezone.utc)))
    ask = Ask(Selection(run, first, end, upstream, model), trusted or None, sampler, rate, fresh)
    place = "cuda" if gpus_per_worker and device == "cpu" else device
    loading = Loading({trusted: directory} if directory else {}, place, dtype, backend)
    plan = Plan(kind, address, workers, workers, gpus_per_worker)
    compared = asyncio.run(_run(store, ask, loading, plan))
    if json_path != "-":
        console().print(_table(run, compared))
    write_json(json_path, {"run": run, "streams": [_as_json(one) for one in compared]})


async def _run(store: str, ask: Ask, loading: Loading, plan: Plan) -> Sequence[Comparison]:
    from storage import reaudits
    from storage.database import open_database

    async with open_database(store) as database:
        async with database.reading() as session:
            total = await reaudits.count_left(session, ask.selection)
        click.echo(f"run {ask.selection.run!r}: {total} exchanges to audit again", err=True)
        with token_progress(total, "Verifying again") as advance:
            if plan.kind == "ray":
                await _on_ray(database, store, ask, loading, plan, advance)
            else:
                await _here(database, ask, loading, advance)
        async with database.reading() as session:
            return await reaudits.compare(session, ask.selection.run)


async def _here(database: Database, ask: Ask, loading: Loading, advance: Callable[[int], None]) -> None:
    from verifier.reverify import Reverifier, pages

    reverifier = Reverifier(database, loading.auditor(), ask)
    async for page in pages(database, ask.selection):
        advance(await reverifier.do(page))


async def _on_ray(
    database: Database, store: str, ask: Ask, loading: Loading, plan: Plan, advance: Callable[[int], None]
) -> None:
    from verifier.ray_reverify import reverified
    from verifier.remote_auditor import Needs
    from verifier.reverify import pages

    found = [page async for page in pages(database, ask.selection)]

    def work() -> None:
        for count in reverified(
            found, address=plan.address, store=store, loading=loading, ask=ask,
            needs=Needs(plan.cpus or 1, plan.gpus), workers=plan.most or 1,
        ):  # fmt: skip
            advance(count)

    if found:
        await asyncio.to_thread(work)


def _table(run: str, compared: Sequence[Comparison]) -> Table:
    from rich.table import Table

    table = Table(title=f"Run {run}: audits before and now")
    for number, heading in enumerate(("upstream", "model", "before by", "now by", "choices", "match before", "match now", "change", "not verified")):  # noqa: E501
        table.add_column(heading, justify="left" if number < 4 else "right")
    for one in compared:
        before, now = _rate(one.old_matches, one.old_tokens), _rate(one.new_matches, one.new_tokens)
        change = f"{now - before:+.4f}" if before is not None and now is not None else "–"
        table.add_row(
            one.upstream, one.model, f"{one.old_reference} {one.old_sampler}", f"{one.new_reference} {one.new_sampler}",
            str(one.choices), _shown(before), _shown(now), change, str(one.unverified),
        )  # fmt: skip
    return table


def _as_json(one: Comparison) -> dict[str, Any]:
    rates = {
        "old_match_rate": _rate(one.old_matches, one.old_tokens),
        "new_match_rate": _rate(one.new_matches, one.new_tokens),
    }
    return {**vars(one), **rates}


def _rate(matches: int, tokens: int) -> float | None:
    return matches / tokens if tokens else None


def _shown(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.4f}"
