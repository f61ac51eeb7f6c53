"""Records survive every chunking, every torn end and every damaged middle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import journal_format
from storage.journal_format import MAX_PAYLOAD, Scanner, leading

MARK = b"\x00\xffmark\r\n"


def frame(payload: bytes) -> bytes:
    return journal_format.frame(payload, MARK)


# payloads that look like frames are the hard ones
NESTED = st.binary(max_size=9).map(lambda inner: frame(inner)[:17] + inner)
PAYLOADS = st.lists(st.one_of(st.binary(max_size=40), NESTED), max_size=6)


def scanned(segment: bytes, sizes=(1 << 20,)) -> tuple[list[bytes], Scanner]:
    scanner, found, start, turn = Scanner(MARK), [], 0, 0
    while start < len(segment):
        size = sizes[turn % len(sizes)]
        found += scanner.feed(segment[start : start + size])
        start, turn = start + size, turn + 1
    return found + scanner.finish(), scanner


@given(PAYLOADS, st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_every_chunking_gives_the_same_payloads(payloads, sizes):
    found, scanner = scanned(b"".join(map(frame, payloads)), sizes)
    assert (found, scanner.damaged, scanner.pending) == (payloads, 0, 0)


@given(PAYLOADS, st.binary(max_size=30))
def test_what_is_no_record_yet_is_left_for_later(payloads, rest):
    records = b"".join(map(frame, payloads))
    assert leading(records + bytes(40), MARK) == (payloads, len(records))
    assert leading(records + frame(rest + b"x")[:-1] + bytes(1), MARK) == (payloads, len(records))


def test_every_chunk_size_and_every_cut():
    payloads = [b"", b"one", frame(b"a record in a record"), MARK * 9, MARK[:5]]
    segment = b"".join(map(frame, payloads))
    for size in range(1, len(segment) + 1):
        assert scanned(segment, (size,))[0] == payloads
    ends = [sum(len(frame(p)) for p in payloads[: n + 1]) for n in range(len(payloads))]
    for cut in range(len(segment)):
        whole = sum(end <= cut for end in ends)
        found, _ = scanned(segment[:cut], (7,))
        # a record inside a torn payload is found too: it is whole, and its id makes it harmless
        assert found[:whole] == payloads[:whole]
        assert len(found) <= whole + 1


@given(PAYLOADS, st.binary(max_size=30))
def test_a_torn_tail_takes_nothing_along(payloads, tail):
    tail = tail.replace(MARK, b"")
    found, scanner = scanned(b"".join(map(frame, payloads)) + tail, (13,))
    assert (found, scanner.damaged) == (payloads, 0)


@pytest.mark.parametrize("position", range(len(frame(b"second"))))
def test_damage_costs_one_record_and_is_counted(position):
    first, second, third = frame(b"first"), bytearray(frame(b"second")), frame(b"third" * 99)
    second[position] ^= 0xFF
    found, scanner = scanned(first + second + third, (5,))
    assert found == [b"first", b"third" * 99]
    assert scanner.damaged == len(second)


def test_zeros_at_the_end_are_torn_and_between_are_damage():
    assert scanned(frame(b"a") + bytes(4096))[0] == [b"a"]
    found, scanner = scanned(frame(b"a") + bytes(4096) + frame(b"b"))
    assert (found, scanner.damaged) == ([b"a", b"b"], 4096)


def test_a_length_beyond_the_limit_is_no_reason_to_wait():
    scanner = Scanner(MARK)
    assert scanner.feed(MARK + b"\xff" * 8 + frame(b"next")) == [b"next"]


def test_a_payload_beyond_the_limit_is_refused():
    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_PAYLOAD + 1

    with pytest.raises(ValueError, match="larger than the journal takes"):
        frame(Huge())
