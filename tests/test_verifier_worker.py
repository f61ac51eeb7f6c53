"""The worker against the queue: poisoned jobs end with their reason and never block the rest."""

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import select, update
from storage_rows import NOON, exchange

from storage import exchanges
from storage.database import open_database
from storage.models import Audit, Job, JobState
from verifier.auditor import Auditor
from verifier.errors import ExecutorLost, ReferenceLost, ReferenceUnreadable
from verifier.executor import InlineExecutor
from verifier.models import load_model
from verifier.worker import MAX_ATTEMPTS, Worker

CHOICE = {"index": 0, "text": "Hi", "token_ids": [26843], "finish_reason": "length"}


def recorded(number, directory, **response):
    return exchange(
        number,
        request={"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]},
        forced={"seed": 5, "temperature": 1.0},
        response={"choices": [CHOICE], **response},
        reference=str(directory),
        sampler="vllm@0.26.0/v2",
    )


@pytest.fixture
async def database(sqlite_url):
    async with open_database(sqlite_url) as database:
        yield database


async def worked_off(database, *recordings):
    async with database.writing() as session:
        await exchanges.record(session, recordings)
    worker = Worker(database, InlineExecutor(Auditor(partial(load_model, directories={}))), name="test")
    await worker.run(until_empty=True)
    return worker


async def everything(database, table):
    async with database.reading() as session:
        return list((await session.scalars(select(table).order_by(table.exchange_id))).all())


async def test_an_answer_that_breaks_the_audit_does_not_hold_up_the_others(database, tiny_directory):
    poisoned = recorded(2, tiny_directory, choices=[{"text": "no index"}])
    await worked_off(database, recorded(1, tiny_directory), poisoned, recorded(3, tiny_directory))
    jobs = await everything(database, Job)
    assert [job.state for job in jobs] == [JobState.DONE, JobState.TODO, JobState.DONE]
    assert "index" in jobs[1].reason
    assert len(await everything(database, Audit)) == 2


async def test_a_poisoned_job_ends_as_failed_with_its_reason(database, tiny_directory):
    poisoned = recorded(1, tiny_directory, choices=[{"text": "no index"}])
    worker = await worked_off(database, poisoned)
    for _ in range(MAX_ATTEMPTS):
        async with database.writing() as session:
            await session.execute(update(Job).where(Job.state == JobState.TODO).values(run_at=NOON - timedelta(days=1)))
        await worker.step()
    (job,) = await everything(database, Job)
    assert (job.state, job.attempts) == (JobState.FAILED, MAX_ATTEMPTS)
    assert job.reason.startswith("KeyError")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token_ids": [26843, 26843]}, "ids_do_not_match_text"),
        ({"token_ids": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "tool_call_text"),
        ({"token_ids": None, "text": ""}, "empty_answer"),
    ],
)
async def test_what_cannot_be_judged_is_unsupported_with_its_reason(database, tiny_directory, change, reason):
    await worked_off(database, recorded(1, tiny_directory, choices=[{**CHOICE, **change}]))
    (audit,) = await everything(database, Audit)
    assert (audit.verdict_status.value, audit.reason) == ("unsupported", reason)


async def test_an_unknown_contract_is_unsupported_and_says_how_to_write_it(database, tiny_directory):
    await worked_off(database, replace(recorded(1, tiny_directory), sampler="vlm@1"))
    (audit,) = await everything(database, Audit)
    assert audit.reason == "sampling_not_replayable"
    assert "did you mean 'vllm'" in audit.notes["detail"]


async def test_jobs_outlast_a_reference_that_cannot_be_loaded(database, tiny_directory):
    """The fault is the worker's own, so no number of attempts uses a job up."""
    failures = [ReferenceUnreadable("the disk is gone")] * (MAX_ATTEMPTS + 2)

    def load(name):
        if failures:
            raise failures.pop()
        return load_model(name, directories={})

    async with database.writing() as session:
        await exchanges.record(session, [recorded(1, tiny_directory)])
    worker = Worker(database, InlineExecutor(Auditor(load)), name="test")
    for _ in range(MAX_ATTEMPTS + 2):
        assert await worker.step() == 1
        (job,) = await everything(database, Job)
        assert (job.state, job.reason) == (JobState.TODO, "ReferenceUnreadable: the disk is gone")
        async with database.writing() as session:
            await session.execute(update(Job).values(run_at=NOON - timedelta(days=1)))
    assert await worker.step() == 1
    (job,) = await everything(database, Job)
    assert job.state == JobState.DONE


async def test_a_reference_whose_engine_died_is_loaded_again(database, tiny_directory):
    loaded = []

    def load(name):
        model = load_model(name, directories={})
        loaded.append(model)
        if len(loaded) == 1:
            model.reference.logits = dead
        return model

    def dead(sequences):
        raise ReferenceLost("vLLM's engine has died")

    async with database.writing() as session:
        await exchanges.record(session, [recorded(number, tiny_directory) for number in (1, 2)])
    worker = Worker(database, InlineExecutor(Auditor(load)), name="test")
    await worker.step()
    jobs = await everything(database, Job)
    assert [(job.state, job.reason) for job in jobs] == [(JobState.TODO, "ReferenceLost: vLLM's engine has died")] * 2
    async with database.writing() as session:
        await session.execute(update(Job).values(run_at=NOON - timedelta(days=1)))
    await worker.step()
    assert [job.state for job in await everything(database, Job)] == [JobState.DONE] * 2
    assert len(loaded) == 2


async def test_an_executor_that_is_closed_while_it_loads_audits_nothing_more(tiny_directory):
    loading, go_on, audited = threading.Event(), threading.Event(), []

    def load(name):
        loading.set()
        assert go_on.wait(60)
        model = load_model(name, directories={})
        model.reference.logits = audited.append
        return model

    executor, batch = InlineExecutor(Auditor(load)), [recorded(number, tiny_directory) for number in (1, 2)]
    auditing = asyncio.create_task(executor.audit(str(tiny_directory), batch, now=NOON))
    assert await asyncio.to_thread(loading.wait, 60)
    executor.close()
    go_on.set()
    with pytest.raises(ExecutorLost, match="the worker is stopping"):
        await auditing
    assert audited == []


async def test_lanes_share_the_work_and_do_none_of_it_twice(database, tiny_directory):
    async with database.writing() as session:
        await exchanges.record(session, [recorded(number, tiny_directory) for number in range(1, 10)])
    executor = InlineExecutor(Auditor(partial(load_model, directories={})))
    await Worker(database, executor, name="test", batch=2, lanes=3).run(until_empty=True)
    jobs = await everything(database, Job)
    assert [(job.state, job.attempts) for job in jobs] == [(JobState.DONE, 1)] * 9
    assert len(await everything(database, Audit)) == 9


async def test_an_error_of_one_lane_ends_the_worker(database, tiny_directory):
    class Broken:
        async def audit(self, reference, batch, *, now):
            raise OSError("no threads left")

    async with database.writing() as session:
        await exchanges.record(session, [recorded(1, tiny_directory)])
    with pytest.raises(OSError, match="no threads left"):
        await Worker(database, Broken(), name="test", lanes=2).run()
