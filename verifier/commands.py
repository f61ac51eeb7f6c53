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
    from verifier.executors import Plan
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
@click.option("--gpu", type=click.IntRange(min=0), help="Work on this GPU alone, by its number; one worker for each.")
@click.option("--backend", default="transformers", show_default=True, help="transformers, vllm or vllm-logprobs.")
@click.option("--dtype", help="Of the reference's weights.  [default: bfloat16 with --gpu, else float32]")
@device_option
@click.option("--max-model-len", type=click.IntRange(min=1), help="Longest prompt and answer, for vLLM.")
@click.option("--vllm", "vllm_kwargs", default="{}", metavar="JSON", help="Further arguments of vllm.LLM.")
@click.option("--batch", type=click.IntRange(min=1), help="Jobs per claim, at most.  [default: 64 with --gpu, else 8]")
@click.option("--batch-tokens", type=click.IntRange(min=1), default=65_536, show_default=True, help="Per claim, about.")
@click.option("--executor", "kind", default="inline", show_default=True, help="Or process, or ray: docs/scaling.md.")
@click.option("--address", default="auto", show_default=True, help="Of the Ray cluster: HOST:PORT of its head.")
@click.option("--min-workers", type=click.IntRange(min=0), default=0, show_default=True, help="Of a reference, in Ray.")
@click.option("--max-workers", type=click.IntRange(min=1), help="Processes, or actors.  [default: one a GPU; 8]")
@click.option("--gpus-per-worker", type=click.IntRange(min=0), default=0, help="Several: for --backend vllm.")
@click.option("--cpus-per-worker", type=click.IntRange(min=1), help="Threads of a reference.  [default: a share; 1]")
@click.option("--until-empty", is_flag=True, help="Exit when no job is left.")
@alerts_option
def worker_command(
    store: str, references: Sequence[str], gpu: int | None, backend: str, dtype: str | None, device: str,
    max_model_len: int | None, vllm_kwargs: str, batch: int | None, batch_tokens: int, kind: str, address: str,
    min_workers: int, max_workers: int | None, gpus_per_worker: int, cpus_per_worker: int | None, until_empty: bool,
    rules: Path | None,
) -> None:  # fmt: skip
    """Audit recorded exchanges from the queue until stopped."""
    from verifier.executors import Plan

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    directories = named_directories(references)
    engine: dict[str, Any] = {}
    if backend.startswith("vllm"):
        engine = {"max_model_len": max_model_len, "vllm_kwargs": _json_object(vllm_kwargs, "--vllm")}
    if gpu is not None:
        # Before anything asks CUDA which GPUs there are.
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpu(gpu, os.environ.get("CUDA_VISIBLE_DEVICES"))
        device = "cuda"
        engine = engine or {"compiled": True}
    if gpus_per_worker or (kind != "inline" and device.startswith("cuda")):
        device, engine = "cuda", engine or {"compiled": True}
    on_gpu = gpu is not None or (kind != "inline" and device == "cuda")
    plan = Plan(kind, address, min_workers, max_workers, gpus_per_worker, cpus_per_worker)
    work = run_worker(
        store, directories, dtype=dtype or ("bfloat16" if on_gpu else "float32"), device=device, backend=backend,
        batch=batch or (64 if on_gpu else 8), batch_tokens=batch_tokens, until_empty=until_empty, rules=rules,
        plan=plan, **engine,
    )  # fmt: skip
    asyncio.run(until_signalled(work))


async def run_worker(
    store: str, directories: dict[str, str], *, dtype: str = "float32", device: str = "cpu",
    backend: str = "transformers", batch: int = 8, batch_tokens: int = 65_536, until_empty: bool = False,
    rules: Path | None = None, plan: Plan | None = None, **engine: Any,
) -> None:  # fmt: skip
    """Open the database and work until cancelled (or the queue is empty); with `rules` watch for alerts meanwhile.

    `plan` says where, here unless told; `engine` is for `open_reference`.
    """
    from functools import partial

    from storage.database import open_database
    from verifier.alert_config import load_alerts
    from verifier.alert_watch import watching
    from verifier.executors import Plan, work
    from verifier.references import check_place, memory
    from verifier.remote_auditor import Loading

    plan = plan or Plan()
    if plan.kind != "ray":
        check_place(backend, device)
    watch = None if rules is None else load_alerts(rules)
    loading = Loading(directories, device, dtype, backend, engine)
    async with open_database(store) as database, watching(database, watch):
        logging.getLogger("seedproof.worker").info("worker %s:%d is ready", socket.gethostname(), os.getpid())
        await work(
            database, loading, plan, until_empty=until_empty, batch=batch, batch_tokens=batch_tokens,
            memory=partial(memory, device if plan.kind == "inline" else "cpu"),
        )  # fmt: skip


def visible_gpu(number: int, visible: str | None) -> str:
    """What CUDA_VISIBLE_DEVICES must be for GPU `number` of those that it shows now."""
    if visible is None:
        return str(number)
    shown = [name.strip() for name in visible.split(",") if name.strip()]
    if number >= len(shown):
        raise click.BadParameter(f"CUDA_VISIBLE_DEVICES={visible} shows {len(shown)} GPUs", param_hint="--gpu")
    return shown[number]


def _json_object(text: str, option: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(f"{text!r} is not JSON ({error})", param_hint=option) from error
    if not isinstance(value, dict):
        raise click.BadParameter(f"{text!r} is not a JSON object", param_hint=option)
    return value


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
    from rich.table import Table

    from verifier.terminal import console

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
    console().print(table)
