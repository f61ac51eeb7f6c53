"""``seedproof demo``: the main job on this machine, with a real model and nothing simulated.

An honest provider and one that serves 4-bit weights, the proxy before both, a worker behind it; chats go
through the official OpenAI SDK with nothing but ``base_url`` changed; verdicts are read from the audit database.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from storage import audits, jobs, streams
from storage.audits import StreamSummary
from storage.database import Database, open_database
from storage.models import Stream
from verifier.demo_model import NAME, cache_directory, ensure_demo_model
from verifier.demo_processes import Server, Servers, environment, free_ports, running
from verifier.demo_report import UpstreamResult, as_json, as_table
from verifier.errors import VerifierError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SAMPLER = "vllm@0.26.0/v2"
CHATS_AT_ONCE = 8
START_SECONDS = 180.0
AUDIT_SECONDS = 300.0
POLL_SECONDS = 0.3

TOPICS = (
    "photosynthesis", "the tides", "binary search", "a violin", "inflation", "volcanoes", "vaccines", "chess",
    "the moon's phases", "sourdough bread", "black holes", "cryptography", "coral reefs", "jazz", "glaciers",
    "the printing press",
)  # fmt: skip
TASKS = (
    "Explain {} to a ten year old.",
    "Write three surprising facts about {}.",
    "Write a short story in which {} changes somebody's life.",
    "What do people most often get wrong about {}?",
)


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One of the demo's providers; ``cheat`` as ``seedproof provider --cheat`` takes it."""

    name: str
    cheat: str | None
    port: int


def chat_messages(count: int) -> list[list[dict[str, str]]]:
    """The first ``count`` chats: every topic in turn, each time round with another task."""
    chats = []
    for number in range(count):
        turn, topic = divmod(number, len(TOPICS))
        task = TASKS[(topic + turn) % len(TASKS)]
        chats.append([{"role": "user", "content": task.format(TOPICS[topic])}])
    return chats


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where one run of the demo keeps its things and listens."""

    directory: Path
    model: Path
    providers: tuple[Provider, ...]
    proxy_port: int
    dashboard_port: int

    @property
    def dashboard(self) -> str:
        """The dashboard's address."""
        return f"http://127.0.0.1:{self.dashboard_port}/dashboard"

    @property
    def database(self) -> Path:
        """The audit database's file."""
        return self.directory / "seedproof.db"

    @property
    def store(self) -> str:
        """Its URL."""
        return f"sqlite:///{self.database}"

    @property
    def config(self) -> Path:
        """The proxy's configuration file."""
        return self.directory / "proxy.toml"

    @property
    def url(self) -> str:
        """The proxy's address; a provider's own base URL is ``{url}/{name}/v1``."""
        return f"http://127.0.0.1:{self.proxy_port}"


def prepare(model: Path, now: datetime) -> Run:
    """Make a new directory for one run, choose its ports and write the proxy's configuration."""
    directory = cache_directory() / "demo" / f"{now:%Y%m%d-%H%M%S}-{os.getpid()}"
    directory.mkdir(parents=True)
    proxy_port, dashboard_port, honest, int4 = free_ports(4)
    providers = (
        Provider(name="honest", cheat=None, port=honest),
        Provider(name="int4", cheat="int4", port=int4),
    )
    ports = {"proxy_port": proxy_port, "dashboard_port": dashboard_port}
    run = Run(directory=directory, model=model, providers=providers, **ports)
    run.config.write_text(proxy_config(run))
    return run


def proxy_config(run: Run) -> str:
    """The proxy's TOML: each provider under its own path, all claiming the same model. Strings are JSON's."""
    head = f"""listen = "127.0.0.1:{run.proxy_port}"
store = {json.dumps(run.store)}

[seed]
secret_env = "SEEDPROOF_SEED_SECRET"

[dashboard]
listen = "127.0.0.1:{run.dashboard_port}"
"""
    tables = [
        f"""
[[upstreams]]
name = "{provider.name}"
base_url = "http://127.0.0.1:{provider.port}/v1"
kind = "vllm"
prefix_only = true

[upstreams.sampling]
temperature = 1.0
top_p = 1.0

[upstreams.models."{NAME}"]
reference = {json.dumps(str(run.model))}
sampler = "{SAMPLER}"
"""
        for provider in run.providers
    ]
    return head + "".join(tables)


