"""Recorded answers as streams, cut at every offset: framing and folding must not notice where reads end."""

import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upstreams import events, stream_chunk

from proxy.sse import SSEFramer
from proxy.transcript import Transcript

GOLDEN = Path(__file__).parent / "data/golden"


@cache
def golden_stream(name, newline):
    """The first recorded answer as vLLM streams it: prompt ids first, then token by token, its text in pieces."""
    answer = orjson.loads((GOLDEN / f"{name}.jsonl").read_bytes().splitlines()[0])
    ids, text = answer["output_token_ids"][:12], answer["text"][:60]
    step = len(text) // len(ids) + 1
    pieces = [text[place * step:(place + 1) * step] for place in range(len(ids))]
    head = {**stream_chunk(""), "prompt_token_ids": answer["prompt_token_ids"]}
    chunks = [stream_chunk(piece, token_ids=[token]) for piece, token in zip(pieces, ids, strict=True)]
    stream = b": keep-alive\n\n" + events(head, *chunks, stream_chunk(finish=answer["finish_reason"]), newline=newline)
    return stream, text, ids


def folded(*chunks):
    transcript = Transcript(event_stream=True, choices=1)
    for chunk in chunks:
        transcript.feed(chunk)
    transcript.end()
    assert not transcript.malformed
    return transcript.finish()


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("name", ["v2_plain", "plain_t1", "greedy"])
def test_every_offset(name, newline):
    stream, text, ids = golden_stream(name, newline)
    whole = folded(stream)
    [choice] = whole["choices"]
    assert (choice["text"], choice["token_ids"]) == (text, ids)
    for at in range(len(stream) + 1):
        assert folded(stream[:at], stream[at:]) == whole
    assert folded(*(bytes([byte]) for byte in stream)) == whole


@given(st.lists(st.integers(0, 5000), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
@settings(deadline=None)
def test_any_cuts(places, newline):
    stream, text, _ = golden_stream("v2_plain", newline)
    edges = [0, *sorted(min(place, len(stream)) for place in places), len(stream)]
    cut = folded(*(stream[a:b] for a, b in pairwise(edges)))
    assert cut["choices"][0]["text"] == text


LONG = {
    "one endless line": lambda size: [b"data: " + b"x" * size],
    "a line in small reads": lambda size: [b"data: ", *[b"xxxxxxxx"] * (size // 8), b"\n\n"],
    "many data lines": lambda size: [b"data: 1\n" * (size // 8), b"\n"],
    "many events": lambda size: [b'data: {"choices":[]}\n\n' * (size // 22)],
    "carriage returns": lambda size: [b"\r" * size],
    "carriage returns one by one": lambda size: [b"\r"] * size,
    "comments": lambda size: [b": x\n" * (size // 4)],
    "tool calls": lambda size: [
        events({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": n}]}}]}, done=False)
        for n in range(size // 80)
    ],
}


@pytest.mark.parametrize("name", LONG)
def test_time_grows_with_the_input_and_no_faster(name):
    def seconds(size):
        chunks = LONG[name](size)
        spent = []
        for _ in range(3):
            transcript = Transcript(event_stream=True, choices=1)
            started = time.process_time()
            for chunk in chunks:
                transcript.feed(chunk)
            transcript.finish()
            spent.append(time.process_time() - started)
        return min(spent)

    # eight times the input: linear is 8, quadratic 64; a floor for what the clock cannot tell
    assert seconds(800_000) < 24 * max(seconds(100_000), 2e-3)


def test_the_framer_holds_no_more_than_its_cap():
    framer = SSEFramer(max_event_bytes=1000)
    for _ in range(10_000):
        framer.feed(b"data: " + b"x" * 100)
    assert framer.overflowed
    assert framer._partial == framer._data == []
