"""The command line: joins the proxy's side and the verifier's, which do not know each other."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.commands import key_command
from proxy.dashboard_commands import dashboard_group
from proxy.errors import ConfigError, ProxyError
from storage.commands import db, writer_command
from storage.errors import StorageError
from storage.privacy_commands import export_command
from verifier.alert_commands import alerts_group
from verifier.commands import (
    alerts_option,
    json_option,
    named_directories,
    verify_command,
    worker_command,
    write_json,
)
from verifier.demo_commands import demo_command, model_group
from verifier.errors import InputError, VerifierError
from verifier.evidence_commands import calibrate_command, evaluate_command, report_command
from verifier.identify_command import identify_command
from verifier.reverify_command import reverify_command

if TYPE_CHECKING:
    from proxy.config import ProxyConfig
    from storage.models import Exchange
    from verifier.report import StreamReport


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="seedproof", prog_name="seedproof")
def cli() -> None:
    """Audit the provider behind an OpenAI-compatible API by replaying its seeded sampler."""


@cli.command("serve")
@click.option("--config", "path", type=click.Path(dir_okay=False), required=True, help="The TOML file.")
@click.option("--with-worker", is_flag=True, help="Audit in this process too (one machine).")
@click.option("--reference", "references", multiple=True, metavar="NAME=DIR", help="For --with-worker.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Proxies at one address.")
@alerts_option
def serve_command(
    path: str, with_worker: bool, references: tuple[str, ...], processes: int, rules: Path | None
) -> None:
    """Run the auditing proxy until SIGINT or SIGTERM; SIGHUP reads the configuration again."""
    from proxy.commands import run_serve
    from proxy.config import load_config

    if with_worker and processes > 1:
        raise ConfigError("--with-worker is for one process; run seedproof worker beside several")
    config = load_config(Path(path))
    check_contracts(config)
    upgrade_apart(config.store)
    if rules is not None and not with_worker:
        raise ConfigError("the worker watches for alerts: give --alerts to it, or add --with-worker")
    if not with_worker:
        run_serve(Path(path), processes=processes)
        return
    from verifier.commands import run_worker

    directories = named_directories(references)
    run_serve(Path(path), alongside=lambda: run_worker(config.store, directories, rules=rules))


def check_contracts(config: ProxyConfig) -> None:
    """Refuse a sampler that no contract has, where the verifier is installed; the proxy alone cannot tell.

    Asked of another process: the contracts' kernels would double the memory that the proxy holds as long as it runs.

    Raises:
        ConfigError: naming the upstream, the model and the way out.
    """
    import json
    import subprocess

    used = sorted({model.sampler for upstream in config.upstreams for model in upstream.models.values()})
    command = [sys.executable, "-c", _UNKNOWN, *used]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own words)
    unknown = json.loads(asked.stdout) if asked.returncode == 0 else {}
    for upstream in config.upstreams:
        for name, model in upstream.models.items():
            if model.sampler in unknown:
                raise ConfigError(f"upstream {upstream.name!r}, model {name!r}: {unknown[model.sampler]}")


_UNKNOWN = """
import json, sys
from verifier.errors import UnknownContract
from verifier.samplers import contract
unknown = {}
for sampler in sys.argv[1:]:
    try:
        contract(sampler)
    except UnknownContract as error:
        unknown[sampler] = str(error)
