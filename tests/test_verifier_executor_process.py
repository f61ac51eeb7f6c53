"""Processes that audit: the same audits to the bit, deaths charged to who caused them, nobody left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from recorded_exchanges import recorded_exchanges
from sqlalchemy import select
from storage_rows import NOON

from storage import exchanges
from storage.database import open_database
from storage.models import Audit, Exchange, Job, JobState
from verifier.child import Child, ChildDied
from verifier.errors import AuditorDied, ExecutorLost, InputError, VerifierError
from verifier.executor import InlineExecutor, outliving
from verifier.executor_process import Place, ProcessExecutor
from verifier.executors import Plan, parallel, places
from verifier.remote_auditor import Loading, packed_results, unpacked_results
from verifier.worker import Worker

ONE_THREAD = Loading({}, threads=1)


@pytest.fixture
async def stored(sqlite_url, tiny_directory):
    """A database with nine exchanges, and these as a worker reads them."""
    async with open_database(sqlite_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, recorded_exchanges(tiny_directory, 9))
        async with database.reading() as session:
            yield database, list(await session.scalars(select(Exchange).order_by(Exchange.id)))


async def test_audits_of_processes_equal_those_made_here_to_the_bit(stored, tiny_directory):
    _, rows = stored
    batches = [rows[:4], rows[4:8], rows[8:]]
    here, there = InlineExecutor(ONE_THREAD.auditor()), ProcessExecutor([Place(ONE_THREAD)])
    try:
        for batch in batches:
            expected = await here.audit(str(tiny_directory), batch, now=NOON)
            found = await there.audit(str(tiny_directory), batch, now=NOON)
            assert found == expected
            assert all(audit.scores for audits in found.values() for audit in audits)
    finally:
        there.close()


async def test_a_killed_process_costs_no_audit_and_doubles_none(stored, tiny_directory):
    database, _ = stored
    executor = ProcessExecutor([Place(ONE_THREAD)])
    working = asyncio.create_task(Worker(database, executor, name="w", batch=3).run(until_empty=True))
    try:
        await asyncio.to_thread(killed, "spawn_main")
        await asyncio.wait_for(working, 60)
    finally:
        executor.close()
    async with database.reading() as session:
        jobs = list(await session.scalars(select(Job)))
        assert [(job.state, job.attempts) for job in jobs] == [(JobState.DONE, 1)] * 9
        assert len(list(await session.scalars(select(Audit)))) == 9


def killed(*words: str) -> None:
    """Kill the first child process of ours whose command line has these words, once it has loaded torch."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            try:
                libraries = {Path(one.path).name for one in process.memory_maps()}
                if all(word in " ".join(process.cmdline()) for word in words) and "libtorch_cpu.so" in libraries:
                    process.kill()
                    return
            except psutil.Error:
                continue
        time.sleep(0.02)
    raise AssertionError("no such process")


async def test_a_process_that_dies_of_loading_charges_no_job(stored):
    _, rows = stored
    executor = ProcessExecutor([Place(Deadly({}))])
    with pytest.raises(ExecutorLost, match="died while it loaded big"):
        await executor.audit("big", rows[:4], now=NOON)
    executor.close()


@dataclass(frozen=True)
class Deadly(Loading):
    """Ends its process, as one that takes too much memory is ended."""

    def auditor(self):
        os._exit(9)


async def test_only_the_exchange_that_kills_its_process_is_charged(stored):
    _, rows = stored
    tried = []

    async def audit(batch):
        tried.append(len(batch))
        if rows[2] in batch:
            raise AuditorDied("killed")
        return {exchange.id: [] for exchange in batch}

    results = await outliving(audit, rows[:4])
    assert tried == [4, 1, 1, 1, 1]
    assert [type(results[row.id]) for row in rows[:4]] == [list, list, AuditorDied, list]


async def test_calls_of_a_process_that_ends_say_so():
    child = Child(Sleeper, calls=2)
    assert await child.call("add", 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        await child.call("divide", 1, 0)
    waiting = asyncio.create_task(child.call("wait"))
    while await child.call("waiting") == 0:  # noqa: ASYNC110 (another process')
        await asyncio.sleep(0)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildDied):
        await waiting
    with pytest.raises(ChildDied):
        await child.call("add", 1, 2)
    child.close()


class Sleeper:
    """What the child holds."""

    def __init__(self):
        self.waits = 0

    def add(self, a, b):
        return a + b

    def divide(self, a, b):
        return a / b

    def wait(self):
        self.waits += 1
        time.sleep(60)

    def waiting(self):
        return self.waits


PARENT = """
import time
from verifier.child import Child
if __name__ == "__main__":
    child = Child(list, (1, 2), calls=1)
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_no_process_outlives_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).resolve().parent.parent
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    child.wait(timeout=30)
    assert not child.is_running()


def test_errors_arrive_as_they_are_or_with_their_words():
    class Local(Exception):
        pass

    sent = {"a": InputError("no such sampler"), "b": Local("odd"), "c": []}
    found = unpacked_results(packed_results(sent))
    assert (type(found["a"]), str(found["a"])) == (InputError, "no such sampler")
    assert (type(found["b"]), str(found["b"])) == (VerifierError, "Local: odd")
    assert found["c"] == []


def test_processes_share_the_gpus_that_are_shown(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2,GPU-5,7,9")
    on_gpus = Loading({}, device="cuda")
    assert [place.gpus for place in places(on_gpus, Plan("process"))] == ["0", "2", "GPU-5", "7", "9"]
    assert [place.gpus for place in places(on_gpus, Plan("process", gpus=2))] == ["0,2", "GPU-5,7"]
    assert [place.gpus for place in places(on_gpus, Plan("process", most=1))] == ["0"]
    with pytest.raises(InputError, match="shows 5 GPUs"):
        places(on_gpus, Plan("process", gpus=6))
    assert len(places(Loading({}), Plan("process", most=3))) == 3


def test_several_gpus_are_for_vllm_which_splits_layers_unless_told():
    loading = Loading({}, device="cuda", backend="vllm", engine={"max_model_len": 9, "vllm_kwargs": {}})
    assert parallel(loading, Plan("process", gpus=4))["vllm_kwargs"] == {"tensor_parallel_size": 4}
    on_ray = parallel(loading, Plan("ray", gpus=4))
    assert on_ray["vllm_kwargs"] == {"tensor_parallel_size": 4, "distributed_executor_backend": "ray"}
    told = Loading({}, backend="vllm", engine={"vllm_kwargs": {"pipeline_parallel_size": 4}})
    assert parallel(told, Plan("process", gpus=4))["vllm_kwargs"] == {"pipeline_parallel_size": 4}
    with pytest.raises(InputError, match="only --backend vllm"):
        parallel(Loading({}), Plan("process", gpus=2))


def test_what_is_not_an_executor_is_said():
    with pytest.raises(InputError, match="use one of inline, process, ray"):
        Plan("rya")
    with pytest.raises(InputError, match="more than --max-workers"):
        Plan("ray", least=3, most=2)
