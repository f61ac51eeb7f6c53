"""The queue's states: each transition, who may make it, and what happens when two want the same job."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from storage_rows import MINUTE, NOON, exchange

from storage import exchanges, jobs
from storage.database import Database, open_database
from storage.models import Job, JobState, Stream
from storage.turns import FRESH

LATER = NOON + timedelta(hours=1)


@pytest.fixture
async def database(database_url):
    async with open_database(database_url) as database:
        yield database


async def fill(database: Database, count: int, **changes) -> None:
    async with database.writing() as session:
        await exchanges.record(session, [exchange(i, **changes) for i in range(count)])


async def claim(database: Database, *, worker="w", limit=1, now=LATER, reference=None) -> list[jobs.Claim]:
    async with database.writing() as session:
        return await jobs.claim(
            session, worker=worker, limit=limit, lease=MINUTE, now=now, reference=reference
        )


async def only_job(database: Database) -> Job:
    async with database.reading() as session:
        return (await session.scalars(select(Job))).one()


async def test_claims_are_the_longest_waiting_and_name_their_work(database):
    await fill(database, 5)
    claims = await claim(database, limit=2)
    assert [claim.exchange_id for claim in claims] == ["0193-0000", "0193-0001"]
    assert {(held.reference, held.lease_token, held.attempts) for held in claims} == {("smollm2-bf16", 1, 1)}
    rest = await claim(database, limit=9)
    assert [held.exchange_id for held in rest] == ["0193-0002", "0193-0003", "0193-0004"]
    assert await claim(database, limit=9) == []


async def test_a_worker_claims_only_what_is_due_and_for_its_reference(database):
    await fill(database, 3)
    async with database.writing() as session:
        await exchanges.record(session, [exchange(9, reference="llama")])
    assert [claim.exchange_id for claim in await claim(database, limit=9, reference="llama")] == ["0193-0009"]
    due = await claim(database, limit=9, now=NOON + timedelta(seconds=1))
    assert [claim.exchange_id for claim in due] == ["0193-0000", "0193-0001"]


async def test_workers_at_the_same_moment_get_different_jobs(database):
    await fill(database, 60)
    claims = await asyncio.gather(*(claim(database, worker=f"w{i}", limit=7) for i in range(10)))
    taken = [claim.job_id for batch in claims for claim in batch]
    assert len(taken) == len(set(taken)) == 60


async def test_postgres_workers_do_not_wait_for_each_other(postgres_url):
    async with open_database(postgres_url) as database:
        await fill(database, 4)
        async with database.writing() as first, database.writing() as second:
            mine = await jobs.claim(first, worker="a", limit=2, lease=MINUTE, now=LATER)
            theirs = await jobs.claim(second, worker="b", limit=9, lease=MINUTE, now=LATER)
    assert (len(mine), len(theirs)) == (2, 2)
    assert not {claim.job_id for claim in mine} & {claim.job_id for claim in theirs}


async def test_complete_is_final(database):
    await fill(database, 1)
    (held,) = await claim(database)
    async with database.writing() as session:
        assert await jobs.complete(session, held)
        assert not await jobs.complete(session, held)
        assert not await jobs.fail(session, held, reason="too late")
        assert not await jobs.retry(session, held, at=LATER, reason="too late")
    job = await only_job(database)
    assert (job.state, job.worker, job.lease_until, job.reason) == (JobState.DONE, None, None, None)
    assert await claim(database, now=LATER + timedelta(days=1)) == []


async def test_retry_waits_until_its_time_and_counts(database):
    await fill(database, 1)
    (held,) = await claim(database)
    async with database.writing() as session:
        assert await jobs.retry(session, held, at=LATER + MINUTE, reason="out of memory")
    assert (await only_job(database)).reason == "out of memory"
    assert await claim(database) == []
    (again,) = await claim(database, now=LATER + MINUTE)
    assert (again.attempts, again.lease_token) == (2, 2)


async def test_failure_is_final_and_says_why(database):
    await fill(database, 1)
    (held,) = await claim(database)
    async with database.writing() as session:
        assert await jobs.fail(session, held, reason="no such template\0")
    job = await only_job(database)
    assert (job.state, job.reason) == (JobState.FAILED, "no such template\ufffd")


async def test_a_lost_lease_cannot_end_the_job(database):
    await fill(database, 1)
    (lost,) = await claim(database, worker="slow")
    async with database.writing() as session:
        assert await jobs.release_stalled(session, now=LATER + MINUTE, max_attempts=9) == 0
        assert await jobs.release_stalled(session, now=LATER + 2 * MINUTE, max_attempts=9) == 1
    (held,) = await claim(database, worker="quick", now=LATER + 2 * MINUTE)
    async with database.writing() as session:
        assert not await jobs.complete(session, lost)
        assert not await jobs.fail(session, lost, reason="x")
        assert await jobs.heartbeat(session, [lost], lease=MINUTE, now=LATER) == []
        assert await jobs.complete(session, held)


async def test_a_heartbeat_keeps_the_lease(database):
    await fill(database, 2)
    claims = await claim(database, limit=2)
    async with database.writing() as session:
        assert await jobs.complete(session, claims[0])
        kept = await jobs.heartbeat(session, claims, lease=10 * MINUTE, now=LATER)
        assert kept == claims[1:]
        assert await jobs.heartbeat(session, [], lease=MINUTE, now=LATER) == []
        assert await jobs.release_stalled(session, now=LATER + 9 * MINUTE, max_attempts=9) == 0


async def test_a_job_that_kills_its_workers_ends_with_its_reason(database):
    await fill(database, 1)
    for attempt in range(1, 4):
        moment = LATER + attempt * 9 * MINUTE
        (held,) = await claim(database, now=moment)
        assert held.attempts == attempt
        async with database.writing() as session:
            assert await jobs.release_stalled(session, now=moment + 2 * MINUTE, max_attempts=3) == 1
    job = await only_job(database)
    assert (job.state, job.reason) == (JobState.FAILED, "its workers died or hung 3 times")


async def test_what_a_stopping_worker_gives_back_is_not_charged(database):
    await fill(database, 2)
    done, held = await claim(database, limit=2)
    async with database.writing() as session:
        await jobs.complete(session, done)
        await jobs.give_back(session, [done, held])
    (again,) = await claim(database, limit=2)
    assert (again.exchange_id, again.attempts, again.lease_token) == (held.exchange_id, 1, 2)


async def test_a_batch_is_of_one_reference(database):
    await fill(database, 2)
    async with database.writing() as session:
        await exchanges.record(session, [exchange(number, reference="llama") for number in (8, 9)])
    taken = [{held.reference for held in await claim(database, limit=9)} for _ in range(2)]
    assert sorted(map(list, taken)) == [["llama"], ["smollm2-bf16"]]


def old_upstream(name: str, *, audits: int = 1000) -> Stream:
    return Stream(
        upstream=name, model="smollm2", reference="smollm2-bf16", sampler="vllm@0.26.0/v2", updated_at=NOON,
        audits=audits, requests=audits, tokens=9, verdict="consistent", reasons=[], log_e=0.0, detail={}, state={},
    )


async def upstreams_of(database: Database, claims: list[jobs.Claim]) -> list[str]:
    async with database.reading() as session:
        found = await exchanges.get(session, [held.exchange_id for held in claims])
    return [found[held.exchange_id].upstream for held in claims]


async def test_upstreams_alternate_whatever_each_has_piled_up(database):
    async with database.writing() as session:
        session.add_all([old_upstream("busy"), old_upstream("quiet")])
    async with database.writing() as session:
        await exchanges.record(session, [exchange(number, upstream="busy") for number in range(300)])
    assert await upstreams_of(database, await claim(database, limit=200)) == ["busy"] * 200
    async with database.writing() as session:
        await exchanges.record(session, [exchange(number, upstream="quiet") for number in range(900, 910)])
        await exchanges.record(session, [exchange(number, upstream="busy") for number in range(300, 400)])
    next_ones = await upstreams_of(database, await claim(database, limit=20))
    assert sorted(next_ones) == ["busy"] * 10 + ["quiet"] * 10


async def test_a_new_streams_first_jobs_go_first_and_no_more_than_those(database):
    async with database.writing() as session:
        session.add(old_upstream("busy"))
    async with database.writing() as session:
        await exchanges.record(session, [exchange(number, upstream="busy") for number in range(50)])
    async with database.writing() as session:
        await exchanges.record(session, [exchange(number, upstream="new") for number in range(100, 400)])
        await exchanges.record(session, [exchange(number, upstream="new") for number in range(400, 600)])
    assert await upstreams_of(database, await claim(database, limit=FRESH)) == ["new"] * FRESH
    assert set(await upstreams_of(database, await claim(database, limit=20))) == {"busy", "new"}


async def test_a_job_that_is_tried_again_goes_first(database):
    async with database.writing() as session:
        session.add(old_upstream("honest"))
    await fill(database, 9)
    (held, *_) = await claim(database, limit=5)
    async with database.writing() as session:
        await jobs.retry(session, held, at=LATER, reason="x")
    assert [again.exchange_id for again in await claim(database)] == [held.exchange_id]


async def test_the_backlog_counts_every_state(database):
    await fill(database, 4)
    done, failed, _ = await claim(database, limit=3)
    async with database.writing() as session:
        await jobs.complete(session, done)
        await jobs.fail(session, failed, reason="x")
    async with database.reading() as session:
        backlog = await jobs.pending(session)
    assert backlog == jobs.Backlog(todo=1, leased=1, done=1, failed=1, oldest=NOON + timedelta(seconds=2))


@pytest.mark.parametrize(
    "change",
    ["state = 'lost'", "state = 'leased'", "state = 'failed'", "worker = 'w'", "lease_until = run_at"],
)
async def test_the_database_refuses_impossible_states(database, change):
    await fill(database, 1)
    with pytest.raises(IntegrityError):
        async with database.writing() as session:
            await session.execute(text(f"UPDATE jobs SET {change}"))


async def test_claiming_reads_an_index_not_the_table(sqlite_url):
    async with open_database(sqlite_url) as database, database.reading() as session:
        plan = await session.execute(
            text("EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE state = 'todo' AND run_at <= :now "
                 "ORDER BY turn, id LIMIT 9"),
            {"now": "2026"},
        )
        assert "INDEX ix_jobs_due" in " ".join(str(step.detail) for step in plan)
