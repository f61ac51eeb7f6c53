"""The worker against the queue: poisoned jobs end with their reason and never block the rest."""

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