print(json.dumps(unknown))
"""


def upgrade_apart(store: str) -> None:
    """Bring the tables up to date in another process, as Alembic's 11 MB would stay with the proxy.

    What fails here fails again where the proxy opens its database, with its reason.
    """
    import subprocess

    command = [sys.executable, "-c", "from storage.commands import db; db(['upgrade'])"]
    subprocess.run(command, env={**os.environ, "SEEDPROOF_STORE": store}, capture_output=True, check=False)  # noqa: S603


@cli.command("erase")
@click.option("--config", "path", type=click.Path(dir_okay=False), required=True, help="The proxy's TOML file.")
@click.option("--user", required=True, help="As the requests' `user` field named the person.")
def erase_command(path: str, user: str) -> None:
    """Delete all exchanges of one user and what their audits quote; what the journal still holds is not written."""
    import asyncio
    from datetime import datetime, timezone
    from pathlib import Path

    from proxy.config import load_config
    from proxy.policy import user_hash
    from storage.database import open_database
    from storage.retention import erase

    config = load_config(Path(path))
    hashed = user_hash(user, config.seed_secret)
    if hashed is None:
        raise click.UsageError("--user is empty")

    async def work() -> int:
        async with open_database(config.store) as database:
            return await erase(database, hashed, now=datetime.now(timezone.utc))

    click.echo(f"{asyncio.run(work())} exchanges deleted")


@cli.command("provider")
@click.argument("model", type=click.Path(exists=True, file_okay=False))
@click.option("--name", help="The model's name for clients; the directory's unless told.")
@click.option("--sampler", default="vllm@0.26.0/v2", show_default=True, help="Contract that decides the tokens.")
@click.option("--cheat", "cheats", multiple=True, help="int4, temperature=X, system-prompt=TEXT, ignore-seed, …")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8101, show_default=True, help="Of that address.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu, cuda.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
              help="Of its weights.")  # fmt: skip
def provider_command(
    model: str, name: str | None, sampler: str, cheats: tuple[str, ...], host: str, port: int, device: str, dtype: str
) -> None:
    """Serve MODEL like vLLM, honestly or not: for demos, calibration and tests."""
    from pathlib import Path

    from proxy import demo_provider
    from verifier.cheats import parse_cheats
    from verifier.generation import load_engine

    path, chosen = Path(model), parse_cheats(cheats)
    served = name or path.resolve().name
    engine = load_engine(path, sampler_id=sampler, name=served, cheats=chosen, device=device, dtype=dtype)
    demo_provider.serve(engine, host=host, port=port, announce=click.echo)


@cli.command("doctor")
@click.option("--config", "path", type=click.Path(dir_okay=False), required=True, help="The TOML file.")
@click.option("--upstream", "name", required=True, help="Which of its upstreams.")
@click.option("--model", help="As the provider names it; the upstream's first model unless told.")
@click.option("--reference", help="The trusted model (a directory, or demo); the configured one where it lies here.")
@click.option("--tokens", type=click.IntRange(min=16), default=64, show_default=True, help="Of each answer.")
@json_option
def doctor_command(
    path: str, name: str, model: str | None, reference: str | None, tokens: int, json_path: str | None
) -> None:
    """Ask a provider a handful of questions: what it honours, what can be verified, and the TOML to write.

    Ten requests go straight to the provider. With a reference its prompt is compared and its sampler named.
    """
    import asyncio
    from pathlib import Path

    from proxy import doctor
    from proxy.config import load_config
    from proxy.doctor_calls import ask_all
    from proxy.doctor_report import Diagnosis

    upstream = doctor.named(load_config(Path(path)).upstreams, name)
    examined = doctor.examined_model(upstream, model, reference)
    answers, exchanges = asyncio.run(ask_all(upstream, examined, max_tokens=tokens))
    diagnosis = Diagnosis(upstream, examined, answers, _examination(exchanges, reference or examined.reference))
    if json_path != "-":
        click.echo(diagnosis.as_text(), nl=False)
    write_json(json_path, diagnosis.to_dict())


def _examination(exchanges: Sequence[Exchange], reference: str) -> dict[str, object] | None:
    """What the reference says of the answers; None where there is none on this machine, or no torch for it."""
    from importlib.util import find_spec
    from pathlib import Path

    at_hand = reference == "demo" or (Path(reference) / "config.json").is_file()
    if not exchanges or not at_hand or find_spec("torch") is None:
        return None
    from verifier.examination import examine
    from verifier.models import load_model

    return examine(exchanges, load_model(reference, directories={})).to_dict()


@cli.command("probe")
@click.option("--config", "path", type=click.Path(dir_okay=False), required=True, help="The TOML file.")
@click.option("--upstream", "name", required=True, help="Which of its upstreams.")
@click.option("--model", required=True, help="One of the upstream's models.")
@click.option("--requests", type=click.IntRange(min=1), default=50, show_default=True, help="Resumed ones count.")
@click.option("--tokens", type=click.IntRange(min=2), default=200, show_default=True, help="Of an answer, at most.")
@click.option("--prompts", "file", type=click.Path(dir_okay=False), help="Own prompts: a text or {messages} a line.")
@click.option("--from-traffic", is_flag=True, help="Prompts of the newest recorded exchanges.")
@click.option("--pace", type=click.FloatRange(min=0, min_open=True), default=6, show_default=True, help="Per minute.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 for engines without seeds: a weaker, greedy check.")
@click.option("--proxy", "address", help="A running proxy, http://127.0.0.1:8080, instead of one in this process.")
@click.option("--state", type=click.Path(dir_okay=False), default="probe.state", show_default=True, help="To resume.")
@click.option("--audit", is_flag=True, help="Work off the queue here afterwards, instead of by a worker elsewhere.")
@click.option("--reference", "references", multiple=True, metavar="NAME=DIR", help="For --audit.")
@json_option
def probe_command(
    path: str, name: str, model: str, requests: int, tokens: int, file: str | None, from_traffic: bool, pace: float,
    temperature: float | None, address: str | None, state: str, audit: bool, references: tuple[str, ...],
    json_path: str | None,
) -> None:  # fmt: skip
    """Send private prompts that look like traffic, and report on exactly these exchanges.

    They take the proxy's own path to the provider: same policy, seeds and fields, by the official SDK, at random times,
    lengths and modes. Interrupted, it goes on where it stopped. With --proxy the configuration is that proxy's: its
    audit rate holds for probes too, and OPENAI_API_KEY is a client's key where it has clients.
    """
    import asyncio
    import random
    from contextlib import nullcontext
    from pathlib import Path

    from proxy import probe_calls
    from proxy.config import load_config
    from proxy.doctor import named
    from proxy.probing import read_prompts

    config = load_config(Path(path))
    upstream, chance = named(config.upstreams, name), random.SystemRandom()
    probing = probe_calls.for_probes(config, upstream, model, temperature=temperature)
    if address is not None and temperature is not None:
        raise click.UsageError("a running proxy forces its own temperature: leave out --proxy, or --temperature")
    own = read_prompts(Path(file).read_text(encoding="utf-8").splitlines(), file) if file else None

    async def run() -> tuple[list[str], list[StreamReport]]:
        prompts = await probe_calls.recent_conversations(config.store, name, model) if from_traffic else own
        async with probe_calls.own_proxy(probing) if address is None else nullcontext(address) as place:
            ids = await probe_calls.send(
                place, name, model, requests=requests, max_tokens=tokens, per_minute=pace, state=Path(state),
                prompts=prompts, api_key=os.environ.get("OPENAI_API_KEY", "unused"), chance=chance,
            )  # fmt: skip
        if address is not None:
            await probe_calls.recorded(config.store, ids)
        if audit:
            from verifier.commands import run_worker

            await run_worker(config.store, named_directories(references), until_empty=True)
        return ids, await _reports_of(config.store, name, ids)

    _tell_probes(*asyncio.run(run()), greedy=temperature == 0, json_path=json_path)


async def _reports_of(store: str, upstream: str, ids: Sequence[str]) -> list[StreamReport]:
    from storage.database import open_database
    from verifier.streams import reports

    async with open_database(store) as database, database.reading() as session:
        found = await reports(session, upstream=upstream, exchange_ids=ids)
    return [report for report in found if report.verdict.requests]


def _tell_probes(
    ids: Sequence[str], reports: Sequence[StreamReport], *, greedy: bool, json_path: str | None
) -> None:
    from verifier.report import as_json, as_table
    from verifier.terminal import console

    if json_path != "-":
        audited = sum(report.verdict.requests for report in reports)
        click.echo(f"{len(ids)} exchanges, {audited} of them audited")
        if greedy:
            click.echo("at temperature 0: of the weights and the prompt only; says nothing of the sampler")
        console().print(as_table(reports))
    write_json(json_path, {"exchanges": list(ids), "greedy": greedy, **as_json(reports)})


cli.add_command(verify_command)
cli.add_command(identify_command)
cli.add_command(worker_command)
cli.add_command(calibrate_command)
cli.add_command(report_command)
cli.add_command(reverify_command)
cli.add_command(evaluate_command)
cli.add_command(model_group)
cli.add_command(demo_command)
cli.add_command(key_command)
cli.add_command(db)
cli.add_command(writer_command)
cli.add_command(export_command)
cli.add_command(dashboard_group)
cli.add_command(alerts_group)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: an error of ours is one line and a non-zero exit, never a traceback."""
    # Before torch is loaded: its threads wait by spinning, which on a shared machine took 3 of 4 CPU seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells every plugin that it loads
    try:
        cli(arguments)
    except (ProxyError, StorageError, VerifierError) as error:
        click.echo(f"seedproof: {error}", err=True)
        sys.exit(2 if isinstance(error, (ConfigError, InputError)) else 1)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "numpy", "numba", "scipy", "matplotlib", "asyncpg", "openai"):
            raise
        click.echo(f"seedproof: {error.name} is not installed; run pip install 'seedproof[cpu,demo]'", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
