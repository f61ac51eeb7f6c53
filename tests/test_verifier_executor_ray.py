"""Workers in a real Ray cluster of several nodes: what dies costs no audit and doubles none (`make test-ray`)."""

import asyncio
import json
import logging
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import psutil
import pytest
from ray_clusters import ADDRESS, ray_cluster, start_head
from recorded_exchanges import recorded_exchanges
from sqlalchemy import func, select
from storage_rows import NOON

from storage import exchanges
from storage.database import open_database
from storage.models import Audit, Exchange, Job, JobState
from storage.models_reaudits import Reaudit
from verifier.errors import ExecutorLost
from verifier.executor import InlineExecutor
from verifier.executor_process import Place, ProcessExecutor
from verifier.executor_ray import RayExecutor
from verifier.executors import Plan, work
from verifier.fleet import Fleet
from verifier.remote_auditor import Loading, Needs
from verifier.worker import Worker

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]
ONE_THREAD = Loading({}, threads=1)


@asynccontextmanager
async def ray_executor(*, most=4):
    executor = RayExecutor(ADDRESS, ONE_THREAD, Needs(), most=most)
    try:
        yield executor
    finally:
        executor.close()


def fleet(database, executor, *, least=0, most=4, batch=4):
    def made(reference):
        return Worker(database, executor, name="fleet", batch=batch, reference=reference)

    return Fleet(database, executor, made, least=least, most=most)


async def recorded(database, rows):
    async with database.writing() as session:
        await exchanges.record(session, rows)


async def finished(database):
    """How many jobs are done."""
    async with database.reading() as session:
        return await session.scalar(select(func.count()).where(Job.state == JobState.DONE))


async def until(condition, *, seconds=180):
    """What the condition returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := await condition()):
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.05)
    return found


async def auditing():
    """A process of Ray's that is auditing at this moment: Ray shows the running method as its title."""
    return next((one for one in psutil.process_iter() if "PlacedAuditor.audit" in _title(one)), None)


def _title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


async def running(executor, wanted):
    async def all_run():
        return await executor.resize(wanted) == wanted

    await until(all_run)


async def exactly_once(database, count):
    async with database.reading() as session:
        jobs = list(await session.scalars(select(Job)))
        audits = list(await session.scalars(select(Audit)))
    assert [job.state for job in jobs] == [JobState.DONE] * count
    assert sorted(audit.exchange_id for audit in audits) == sorted(job.exchange_id for job in jobs)
    assert {audit.verdict_status.value for audit in audits} == {"verified"}
    return jobs, audits


async def test_deaths_of_a_worker_a_node_and_the_head_cost_no_audit_and_double_none(
    sqlite_url, demo_directory, caplog
):
    caplog.set_level(logging.WARNING, logger="seedproof.worker")
    count = 80
    with ray_cluster(2, 2) as cluster:
        async with open_database(sqlite_url) as database, ray_executor() as executor:
            await recorded(database, recorded_exchanges(demo_directory, count, tokens=40))
            working = asyncio.create_task(fleet(database, executor, least=4).run(until_empty=True))
            try:
                (await until(auditing)).kill()
                before = await finished(database)
                await until(lambda: _more(database, before))
                await until(auditing)
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
                before = await finished(database)
                await until(lambda: _more(database, before))
                await until(auditing)
                for node in list(cluster.worker_nodes):
                    cluster.remove_node(node, allow_graceful=False)
                cluster.remove_node(cluster.head_node, allow_graceful=False)
                assert await finished(database) < count
                await until(lambda: _returned(database))
                start_head(cluster)
                for _ in range(2):
                    cluster.add_node(node_ip_address="127.0.0.1", num_cpus=2)
                await asyncio.wait_for(working, 300)
            finally:
                working.cancel()
                with suppress(asyncio.CancelledError):
                    await working
            jobs, audits = await exactly_once(database, count)
    assert sum(job.attempts for job in jobs) == count, "no attempt was burnt"
    assert sum(audit.exact_matches for audit in audits) > 0.97 * sum(audit.tokens for audit in audits)
    assert any("is gone" in line or "left the Ray cluster" in line for line in caplog.messages)


async def _more(database, before):
    return await finished(database) > before


async def _returned(database):
    async with database.reading() as session:
        return not await session.scalar(select(func.count()).where(Job.state == JobState.LEASED))


