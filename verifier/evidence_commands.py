"""`seedproof calibrate`, `report` and `evaluate`; heavy imports wait until a command runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verifier.commands import files_argument, json_option, write_json
from verifier.scoring_options import common_scope, file_and_sampler, scored_files, scoring_options
from verifier.terminal import console

if TYPE_CHECKING:
    from rich.table import Table

    from verifier.band import Band
    from verifier.evaluate import Answer, Judged
    from verifier.report import StreamReport
    from verifier.scored_files import ScoredFile

SEED = 20
"""Of the batches that AUCs are drawn from: an evaluation gives the same numbers again."""

store_option = click.option("--store", envvar="SEEDPROOF_STORE", help="Database URL; or set SEEDPROOF_STORE.")


class ManyFiles(click.Command):
    """Lets an option that may be given several times take several values at once: `--suspect A B C`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        many = {name for p in self.params if isinstance(p, click.Option) and p.multiple for name in p.opts}
        spread: list[str] = []
        option, values = "", 0
        for arg in args:
            if arg.startswith("-") and arg != "-":
                option, values = (arg if arg in many else ""), 0
                spread.append(arg)
                continue
            spread += [option, arg] if option and values else [arg]
            values += 1
        return super().parse_args(ctx, spread)


@click.command("calibrate")
@files_argument
@scoring_options
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the band here, as JSON.")
@store_option
@click.option("--reference", help="Name of the reference in the proxy's configuration; --model unless told.")
@click.option("--upstream", help="The band is for this upstream's streams alone, as they run on other hardware.")
@click.option("--hardware", default="", help="The provider's and the verifier's, for the record, e.g. 'H100 / CPU'.")
def calibrate_command(
    files: Sequence[Path], out: Path | None, store: str | None, reference: str | None, upstream: str | None,
    hardware: str, **scoring: Any,
) -> None:  # fmt: skip
    """Learn what honest scores look like from recorded outputs of a run that you trust.

    Half of the answers make the band, the other half measures how often it would accuse them. With --store the band
    judges all streams of that reference and sampler from then on (those whose ids are found from the text, if it was
    made with --hide-ids); their stored audits are weighed again.
    """
    from verifier.calibration import calibrate

    name = reference or scoring["model"]
    if store is not None and name is None:
        raise click.UsageError("name the reference that the band is for with --reference")
    found = scored_files([f"{file}" for file in files], **scoring)
    every = [answer for file in found.values() for answer in file.answers]
    told = {"reference": name, "upstream": upstream, "hardware": hardware}
    scope = {**common_scope(found.values()), **{key: value for key, value in told.items() if value}}
    band = calibrate([answer.scores for answer in every], sampling=_common_sampling(every), scope=scope)
    console().print(_band_table(band))
    write_json(str(out) if out else None, band.to_dict())
    if store is not None:
        asyncio.run(_store_band(store, band))


@click.command("report")
@store_option
@click.option("--upstream", help="Only this one's streams.")
@click.option("--since", type=click.DateTime(), help="Only audits made since then (UTC), weighed afresh.")
@click.option("--markdown", is_flag=True, help="Print Markdown, with all that is behind each verdict.")
@json_option
def report_command(
    store: str | None, upstream: str | None, since: datetime | None, markdown: bool, json_path: str | None
) -> None:
    """Print the verdict on every stream."""
    from verifier.report import as_json, as_markdown, as_table

    if store is None:
        raise click.UsageError("name the database with --store or SEEDPROOF_STORE")
    moment = since.replace(tzinfo=timezone.utc) if since else None
    reports = asyncio.run(_read_reports(store, upstream, moment))
    if markdown:
        click.echo(as_markdown(reports), nl=False)
    elif json_path != "-":
        console().print(as_table(reports))
    write_json(json_path, as_json(reports))


