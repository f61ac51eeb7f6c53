"""The appending side of the journal: synced before it says so, capped, and well again after a full disk."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from journals import records_in, small_disk, until

from storage import journal as journal_module
from storage.errors import JournalFull
from storage.journal import Journal, default_directory, segment_bytes, segments
from storage.journal_format import MAX_PAYLOAD, frame

ROOT = Path(__file__).parent.parent


async def test_what_is_done_is_on_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(journal_module.os, "fdatasync", lambda file, real=os.fdatasync: synced.append(real(file)))
    async with Journal(tmp_path) as journal:
        await asyncio.gather(*(journal.append(b"%d" % number) for number in range(100)))
        assert records_in(tmp_path) == [b"%d" % number for number in range(100)]
        assert 1 <= len(synced) < 100
        assert (journal.appended, journal.unsynced) == (100, False)


async def test_leaving_syncs_what_nobody_waited_for(tmp_path):
    async with Journal(tmp_path) as journal:
        for number in range(50):
            journal.append(b"%d" % number)
    assert records_in(tmp_path) == [b"%d" % number for number in range(50)]


async def test_a_waiter_that_left_disturbs_nobody(tmp_path):
    async with Journal(tmp_path) as journal:
        first, second = journal.append(b"first"), journal.append(b"second")
        first.cancel()
        await second
    assert records_in(tmp_path) == [b"first", b"second"]


async def test_what_is_too_large_fails_alone(tmp_path):
    async with Journal(tmp_path) as journal:
        large, small = journal.append(bytes(MAX_PAYLOAD + 1)), journal.append(b"small")
        await small
        with pytest.raises(JournalFull, match="larger than any may be"):
            await large
        assert journal.failure is None
    assert records_in(tmp_path) == [b"small"]


async def test_segments_are_small_and_in_order(tmp_path):
    async with Journal(tmp_path, segment_bytes=1000) as journal:
        for number in range(20):
            await journal.append(b"%03d" % number * 100)
    assert len(segments(tmp_path)) == 20 // 4
    assert [record[:3] for record in records_in(tmp_path)] == [b"%03d" % number for number in range(20)]


async def test_a_sync_finds_the_files_size_as_it_is(tmp_path):
    sizes = []
    async with Journal(tmp_path) as journal:
        for number in range(200):
            await journal.append(b"%03d" % number * 1000)
            sizes.append(segments(tmp_path)[0].stat().st_size)
        assert len(set(sizes)) < 9  # of 600 KB in steps of 1 MiB; what is on its way may be seen, too
        assert len(records_in(tmp_path)) == 200
    assert segments(tmp_path)[0].stat().st_size == 200 * len(frame(bytes(3000), bytes(8)))


async def test_room_is_made_when_nobody_waits_for_it(tmp_path, monkeypatch):
    syncing, go, count, real = threading.Event(), threading.Event(), itertools.count(), os.fdatasync

    def held(file):
        if next(count) == 1:
            syncing.set()
            assert go.wait(20)
        real(file)

    monkeypatch.setattr(journal_module.os, "fdatasync", held)
    async with Journal(tmp_path) as journal:
        await journal.append(b"first")
        assert await asyncio.to_thread(syncing.wait, 20)
        assert segments(tmp_path)[0].stat().st_size > 100_000
        go.set()
        await journal.append(b"second")
        assert records_in(tmp_path) == [b"first", b"second"]


async def test_only_the_owner_reads_it(tmp_path):
    directory = tmp_path / "a" / "journal"
    async with Journal(directory) as journal:
        await journal.append(b"x")
    assert directory.stat().st_mode & 0o077 == 0
    assert segments(directory)[0].stat().st_mode & 0o077 == 0


async def test_the_cap_counts_all_segments_and_opens_again(tmp_path):
    async with Journal(tmp_path, max_bytes=10_000, segment_bytes=1) as journal:
        for _ in range(4):
            await journal.append(bytes(2000))
        with pytest.raises(JournalFull, match="at its cap"):
            await journal.append(bytes(4000))
        for path in segments(tmp_path):
            path.unlink()
        await until(lambda: not journal.used)
        await journal.append(bytes(4000))
    assert segment_bytes(tmp_path) > 4000


async def settled(record: asyncio.Future) -> BaseException | None:
    await asyncio.wait([record])
    return record.exception()


async def test_a_full_disk_is_told_and_survived(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        async with Journal(disk, segment_bytes=60_000) as journal:
            results = [await settled(journal.append(bytes(20_000))) for _ in range(20)]
            kept = results.count(None)
            assert 9 <= kept < 20
            assert "No space left on device" in str(results[-1])
            assert str(results[-1]) == journal.failure
            assert records_in(disk) == [bytes(20_000)] * kept
            for path in segments(disk):
                path.unlink()
            await until(lambda: journal.failure is None)
            await journal.append(b"again")
            assert records_in(disk) == [b"again"]


async def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalFull, match="file/journal cannot be made: Not a directory"):
        async with Journal(tmp_path / "file" / "journal"):
            pass


def test_the_default_directory_lies_beside_the_database():
    assert default_directory("sqlite:////var/audit.db") == Path("/var/audit.db.journal")
    assert default_directory("postgresql://u@h/d") == Path("seedproof.journal")


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    script = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from storage.journal import Journal

        async def main():
            async with Journal(Path(sys.argv[1]), segment_bytes=20_000) as journal:
                for number in range(10**9):
                    await journal.append(b"%d " % number * 50)
                    print(number, flush=True)

        asyncio.run(main())
    """)
    acknowledged = 0
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with child:
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged == 200:
                child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    numbers = [int(record.split()[0]) for record in records_in(tmp_path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > acknowledged >= 200
