"""The main job over real HTTP: SDK → proxy → provider, then worker → audits; honest and cheating."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI
from sqlalchemy import select

from proxy.app import DATABASE, RECORDER, make_app, serving
from proxy.config import parse_config
from proxy.demo_provider import create_app
from storage.audits import unpack_scores
from storage.database import open_database
from storage.models import Audit, Exchange, Job, JobState, Stream
from verifier.auditor import Auditor
from verifier.cheats import parse_cheats
from verifier.executor import InlineExecutor
from verifier.generation import load_engine
from verifier.models import load_model
from verifier.samplers import candidates
from verifier.worker import Worker

SAMPLER = "vllm@0.26.0/v2"
CHAT = [{"role": "user", "content": "Say something."}]


@asynccontextmanager
async def provider(directory: Path, *cheats: str, sampler: str = SAMPLER) -> AsyncIterator[str]:
    engine = load_engine(directory, sampler_id=sampler, name="tiny", cheats=parse_cheats(cheats))
    async with TestServer(create_app(engine)) as server:
        yield str(server.make_url("/v1"))


@asynccontextmanager
async def audited(
    tmp_path: Path, base_url: str, reference: Path, *, sampler: str = SAMPLER, **sampling
) -> AsyncIterator[tuple[str, str]]:
    """A proxy before the provider; yields its address and the store's URL."""
    store = f"sqlite:///{tmp_path / 'audit.db'}"
    config = parse_config(
        {
            "listen": "127.0.0.1:0",
            "store": store,
            "seed": {"secret_env": "SECRET"},
            "upstreams": [
                {
                    "name": "up", "base_url": base_url, "kind": "vllm",
                    "sampling": {"temperature": 1.0, "top_p": 0.95, **sampling},
                    "models": {"tiny": {"reference": str(reference), "sampler": sampler}},
                }
            ],
        },
        {"SECRET": "s" * 32},
        directory=tmp_path,
    )  # fmt: skip
    app = make_app(config)
    async with serving(app, config) as address:
        yield address, store
        await app[RECORDER].drained()
        assert app[DATABASE]


async def work_off(store: str) -> None:
    async with open_database(store) as database:
        executor = InlineExecutor(Auditor(partial(load_model, directories={})))
        await Worker(database, executor, name="test").run(until_empty=True)


async def rows(store: str, table: type) -> list:
    async with open_database(store) as database, database.reading() as session:
        return list((await session.scalars(select(table))).all())


async def chat(address: str, count: int = 2, **more) -> None:
    async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as sdk:
        for number in range(count):
            answer = await sdk.chat.completions.create(
                model="tiny", messages=CHAT, stream=bool(number % 2), **{"max_tokens": 24, **more}
            )
            if number % 2:
                async for _ in answer:
                    pass


async def test_an_honest_providers_answers_match_token_for_token(tmp_path, tiny_directory):
    async with provider(tiny_directory) as url, audited(tmp_path, url, tiny_directory) as (address, store):
        await chat(address, 4)
    await work_off(store)
    audits = await rows(store, Audit)
    assert [(audit.verdict_status.value, audit.token_source.value) for audit in audits] == [("verified", "given")] * 4
    assert all(audit.exact_match_rate == 1.0 and audit.outside_support == 0 for audit in audits)
    assert all(len(unpack_scores(audit.scores)["margin"]) == audit.tokens for audit in audits)
    assert {job.state for job in await rows(store, Job)} == {JobState.DONE}
    (stream,) = await rows(store, Stream)
    assert (stream.audits, stream.requests, stream.verdict) == (4, 4, "inconclusive")
    assert stream.identified["contract"] == SAMPLER


async def test_every_choice_of_n_gets_its_audit_under_its_own_seed(tmp_path, tiny_directory):
    async with provider(tiny_directory) as url, audited(tmp_path, url, tiny_directory) as (address, store):
        await chat(address, 1, n=3)
    await work_off(store)
    audits = await rows(store, Audit)
    assert sorted(audit.choice_index for audit in audits) == [0, 1, 2]
    assert all(audit.exact_match_rate == 1.0 for audit in audits)


