"""The worker's side of the queue: stops, outages, and exchanges that are gone; on both databases, without a model."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import delete, select
from storage_rows import audit, exchange

from storage import exchanges
from storage.database import open_database
from storage.errors import DatabaseUnreachable
from storage.models import Audit, Exchange, Job, JobState
from verifier import worker as worker_module
from verifier.worker import Worker


class Judged:
    """One verified audit for each exchange; first it waits for `go`, having set `reached`."""

    def __init__(self, *, waits=False):
        self.reached, self.go, self.seen = asyncio.Event(), asyncio.Event(), []
        if not waits:
            self.go.set()

    async def audit(self, reference, batch, *, now):
        self.reached.set()
        await self.go.wait()
        self.seen += [one.id for one in batch]
        return {one.id: [audit(int(one.id[-4:]))] for one in batch}


@pytest.fixture
async def database(database_url):
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [exchange(number) for number in range(3)])
        yield database


async def jobs_of(database):
    async with database.reading() as session:
        return list(await session.scalars(select(Job).order_by(Job.exchange_id)))


async def audits_of(database):
    async with database.reading() as session:
        return list(await session.scalars(select(Audit.exchange_id).order_by(Audit.exchange_id)))


async def test_an_exchange_that_is_gone_ends_its_job_and_no_other(database):
    async with database.writing() as session:
        await session.execute(delete(Exchange).where(Exchange.id == "0193-0001"))
    await Worker(database, Judged(), name="w").run(until_empty=True)
    states = [(job.state, job.reason) for job in await jobs_of(database)]
    gone = (JobState.FAILED, "its exchange is no longer there")
    assert states == [(JobState.DONE, None), gone, (JobState.DONE, None)]
    assert await audits_of(database) == ["0193-0000", "0193-0002"]


async def test_a_worker_that_stops_gives_back_what_it_had(database):
    task = asyncio.create_task(Worker(database, judge := Judged(waits=True), name="w").run())
    await judge.reached.wait()
    assert {job.state for job in await jobs_of(database)} == {JobState.LEASED}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {(job.state, job.attempts, job.worker) for job in await jobs_of(database)} == {(JobState.TODO, 0, None)}
    await Worker(database, Judged(), name="next").run(until_empty=True)
    assert await audits_of(database) == ["0193-0000", "0193-0001", "0193-0002"]


class Away:
    """A database whose next `times` transactions cannot be opened."""

    def __init__(self, database, times=0):
        self._database, self.times = database, times

    @asynccontextmanager
    async def _unless_away(self, transaction):
        if self.times:
            self.times -= 1
            raise DatabaseUnreachable("the database does not work: gone")
        async with transaction() as session:
            yield session

    def writing(self):
        return self._unless_away(self._database.writing)

    def reading(self):
        return self._unless_away(self._database.reading)


async def test_an_outage_before_the_claim_is_waited_for(database, monkeypatch, caplog):
    monkeypatch.setattr(worker_module, "AWAY_SECONDS", 0.0)
    await Worker(Away(database, times=3), Judged(), name="w").run(until_empty=True)
    assert {job.state for job in await jobs_of(database)} == {JobState.DONE}
    assert caplog.text.count("gone; trying again") == 3


async def test_an_outage_after_the_work_costs_no_work(database, monkeypatch, caplog):
    monkeypatch.setattr(worker_module, "AWAY_SECONDS", 0.0)
    away, judge = Away(database), Judged(waits=True)
    task = asyncio.create_task(Worker(away, judge, name="w").run(until_empty=True))
    await judge.reached.wait()
    away.times = 4
    judge.go.set()
    await task
    assert judge.seen == ["0193-0000", "0193-0001", "0193-0002"]
    assert {(job.state, job.attempts) for job in await jobs_of(database)} == {(JobState.DONE, 1)}
    assert "gone; 3 audits wait" in caplog.text


async def test_a_heartbeat_that_fails_does_not_end_the_work(database, monkeypatch, caplog):
    monkeypatch.setattr(worker_module, "LEASE", worker_module.LEASE / 10_000)
    away, judge = Away(database), Judged(waits=True)
    task = asyncio.create_task(Worker(away, judge, name="w").run(until_empty=True))
    await judge.reached.wait()
    away.times = 2
    while "the leases were not renewed" not in caplog.text:  # noqa: ASYNC110 (the log is what tells)
        await asyncio.sleep(0.01)
    judge.go.set()
    await task
    assert await audits_of(database) == ["0193-0000", "0193-0001", "0193-0002"]


async def test_jobs_that_break_together_are_tried_again_apart(database):
    class Broken(Judged):
        async def audit(self, reference, batch, *, now):
            return {one.id: RuntimeError("broke") for one in batch}

    await Worker(database, Broken(), name="w").run(until_empty=True)
    again = {job.run_at for job in await jobs_of(database)}
    assert len(again) == 3
    assert {job.reason for job in await jobs_of(database)} == {"RuntimeError: broke"}