async def test_audits_are_equal_to_the_bit_wherever_they_are_made(sqlite_url, demo_directory):
    async with open_database(sqlite_url) as database:
        await recorded(
            database, recorded_exchanges(demo_directory, 6, name="v2_plain", tokens=40, sampler="vllm@0.26.0/v2")
        )
        async with database.reading() as session:
            rows = list(await session.scalars(select(Exchange).order_by(Exchange.id)))
    name, batches = str(demo_directory), (rows[:4], rows[4:])
    here, processes = InlineExecutor(ONE_THREAD.auditor()), ProcessExecutor([Place(ONE_THREAD)])
    with ray_cluster(1):
        async with ray_executor() as executor:
            await running(executor, {name: 1})
            found = [
                [await one.audit(name, batch, now=NOON) for batch in batches] for one in (here, processes, executor)
            ]
            processes.close()
    assert found[0] == found[1]
    assert found[0] == found[2]
    audits = [audit for batch in found[0] for audits in batch.values() for audit in audits]
    assert len(audits) == 6
    assert all(audit.verdict_status == "verified" and audit.scores for audit in audits)


async def test_jobs_wait_for_a_cluster_that_is_away_and_references_share_it(
    sqlite_url, tiny_directory, other_tiny_directory, caplog
):
    caplog.set_level(logging.INFO, logger="seedproof.worker")
    async with open_database(sqlite_url) as database:
        for first, directory in ((1, tiny_directory), (11, other_tiny_directory)):
            await recorded(database, recorded_exchanges(directory, 6, first=first))
        plan = Plan("ray", ADDRESS, most=2)
        working = asyncio.create_task(work(database, ONE_THREAD, plan, until_empty=True, batch=4))
        await until(lambda: _said(caplog, f"no Ray cluster answers at {ADDRESS}; jobs wait in the database"))
        async with database.reading() as session:
            assert {job.state for job in await session.scalars(select(Job))} == {JobState.TODO}
        with ray_cluster(2):
            await asyncio.wait_for(working, 300)
        await exactly_once(database, 12)
    assert f"the Ray cluster at {ADDRESS} is there" in caplog.messages
    assert f"{tiny_directory}: 1 of 1 workers run" in caplog.messages
    assert f"{other_tiny_directory}: 1 of 1 workers run" in caplog.messages


async def _said(caplog, words):
    return any(line.startswith(words) for line in caplog.messages)


async def test_workers_are_let_go_when_idle_and_what_has_no_room_is_not_counted(demo_directory):
    with ray_cluster(2):
        async with ray_executor() as executor:
            await running(executor, {"a": 2})
            assert await executor.resize({"a": 4}) == {"a": 2}
            assert (await executor.resize({"a": 0}))["a"] == 0
            await running(executor, {"a": 0, "b": 2})
            with pytest.raises(ExecutorLost, match="no worker of a runs"):
                await executor.audit("a", [], now=NOON)
        broken = RayExecutor(ADDRESS, Unstartable({}), Needs(), most=1)
        with pytest.raises(ExecutorLost, match=r"a worker of a could not start: .*no torch here"):
            await running(broken, {"a": 1})
        broken.close()


@dataclass(frozen=True)
class Unstartable(Loading):
    """What a node without the right packages does."""

    def auditor(self):
        raise ImportError("no torch here")


async def test_old_traffic_is_verified_again_by_ray_data_and_each_exchange_once(
    sqlite_url, tiny_directory, other_tiny_directory
):
    async with open_database(sqlite_url) as database:
        await recorded(database, recorded_exchanges(tiny_directory, 40))
        await Worker(database, InlineExecutor(ONE_THREAD.auditor()), name="w").run(until_empty=True)
        command = [
            sys.executable, "-m", "seedproof", "reverify", "--store", sqlite_url, "--since", "2026-11-23", "--until",
            "2026-11-24", "--reference", f"other={other_tiny_directory}", "--executor", "ray", "--address", ADDRESS,
            "--workers", "2", "--json", "-",
        ]  # fmt: skip
        with ray_cluster(1, 1):
            first = await reverified(command)
            again = await reverified(command)
        assert "40 exchanges to audit again" in first[1]
        assert "0 exchanges to audit again" in again[1]
        (stream,) = json.loads(first[0])["streams"]
        assert (stream["choices"], stream["new_reference"]) == (40, "other")
        assert json.loads(again[0]) == json.loads(first[0])
        async with database.reading() as session:
            rows = list(await session.scalars(select(Reaudit)))
    assert len(rows) == len({row.exchange_id for row in rows}) == 40


async def reverified(command):
    """What the command writes to stdout and stderr."""
    pipe = asyncio.subprocess.PIPE
    made = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, err = (part.decode() for part in await asyncio.wait_for(made.communicate(), 300))
    assert made.returncode == 0, err
    return out, err
