"""`seedproof verify` and `seedproof worker`; heavy imports wait until a command runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

if TYPE_CHECKING:
    from verifier.verify import FileResult


def result_file(_context: click.Context, _parameter: click.Parameter, path: Path | str | None) -> Path | str | None:
    """Refuse a file that cannot be written, before the work whose result it is to hold."""
    if path is not None and path != "-" and not Path(path).absolute().parent.is_dir():
        raise click.BadParameter(f"{path} lies in no directory that exists")
    return path


model_option = click.option("--model", required=True, help="Directory of the trusted model, or `demo`.")
sampler_option = click.option("--sampler", required=True, help="Contract id, e.g. vllm@0.26.0/v2 or greedy.")
dtype_option = click.option("--dtype", default="float32", show_default=True, help="Of the reference's weights.")
device_option = click.option("--device", default="cpu", show_default=True, help="Where the reference runs.")
limit_option = click.option("--limit", type=click.IntRange(min=1), help="Only the first N recordings of a file.")
json_option = click.option(
    "--json", "json_path", callback=result_file, help="Write the result as JSON to a file, or to - for stdout."
)
alerts_option = click.option(
    "--alerts", "rules", type=click.Path(dir_okay=False, path_type=Path), help="The alerts' TOML file."
)
files_argument = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))


@click.command("verify")
@files_argument
@model_option
@sampler_option
@click.option("--temperature", type=float, help="Instead of the file's own.")
@click.option("--top-k", type=int, help="Instead of the file's own; 0 or -1 is off.")
@click.option("--top-p", type=float, help="Instead of the file's own; 1 is off.")
@click.option("--seed", type=int, help="Instead of the file's own.")
@click.option("--hide-ids", is_flag=True, help="Use only messages and text, as if no token ids had been recorded.")
@dtype_option
@device_option
@limit_option
@json_option
def verify_command(
    files: Sequence[Path], model: str, sampler: str, temperature: float | None, top_k: int | None,
    top_p: float | None, seed: int | None, hide_ids: bool, dtype: str, device: str, limit: int | None,
    json_path: str | None,
) -> None:  # fmt: skip
    """Replay recorded outputs (one JSON object a line) on a trusted model and print their match rates."""
    from verifier.models import model_directory, torch_dtype
    from verifier.recordings import read_recordings
    from verifier.references import open_reference
    from verifier.samplers import assumption, contract
    from verifier.tokenization import ChatTokenizer
    from verifier.verify import verify_file, verify_hidden

    rules, assumed = contract(sampler), assumption(sampler)
    if assumed:
        click.echo(f"{assumed}.", err=True)
    overrides = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    recordings = {file: read_recordings(file, overrides=overrides, limit=limit) for file in files}
    directory = model_directory(model, {})
    reference = open_reference(directory, device=device, dtype=torch_dtype(dtype))
    tokenizer = ChatTokenizer(directory) if hide_ids else None
    results = []
    total = sum(len(r.sequence.output_token_ids) for rows in recordings.values() for r in rows)
    with token_progress(total, "Verifying") as advance:
        for file, rows in recordings.items():
            if tokenizer is not None:
                results.append(verify_hidden(str(file), rows, reference, rules, tokenizer, advance))
            else:
                results.append(verify_file(str(file), rows, reference, rules, advance))
    if json_path != "-":
        _print_table(results)
    told = {"assumed": assumed} if assumed else {}
    write_json(json_path, {"files": [result.to_dict() for result in results], **told})


@click.command("worker")
@click.option("--store", envvar="SEEDPROOF_STORE", required=True, help="Database URL; or set SEEDPROOF_STORE.")
@click.option("--reference", "references", multiple=True, metavar="NAME=DIR", help="Where a reference lies.")
@dtype_option
@device_option
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Jobs per claim.")
@click.option("--until-empty", is_flag=True, help="Exit when no job is left.")
@alerts_option
def worker_command(
    store: str, references: Sequence[str], dtype: str, device: str, batch: int, until_empty: bool, rules: Path | None
) -> None:
    """Audit recorded exchanges from the queue until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    directories = named_directories(references)
    asyncio.run(
        until_signalled(
            run_worker(
                store, directories, dtype=dtype, device=device, batch=batch, until_empty=until_empty, rules=rules
            )
        )
    )


async def run_worker(
    store: str, directories: dict[str, str], *, dtype: str = "float32", device: str = "cpu", batch: int = 8,
    until_empty: bool = False, rules: Path | None = None,
) -> None:  # fmt: skip
    """Open the database and work until cancelled (or the queue is empty); with `rules` watch for alerts meanwhile."""
    from functools import partial

    from storage.database import open_database
    from verifier.alert_config import load_alerts
    from verifier.alert_watch import watching
    from verifier.auditor import Auditor
    from verifier.executor import InlineExecutor
    from verifier.models import load_model, torch_dtype
    from verifier.worker import Worker

    load = partial(load_model, directories=directories, device=device, dtype=torch_dtype(dtype))
    watch = None if rules is None else load_alerts(rules)
    async with open_database(store) as database, watching(database, watch):
        name = f"{socket.gethostname()}:{os.getpid()}"
        logging.getLogger("seedproof.worker").info("worker %s is ready", name)
        await Worker(database, InlineExecutor(Auditor(load)), name=name, batch=batch).run(until_empty=until_empty)


def named_directories(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=DIR options as a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r} must read NAME=DIR", param_hint="--reference")
        directory = pair.split("=", 1)[1]
        if not Path(directory).is_dir():
            raise click.BadParameter(f"{directory} is no directory", param_hint="--reference")
    return dict(pair.split("=", 1) for pair in pairs)


async def until_signalled(work: Any) -> None:
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return


@contextmanager
def token_progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A progress bar over tokens on stderr; gives the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)

        def advance(tokens: int) -> None:
            progress.advance(task, tokens)

        yield advance


def write_json(path: str | None, value: object) -> None:
    """Write a result where `--json` says: a file, `-` for stdout, or nowhere."""
    if path is None:
        return
    data = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if path == "-":
        click.echo(data, nl=False)
    else:
        Path(path).write_bytes(data)


def _print_table(results: Sequence[FileResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = {
        "file": [Path(r.file).name for r in results],
        "answers": [str(r.sequences) for r in results],
        "tokens": [str(r.tokens) for r in results],
        "ambiguous": [str(r.ambiguous_tokens) for r in results],
        "match": [f"{r.exact_match_rate:.4f}" for r in results],
        "outside": [str(r.outside_support) for r in results],
        "margin": [f"{r.mean_margin:.4f}" for r in results],
        "tokens/s": [f"{r.tokens_per_second:.0f}" for r in results],
    }
    if not any(r.ambiguous_tokens for r in results):
        del columns["ambiguous"]  # it is for `--hide-ids`, and the file's name needs the room
    table = Table()
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "file" else "right", no_wrap=heading != "file")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    Console().print(table)
