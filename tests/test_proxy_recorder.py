import asyncio
from datetime import datetime, timezone

import pytest

from proxy.recorder import Recorder
from storage.errors import DatabaseBusy
from storage.exchanges import NewExchange


def exchange(name):
    return NewExchange(
        id=name, created_at=datetime.now(timezone.utc), upstream="u", endpoint="/v1/chat/completions", model="m",
        streamed=False, request={}, forced={}, overridden={}, response={}, status=200, outcome="complete",
        first_byte_seconds=None, total_seconds=0.1, audit=False, unaudited_reason="not_selected",
    )


class ListStore:
    """Keeps what is recorded; raises the scripted errors first; waits while `gate` is closed."""

    def __init__(self, *errors, poison=frozenset()):
        self.ids, self.batches, self.errors, self.poison = [], [], list(errors), poison
        self.gate = asyncio.Event()
        self.gate.set()

    async def record(self, exchanges):
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        if self.poison & {row.id for row in exchanges}:
            raise ValueError("a user's words")
        self.batches.append(len(exchanges))
        self.ids.extend(row.id for row in exchanges)


async def test_everything_is_written_in_batches():
    store = ListStore()
    recorder = Recorder(store)
    async with recorder.running():
        for number in range(500):
            recorder.put(exchange(str(number)))
        await recorder.drained()
        assert store.ids == [str(number) for number in range(500)]
    assert store.batches == [200, 200, 100]
    assert (recorder.recorded, recorder.lost, recorder.waiting) == (500, 0, 0)


async def test_busy_database_is_tried_again():
    store = ListStore(DatabaseBusy("locked"), DatabaseBusy("locked"))
    recorder = Recorder(store)
    async with recorder.running():
        recorder.put(exchange("a"))
    assert (store.ids, recorder.recorded, recorder.lost) == (["a"], 1, 0)


async def test_end_waits_for_the_last_rows():
    store = ListStore()
    recorder = Recorder(store)
    async with recorder.running():
        recorder.put(exchange("a"))
    assert store.ids == ["a"]


async def test_poisonous_exchange_is_lost_alone(caplog):
    store = ListStore(poison={"7"})
    recorder = Recorder(store)
    async with recorder.running():
        for number in range(20):
            recorder.put(exchange(str(number)))
    assert sorted(store.ids, key=int) == [str(number) for number in range(20) if number != 7]
    assert (recorder.recorded, recorder.lost) == (19, 1)
    assert "exchange 7 is not recorded: ValueError" in caplog.text
    assert "a user's words" not in caplog.text


async def test_full_queue_counts_and_never_waits(caplog):
    store = ListStore()
    store.gate.clear()
    recorder = Recorder(store, capacity=3)
    async with recorder.running():
        for number in range(5):
            recorder.put(exchange(str(number)))
        assert recorder.lost == 2
        store.gate.set()
    assert store.ids == ["0", "1", "2"]
    assert "the queue is full" in caplog.text


@pytest.mark.parametrize("count", [1, 3])
async def test_hanging_database_cannot_hold_the_shutdown(caplog, count):
    store = ListStore()
    store.gate.clear()
    recorder = Recorder(store)
    async with recorder.running(drain_seconds=0.05):
        for number in range(count):
            recorder.put(exchange(str(number)))
    assert recorder.lost == count
    assert "shut down before it was committed" in caplog.text
