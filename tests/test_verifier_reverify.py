"""Old traffic audited again: each exchange once, whatever stops the run, and never before live jobs."""

import asyncio
import json

import pytest
from click.testing import CliRunner
from recorded_exchanges import recorded_exchanges
from sqlalchemy import select, update
from storage_rows import NOON, exchange

from seedproof import cli
from storage import exchanges
from storage.database import open_database
from storage.models import Audit, Job, JobState
from storage.models_reaudits import Reaudit
from storage.reaudits import Selection
from verifier.errors import ReferenceUnreadable
from verifier.executor import InlineExecutor
from verifier.remote_auditor import Loading
from verifier.reverify import Ask, Reverifier, pages
from verifier.throttle import Throttle
from verifier.worker import Worker

WHEN = ["--since", "2026-11-23", "--until", "2026-11-24"]


async def fill(url, directory, count=10):
    """A database whose exchanges have all been audited by the reference in `directory`."""
    async with open_database(url) as database:
        async with database.writing() as session:
            await exchanges.record(session, recorded_exchanges(directory, count))
        await Worker(database, InlineExecutor(Loading({}).auditor()), name="w").run(until_empty=True)


async def kept(url):
    async with open_database(url) as database, database.reading() as session:
        return list(await session.scalars(select(Reaudit).order_by(Reaudit.exchange_id)))


def test_the_same_reference_finds_the_same_and_another_one_less(sqlite_url, tiny_directory, other_tiny_directory):
    asyncio.run(fill(sqlite_url, tiny_directory))
    same = reverify(sqlite_url)
    assert same["run"] == "own reference own sampler"
    (stream,) = same["streams"]
    assert stream["choices"] == 10
    assert stream["old_matches"] == stream["new_matches"]
    (stream,) = reverify(sqlite_url, "--reference", f"other={other_tiny_directory}")["streams"]
    assert (stream["old_reference"], stream["new_reference"]) == (str(tiny_directory), "other")
    assert stream["choices"] == 10
    assert stream["new_tokens"] == stream["old_tokens"] > 100
    rows = asyncio.run(kept(sqlite_url))
    assert len(rows) == 20
    assert {row.run for row in rows} == {"own reference own sampler", "other own sampler"}


def reverify(url, *options):
    done = CliRunner().invoke(cli, ["reverify", "--store", url, *WHEN, "--json", "-", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_an_unknown_contract_is_refused_before_any_work(sqlite_url):
    done = CliRunner().invoke(cli, ["reverify", "--store", sqlite_url, *WHEN, "--sampler", "vlm@1"])
    assert "did you mean 'vllm'" in str(done.exception)


@pytest.fixture
async def audited(sqlite_url, tiny_directory):
    """A database of 20 audited exchanges."""
    await fill(sqlite_url, tiny_directory, 20)
    async with open_database(sqlite_url) as database:
        yield database


def ask(**changes):
    day = NOON.replace(hour=0)
    return Ask(Selection("run", day, day.replace(day=24)), **changes)


async def run(database, asked, auditor=None):
    reverifier = Reverifier(database, auditor or Loading({}).auditor(), asked)
    return [await reverifier.do(page) async for page in pages(database, asked.selection)]


async def test_a_run_that_stopped_goes_on_where_it_was(audited):
    async def broken():
        reverifier = Reverifier(audited, Loading({}).auditor(), ask())
        async for page in pages(audited, ask().selection):
            await reverifier.do(page)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await broken()
    assert await run(audited, ask()) == [8, 4]
    assert await run(audited, ask()) == []
    async with audited.reading() as session:
        found = [row.exchange_id for row in await session.scalars(select(Reaudit))]
        before = {audit.exchange_id: audit.exact_matches for audit in await session.scalars(select(Audit))}
        assert sorted(found) == sorted(before)
        assert {row.exchange_id: row.exact_matches for row in await session.scalars(select(Reaudit))} == before


async def test_what_cannot_be_verified_by_another_contract_has_its_reason(audited):
    async with audited.writing() as session:
        await session.execute(update(Job).values(state=JobState.DONE))
    await run(audited, ask(sampler="v"), auditor=Refusing())
    async with audited.reading() as session:
        rows = list(await session.scalars(select(Reaudit)))
    assert {(row.verdict_status.value, row.reason, row.sampler) for row in rows} == {
        ("failed", "KeyError: 'index'", "v"), ("unsupported", "no_choices", "v")
    }  # fmt: skip


class Refusing:
    """An auditor that breaks on one exchange of two, and finds no choice in the others."""

    def audit_by(self, reference, batch, *, sampler, now):
        return {one.id: KeyError("index") if number % 2 else [] for number, one in enumerate(batch)}


class Unreadable:
    def audit_by(self, reference, batch, *, sampler, now):
        return {one.id: ReferenceUnreadable("no model lies there") for one in batch}


async def test_a_reference_that_cannot_be_read_ends_the_run_and_marks_nothing_as_done(audited):
    with pytest.raises(ReferenceUnreadable):
        await run(audited, ask(), auditor=Unreadable())
    assert sum(await run(audited, ask())) == 20


async def test_live_jobs_that_wait_go_first(audited, tiny_directory, monkeypatch):
    monkeypatch.setattr("verifier.reverify.LOOK_SECONDS", 0.01)
    async with audited.writing() as session:
        await exchanges.record(session, [exchange(99, reference="live")])
    running = asyncio.create_task(run(audited, ask()))
    done, _ = await asyncio.wait([running], timeout=0.5)
    assert not done
    async with audited.writing() as session:
        await session.execute(update(Job).where(Job.reference == "live").values(state=JobState.DONE))
    assert sum(await running) == 20


def test_a_page_waits_for_the_one_before_it_as_the_rate_says():
    throttle = Throttle(100.0)
    assert throttle.wait(10.0) == 0
    throttle.add(250, 10.0)
    assert throttle.wait(10.0) == pytest.approx(2.5)
    assert throttle.wait(11.0) == pytest.approx(1.5)
    assert throttle.wait(20.0) == 0
    free = Throttle(None)
    free.add(10**9, 0.0)
    assert free.wait(0.0) == 0
