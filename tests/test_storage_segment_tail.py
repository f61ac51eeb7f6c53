"""Reading a segment beside its owner: nothing that is still being written is taken or skipped."""

import fcntl
import os
from contextlib import closing, contextmanager

import pytest

from storage.journal_format import frame
from storage.segment_tail import SegmentTail

MARK = bytes(range(1, 9))
FIRST, SECOND, THIRD = (frame(letter * 5000, MARK) for letter in (b"a", b"b", b"c"))


@contextmanager
def owned(path):
    """The segment's file as its owner has it: open and locked."""
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield file
    finally:
        os.close(file)


@pytest.fixture
def segment(tmp_path):
    return tmp_path / f"1-2-{MARK.hex()}.journal"


def test_room_ahead_is_no_end(segment):
    with owned(segment) as file:
        os.pwrite(file, bytes(100_000), 0)
        with closing(SegmentTail(segment)) as tail:
            for start, record in ((0, FIRST), (len(FIRST), SECOND)):
                assert tail.take(9) == []
                os.pwrite(file, record, start)
                assert tail.take(9) == [record[16:]]
            os.ftruncate(file, len(FIRST + SECOND))
            assert (tail.take(9), tail.ended) == ([], False)
            fcntl.flock(file, fcntl.LOCK_UN)
            assert (tail.take(9), tail.ended, tail.damaged) == ([], True, 0)


@pytest.mark.parametrize("cut", [0, 1, 8, 15, 16, 4096, len(SECOND) - 1])
def test_pages_that_are_seen_in_the_wrong_order(segment, cut):
    with owned(segment) as file:
        os.pwrite(file, FIRST + bytes(cut) + SECOND[cut:] + THIRD if cut else FIRST, 0)
        with closing(SegmentTail(segment)) as tail:
            assert tail.take(9) == [b"a" * 5000]
            assert tail.take(9) == []
            os.pwrite(file, SECOND + THIRD, len(FIRST))
            assert tail.take(9) == [b"b" * 5000, b"c" * 5000]
            assert tail.damaged == 0


@pytest.mark.parametrize("whole", [0, 1, 16, 4096, len(SECOND) - 1])
def test_a_crash_in_the_room(segment, whole):
    segment.write_bytes(FIRST + SECOND[:whole] + bytes(100_000))
    with closing(SegmentTail(segment)) as tail:
        assert tail.take(9) == [b"a" * 5000]
        assert (tail.ended, tail.damaged) == (True, 0)


def test_damage_is_skipped_once_the_owner_has_let_go(segment):
    with owned(segment) as file:
        os.pwrite(file, FIRST + bytes(len(SECOND)) + THIRD, 0)
        with closing(SegmentTail(segment)) as tail:
            assert tail.take(9) == [b"a" * 5000]
            fcntl.flock(file, fcntl.LOCK_UN)
            assert tail.take(9) == [b"c" * 5000]
            assert (tail.ended, tail.damaged) == (True, len(SECOND))


def test_a_record_larger_than_one_read(segment):
    large = b"x" * (3 << 20)
    with owned(segment) as file:
        os.pwrite(file, FIRST + frame(large, MARK) + SECOND, 0)
        with closing(SegmentTail(segment)) as tail:
            assert tail.take(9) == [b"a" * 5000, large, b"b" * 5000]