@pytest.mark.parametrize("cheat", ["other weights", "ignore-seed", "system-prompt=Answer like a pirate."])
async def test_a_cheat_does_not_match(tmp_path, tiny_directory, other_tiny_directory, cheat):
    told = f"model={other_tiny_directory}" if cheat == "other weights" else cheat
    async with provider(tiny_directory, told) as url, audited(tmp_path, url, tiny_directory) as (address, store):
        await chat(address, 2)
    await work_off(store)
    audits = await rows(store, Audit)
    assert len(audits) == 2
    assert sum(audit.exact_matches for audit in audits) < 0.5 * sum(audit.tokens for audit in audits)


async def test_what_the_client_asked_is_overridden_and_recorded_so(tmp_path, tiny_directory):
    async with provider(tiny_directory) as url, audited(tmp_path, url, tiny_directory, top_k=40) as (address, store):
        await chat(address, 1, temperature=0.2, seed=7)
    await work_off(store)
    (exchange,) = await rows(store, Exchange)
    assert exchange.overridden == {"temperature": 0.2, "seed": 7}
    assert exchange.forced["top_k"] == 40
    assert (await rows(store, Audit))[0].exact_match_rate == 1.0


async def test_a_reference_that_cannot_be_loaded_delays_jobs_and_loses_none(tmp_path, tiny_directory):
    missing = tmp_path / "no-such-model"
    async with provider(tiny_directory) as url, audited(tmp_path, url, missing) as (address, store):
        await chat(address, 2)
    await work_off(store)
    jobs = await rows(store, Job)
    assert [(job.state, job.attempts) for job in jobs] == [(JobState.TODO, 1)] * 2
    assert all("config.json is missing" in job.reason for job in jobs)
    assert await rows(store, Audit) == []


async def test_an_ignored_seed_accuses_nobody_and_is_named(tmp_path, tiny_directory):
    reference = tiny_directory
    async with provider(reference, "ignore-seed") as url, audited(tmp_path, url, reference) as (address, store):
        await chat(address, 8)
    await work_off(store)
    (stream,) = await rows(store, Stream)
    assert (stream.verdict, stream.reasons) == ("unsupported", ["no_contract_fits"])


async def test_another_sampler_accuses_nobody_and_is_named(tmp_path, tiny_directory):
    reference, sampler = tiny_directory, "vllm@0.26.0/v1"
    async with provider(reference, sampler=sampler) as url, audited(tmp_path, url, reference) as (address, store):
        await chat(address, 8)
    await work_off(store)
    (stream,) = await rows(store, Stream)
    assert (stream.verdict, stream.reasons) == ("unsupported", ["sampler_differs"])
    assert stream.identified["contract"].startswith("vllm@0.26.0/v1")


SPECULATING = ("vllm@0.26.0/v1:drafts=3,ngram=1-2", "vllm@0.26.0/v2:drafts=3,ngram=1-2")
WIDTH = 49_152  # the demo tokenizer's; on it most GPU classes draw alike
TWICE = ("sglang@0.5.8", "sglang@0.5.23")  # served by id or by rank, which the batch decides


@pytest.mark.parametrize("sampler", [one for one in (*candidates(WIDTH), *SPECULATING) if one not in TWICE])
async def test_an_engine_that_draws_by_any_contract_matches_token_for_token(tmp_path, tiny_directory, sampler):
    reference = tiny_directory
    async with (
        provider(reference, sampler=sampler) as url,
        audited(tmp_path, url, reference, sampler=sampler, top_p=1.0) as (address, store),
    ):
        await chat(address, 2, n=2)
    await work_off(store)
    audits = await rows(store, Audit)
    # of a model of random weights, intervals of cumulative probability are so narrow that rounding may cross one
    assert len(audits) == 4
    assert sum(audit.exact_matches for audit in audits) >= 0.97 * sum(audit.tokens for audit in audits)


async def test_a_provider_that_speculates_unasked_is_verified_by_its_drafter(tmp_path, tiny_directory):
    reference, plain = tiny_directory, "vllm@0.26.0/v1"
    async with (
        provider(reference, sampler=f"{plain}:drafts=3,ngram=1-3") as url,
        audited(tmp_path, url, reference, sampler=plain, temperature=0.5) as (address, store),
    ):
        await chat(address, 4, max_tokens=80)
    await work_off(store)
    (stream,) = await rows(store, Stream)
    audits = await rows(store, Audit)
    assert stream.verdict in ("inconclusive", "consistent")
    assert stream.identified["contract"].startswith(f"{plain}:drafts=")
    assert {audit.notes["verified_by"] for audit in audits} == {stream.identified["contract"]}