@click.command("evaluate", cls=ManyFiles)
@click.option("--honest", "honest", multiple=True, required=True, metavar="FILES", help="Recordings that you trust.")
@click.option("--suspect", "suspects", multiple=True, required=True, metavar="FILES", help="FILE or FILE@SAMPLER.")
@scoring_options
@click.option("--plot", type=click.Path(file_okay=False, path_type=Path), help="Save figures here (PNG and SVG).")
@json_option
def evaluate_command(
    honest: Sequence[str], suspects: Sequence[str], plot: Path | None, json_path: str | None, **scoring: Any
) -> None:
    """Calibrate on half of the honest prompts and judge all the rest."""
    from dataclasses import replace

    from verifier.calibration import false_positives, fit
    from verifier.evaluate import split, unfitted

    found = scored_files([*honest, *suspects], **scoring)
    fitted, held_out = split([answer for file in honest for answer in found[file].answers])
    scope = common_scope([found[file] for file in honest])
    band = fit([answer.scores for answer in fitted], sampling=_common_sampling(fitted), scope=scope)
    alarms = false_positives([answer.scores for answer in held_out], band)
    rest = {file: replace(one, answers=unfitted(one.answers, fitted)) for file, one in found.items()}
    judged = _judged(rest, held_out, band)
    result = {
        "suspects": [judged[file].to_dict() for file in suspects],
        "honest": {
            "false_positive_rate": alarms.alarms / alarms.blocks if alarms.blocks else None,
            **vars(alarms),
            "files": [judged[file].to_dict() for file in honest],
        },
        "band": band.to_dict(),
    }
    if json_path != "-":
        console().print(_evaluation_table([judged[file] for file in dict.fromkeys([*honest, *suspects])]))
    write_json(json_path, result)
    if plot is not None:
        from verifier.plots import save_plots

        for path in save_plots([judged[file] for file in suspects], plot):
            click.echo(f"saved {path}", err=True)


def _common_sampling(answers: Sequence[Answer]) -> Mapping[str, float] | None:
    """The sampling parameters of all answers, None where they differ: then expectations are not judged."""
    first = answers[0].audited.sampling if answers else None
    return first if all(answer.audited.sampling == first for answer in answers) else None


def _judged(
    files: Mapping[str, ScoredFile], held_out: Sequence[Answer], band: Band
) -> dict[str, Judged]:
    from dataclasses import replace

    import numpy as np

    from verifier.evaluate import judge_file, separation

    rng = np.random.default_rng(SEED)
    return {
        file: replace(
            judge_file(file, one.sampler, one.answers, band, identified=one.identified),
            separation=separation(held_out, one.answers, band, rng),
        )
        for file, one in files.items()
    }


async def _store_band(store: str, band: Band) -> None:
    from storage import calibrations
    from storage.database import open_database

    columns = {name: band.scope.get(name, "") for name in ("reference", "sampler", "token_source", "hardware")}
    async with open_database(store) as database, database.writing() as session:
        await calibrations.add(session, **columns, band=band.to_dict(), now=datetime.now(timezone.utc))


async def _read_reports(store: str, upstream: str | None, since: datetime | None) -> list[StreamReport]:
    from storage.database import open_database
    from verifier.streams import reports

    async with open_database(store, upgrade=False) as database, database.reading() as session:
        return await reports(session, upstream=upstream, since=since)


def _band_table(band: Band) -> Table:
    from rich.table import Table

    table = Table(title=f"Band of {band.sequences} honest answers, {band.tokens} tokens")
    for heading in ("detector", "honest mean", "tolerated mean", "credibility"):
        table.add_column(heading, justify="left" if heading == "detector" else "right")
    for name, mean in band.honest.items():
        table.add_row(name, f"{mean:.4f}", f"{band.typical[name]:.4f}", f"{band.credibility[name]:.0f}")
    if band.held_out is not None:
        held = band.held_out
        table.caption = (
            f"False positives on the other half: {held.alarms} of {held.blocks} answers "
            f"(95 %: {held.low:.3f}–{held.high:.3f})"
        )
    return table


def _evaluation_table(judged: Sequence[Judged]) -> Table:
    from rich.table import Table

    table = Table()
    headings = ("file", "verdict", "why", "tokens", "match", "median tokens to deviates", "AUC of 100")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 3 else "right", no_wrap=number < 2)
    for one in judged:
        median = one.median_tokens_to_deviates
        area = one.separation.auc.get("100")
        table.add_row(
            file_and_sampler(one.file, "")[0].stem, one.verdict.word, ", ".join(one.verdict.reasons[:2]),
            str(one.tokens), f"{one.exact_match_rate:.3f}", "–" if median is None else f"{median:.0f}",
            "–" if area is None else f"{area:.3f}",
        )  # fmt: skip
    return table
