"""The recorder between handlers and journal: what waits, what is counted, what health it tells."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from journals import records_in, small_disk, until
from storage_rows import exchange, unaudited

from proxy.recorder import Recorder
from storage.errors import JournalFull
from storage.exchange_codec import unpack
from storage.journal import Journal, segments
from storage.writer import Writer


class ListTarget:
    """Keeps what is recorded; waits while `gate` is closed."""

    def __init__(self):
        self.ids, self.gate = [], asyncio.Event()
        self.gate.set()

    async def record(self, rows):
        await self.gate.wait()
        self.ids += [row.id for row in rows]
        return len(rows)

    async def bury(self, letters, *, now):
        raise AssertionError("nothing here is poison")


@asynccontextmanager
async def recording(directory, target=None, *, max_bytes=1 << 30, drain_seconds=9.0, **options):
    async with Journal(directory, max_bytes=max_bytes) as journal:
        writer = None if target is None else Writer(target, directory)
        recorder = Recorder(journal, writer, **options)
        async with recorder.running(drain_seconds=drain_seconds):
            yield recorder


async def fill(recorder):
    """120 KB of records."""
    for _ in range(4):
        await recorder.durable(recorder.put(unaudited(1, reason="x" * 30_000)))


async def test_everything_reaches_the_target_and_the_disk_is_empty_again(tmp_path):
    target = ListTarget()
    async with recording(tmp_path, target) as recorder:
        for number in range(500):
            recorder.put(exchange(number))
        await recorder.drained()
        assert target.ids == [f"0193-{number:04}" for number in range(500)]
    assert (recorder.recorded, recorder.lost, segments(tmp_path)) == (500, 0, [])


async def test_strict_waits_for_the_disk_and_fast_does_not(tmp_path):
    async with recording(tmp_path) as recorder:
        await recorder.durable(recorder.put(exchange(1)))
        assert [unpack(record).id for record in records_in(tmp_path)] == ["0193-0001"]
    async with recording(tmp_path, strict=False) as recorder:
        record = recorder.put(exchange(2))
        await recorder.durable(record)
        assert not record.done()
    assert len(records_in(tmp_path)) == 2


async def test_a_hanging_database_cannot_hold_the_shutdown_and_costs_nothing(tmp_path):
    target = ListTarget()
    target.gate.clear()
    async with recording(tmp_path, target, drain_seconds=0.2) as recorder:
        for number in range(3):
            recorder.put(exchange(number))
    assert (recorder.lost, target.ids) == (0, [])
    async with recording(tmp_path, later := ListTarget()) as recorder:
        await until(lambda: not segments(tmp_path))
    assert later.ids == ["0193-0000", "0193-0001", "0193-0002"]


async def test_fail_open_answers_and_counts(tmp_path, caplog):
    with small_disk(tmp_path / "disk", "64k") as disk:
        async with recording(disk) as recorder:
            await fill(recorder)
            assert recorder.lost >= 2
            assert recorder.accepting
            assert "No space left on device" in recorder.health().problem
    assert "exchange 0193-0001 is not recorded" in caplog.text


async def test_fail_closed_refuses_until_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        async with recording(disk, fail_closed=True) as recorder:
            with pytest.raises(JournalFull):
                await fill(recorder)
            assert not recorder.accepting
            for path in segments(disk):
                path.unlink()
            await until(lambda: recorder.accepting)
            await recorder.durable(recorder.put(unaudited(2)))


async def test_health_tells_before_it_is_too_late(tmp_path):
    target = ListTarget()
    target.gate.clear()
    async with recording(tmp_path, target, max_bytes=200_000, drain_seconds=5) as recorder:
        assert recorder.health().problem is None
        for number in range(4):
            await recorder.durable(recorder.put(unaudited(number, reason="x" * 30_000)))
        health = recorder.health()
        assert health.problem.startswith("the journal is 6")
        assert health.problem.endswith("full: the database does not keep up")
        assert (health.recorded, health.lost) == (4, 0)
        target.gate.set()
        await recorder.drained()
        await until(lambda: recorder.health().problem is None)


async def test_what_cannot_be_packed_is_counted_and_raises_nothing(tmp_path, caplog):
    async with recording(tmp_path, seal=lambda text: 1 / 0) as recorder:
        await recorder.durable(recorder.put(exchange(1)))
        await asyncio.sleep(0)
        assert recorder.lost == 1
    assert "exchange 0193-0001 could not be packed" in caplog.text


async def test_a_client_that_leaves_while_it_waits_costs_no_record(tmp_path):
    async with recording(tmp_path) as recorder:
        waiting = asyncio.create_task(recorder.durable(recorder.put(exchange(1))))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert [unpack(record).id for record in records_in(tmp_path)] == ["0193-0001"]
