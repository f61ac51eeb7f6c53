import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.sse import SSEFramer

STREAM = (
    b"\xef\xbb\xbfdata: one\n\n"
    b": OPENROUTER PROCESSING\r\n\r\n"
    b"event: x\r\ndata: tw\xc3\xb6\r\nid: 3\r\n\r\n"
    b"data:three\rdata:  and more\r\r"
    b"data\n\n"
    b"data: [DONE]\n\n"
    b"data: never closed\n"
)
EVENTS = [b"one", b"tw\xc3\xb6", b"three\n and more", b"", b"[DONE]"]


def framed(chunks):
    framer = SSEFramer()
    return [event for chunk in chunks for event in framer.feed(chunk)]


def test_whole():
    assert framed([STREAM]) == EVENTS


def test_byte_by_byte():
    assert framed([bytes([byte]) for byte in STREAM]) == EVENTS


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_every_split(at):
    assert framed([STREAM[:at], STREAM[at:]]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_chunking(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    assert framed([STREAM[a:b] for a, b in pairwise(edges)]) == EVENTS


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_frame_alike_in_any_split(stream, at):
    assert framed([stream[:at], stream[at:]]) == framed([stream])


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))))
def test_payloads_come_back(payloads):
    stream = b"".join(b"data: " + payload.encode() + b"\r\n\r\n" for payload in payloads)
    assert framed([stream]) == [payload.encode() for payload in payloads]


def test_other_line_breaks_of_unicode_are_text():
    text = "a\x0bb\x0cc\x85d\u2028e".encode()
    assert framed([b"data: " + text + b"\n\n"]) == [text]


def test_event_beyond_the_cap_stops_the_framing():
    framer = SSEFramer(max_event_bytes=100)
    assert framer.feed(b"data: ok\n\n") == [b"ok"]
    assert framer.feed(b"data: " + b"x" * 200) == []
    assert framer.overflowed
    assert framer.feed(b"\n\ndata: late\n\n") == []


def test_many_small_data_lines_count_towards_the_cap():
    framer = SSEFramer(max_event_bytes=1000)
    for _ in range(300):
        framer.feed(b"data:\n")
    assert framer.overflowed


def test_heartbeats_without_blank_lines_do_not_fill_it():
    framer = SSEFramer(max_event_bytes=100)
    for _ in range(1000):
        framer.feed(b": ping\n")
    assert framer.feed(b"data: ok\n\n") == [b"ok"]


def test_one_event_in_a_million_pieces_takes_linear_time():
    framer = SSEFramer()
    framer.feed(b"data: ")
    started = time.process_time()
    for _ in range(300_000):
        framer.feed(b"xxxxxxxx")
    assert framer.feed(b"\n\n") == [b"x" * 2_400_000]
    assert time.process_time() - started < 5  # quadratic would be minutes