async def run_demo(
    *, requests: int, max_tokens: int, once: bool, json_path: Path | None, console: Console
) -> list[UpstreamResult]:
    """Run the demo; without ``once`` it keeps serving until cancelled.

    Raises:
        VerifierError: the model cannot be had, or one of the servers failed; the sentence names its log.
    """
    with console.status(f"Preparing {NAME} (about a minute, the first time only)"):
        model = await asyncio.to_thread(ensure_demo_model)
    run = prepare(model, datetime.now().astimezone())
    console.print(f"Logs and database: {run.directory}", soft_wrap=True, highlight=False)
    # three processes compute at a time: half the cores each keeps them from waiting for one another
    threads = max(1, (os.cpu_count() or 1) // 2)
    variables = environment(threads, SEEDPROOF_SEED_SECRET=secrets.token_hex(32))
    async with running(run.directory, variables) as servers:
        with console.status("Starting two providers, the proxy and a worker"):
            await start_all(servers, run)
        async with open_database(run.store) as database:
            await chat_and_audit(servers, run, database, requests=requests, max_tokens=max_tokens, console=console)
            results = await read_results(database, run.providers)
        report(results, run.database, json_path, console)
        if not once:
            await keep_serving(servers, run, console)
    return results


async def start_all(servers: Servers, run: Run) -> None:
    """Start everything, and wait until each provider and the proxy answer."""
    started = []
    for provider in run.providers:
        cheat = ["--cheat", provider.cheat] if provider.cheat else []
        named = ["--name", NAME, "--sampler", SAMPLER, "--port", str(provider.port)]
        server = await servers.start(f"provider-{provider.name}", "provider", str(run.model), *named, *cheat)
        started.append((server, provider.port))
    started.append((await servers.start("proxy", "serve", "--config", str(run.config)), run.proxy_port))
    await servers.start("worker", "worker", "--store", run.store)
    await asyncio.gather(*(wait_until_ready(server, port) for server, port in started))


async def wait_until_ready(server: Server, port: int) -> None:
    """Return when something listens at the port.

    Raises:
        VerifierError: the server ended, or took longer than ``START_SECONDS``.
    """
    for _ in range(int(START_SECONDS / POLL_SECONDS)):
        server.check()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(POLL_SECONDS)
        else:
            writer.close()
            return
    late = f"the demo's {server.name} did not start within {START_SECONDS:g} s"
    raise VerifierError(f"{late} (see {server.log})")


async def chat_and_audit(
    servers: Servers, run: Run, database: Database, *, requests: int, max_tokens: int, console: Console
) -> None:
    """Chat with every provider through the proxy, and wait until all that is audited."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        chats = [chat(run.url, p.name, progress, count=requests, max_tokens=max_tokens) for p in run.providers]
        audited = watch_audits(servers, database, progress, expected=requests * len(run.providers))
        await all_or_first_error(*chats, audited)


async def read_results(database: Database, providers: Sequence[Provider]) -> list[UpstreamResult]:
    """What the audits and the stream in the database say of each provider."""
    async with database.reading() as session:
        sums = {row.upstream: row for row in await audits.summary(session)}
        weighed = {row.upstream: row for row in await streams.every(session)}
    return [_result(provider, sums.get(provider.name), weighed.get(provider.name)) for provider in providers]


def _result(provider: Provider, sums: StreamSummary | None, stream: Stream | None) -> UpstreamResult:
    return UpstreamResult(
        name=provider.name,
        cheat=provider.cheat,
        requests=sums.requests if sums else 0,
        tokens=sums.tokens if sums else 0,
        exact_matches=sums.exact_matches if sums else 0,
        verdict=stream.verdict if stream else "unsupported",
        reasons=tuple(stream.reasons) if stream else ("no_data",),
        log_e=stream.log_e if stream else 0.0,
    )


async def chat(proxy_url: str, name: str, progress: Progress, *, count: int, max_tokens: int) -> None:
    """Send the chats to one provider, every other one streamed, a few at a time."""
    from openai import AsyncOpenAI

    base_url = f"{proxy_url}/{name}/v1"
    bar = progress.add_task(f"chats with {name}", total=count)
    turns = asyncio.Semaphore(CHATS_AT_ONCE)

    async def one(number: int, messages: list[dict[str, str]]) -> None:
        async with turns:
            await complete(client, messages, streamed=bool(number % 2), max_tokens=max_tokens)
        progress.advance(bar)

    async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600) as client:
        await all_or_first_error(*(one(i, messages) for i, messages in enumerate(chat_messages(count))))


async def complete(
    client: AsyncOpenAI, messages: list[dict[str, str]], *, streamed: bool, max_tokens: int
) -> None:
    """One chat completion, read to its end.

    Raises:
        VerifierError: the SDK reports an error.
    """
    from openai import OpenAIError

    asked: dict[str, object] = {"model": NAME, "messages": messages, "max_tokens": max_tokens}
    try:
        if streamed:
            async for _ in await client.chat.completions.create(stream=True, **asked):  # type: ignore[call-overload]
                pass
        else:
            await client.chat.completions.create(**asked)  # type: ignore[call-overload]
    except OpenAIError as error:
        raise VerifierError(f"a chat through the proxy failed: {error}") from error


async def watch_audits(servers: Servers, database: Database, progress: Progress, *, expected: int) -> None:
    """Show audits as they are made; return when every exchange has ended in one or in a reason why not.

    Raises:
        VerifierError: a server ended, or no audit came for ``AUDIT_SECONDS``.
    """
    bar = progress.add_task("audits", total=expected)
    done, idle = 0, 0.0
    while done < expected:
        await asyncio.sleep(POLL_SECONDS)
        servers.check()
        async with database.reading() as session:
            backlog = await jobs.pending(session)
        idle = idle + POLL_SECONDS if backlog.done + backlog.failed == done else 0.0
        done = backlog.done + backlog.failed
        progress.update(bar, completed=done)
        if idle > AUDIT_SECONDS:
            raise VerifierError(f"no audit came for {AUDIT_SECONDS:g} s ({done} of {expected} are done)")


async def all_or_first_error(*coroutines: object) -> None:
    """Await all; at the first failure cancel the rest and raise it."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]  # type: ignore[call-overload]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def report(
    results: Sequence[UpstreamResult], database: Path, json_path: Path | None, console: Console
) -> None:
    """Print the table and where the database lies; write the JSON file if asked.

    Raises:
        VerifierError: the JSON file cannot be written.
    """
    console.print(as_table(results))
    console.print(f"Audit database: {database}", soft_wrap=True, highlight=False)
    console.print(f"What is behind it: seedproof report --store sqlite:///{database}", soft_wrap=True, highlight=False)
    if json_path is not None:
        try:
            json_path.write_text(json.dumps(as_json(results), indent=2) + "\n")
        except OSError as error:
            sentence = f"cannot write {json_path} ({error.strerror}); choose another --json"
            raise VerifierError(sentence) from error


async def keep_serving(servers: Servers, run: Run, console: Console) -> None:
    """Tell how to use the running proxy, and wait until cancelled or until a server ends."""
    console.print(
        f'\nStill serving model="{NAME}". Point any OpenAI SDK at it:\n\n'
        f'    OpenAI(base_url="{run.url}/honest/v1", api_key="none")\n'
        f'    OpenAI(base_url="{run.url}/int4/v1", api_key="none")\n\n'
        f"Dashboard: {run.dashboard}\n"
        "Ctrl-C ends everything.",
        soft_wrap=True,
        highlight=False,
    )
    while True:
        await asyncio.sleep(1)
        servers.check()
