import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstreams import completion, events, stream_chunk

from proxy.transcript import Transcript, error_object

LOGPROB = {"token": "a", "logprob": -0.5, "bytes": [97],
           "top_logprobs": [{"token": "b", "logprob": -1, "bytes": None}]}


def fold(*chunks, event_stream=True, choices=1, end=True, **limits):
    transcript = Transcript(event_stream=event_stream, choices=choices, **limits)
    for chunk in chunks:
        transcript.feed(chunk)
    if end:
        transcript.end()
    return transcript, transcript.finish()


STREAM = events(
    {**stream_chunk(""), "prompt_token_ids": [1, 2, 3], "system_fingerprint": "fp"},
    stream_chunk("Grü", token_ids=[7], logprobs={"content": [LOGPROB]}),
    stream_chunk("ße 🙂", token_ids=[8, 9], index=0),
    stream_chunk("other", index=1, token_ids=[5]),
    stream_chunk(finish="length", token_ids=None, stop_reason=None),
    stream_chunk(index=1, finish="stop", token_ids=[2], stop_reason=2),
    {"choices": [], "usage": {"prompt_tokens": 3, "details": {"cached": 1, "odd": "x"}}},
    newline=b"\r\n",
)
FOLDED = {
    "id": "chatcmpl-1", "model": "m", "system_fingerprint": "fp", "prompt_token_ids": [1, 2, 3],
    "error": None,
    "usage": {"prompt_tokens": 3, "details": {"cached": 1}},
    "choices": [
        {
            "index": 0, "text": "Grüße 🙂", "reasoning": None, "tool_calls": None, "refusal": None,
            "token_ids": [7, 8, 9], "logprobs": [LOGPROB], "finish_reason": "length", "stop_reason": None,
        },
        {
            "index": 1, "text": "other", "reasoning": None, "tool_calls": None, "refusal": None,
            "token_ids": [5, 2], "logprobs": None, "finish_reason": "stop", "stop_reason": 2,
        },
    ],
}


def test_interleaved_choices_whole_and_byte_by_byte():
    for chunks in ([STREAM], [bytes([byte]) for byte in STREAM]):
        transcript, folded = fold(*chunks, choices=2)
        assert folded == FOLDED
        assert transcript.ended
        assert not transcript.malformed


@given(st.integers(0, len(STREAM)))
def test_every_split(at):
    assert fold(STREAM[:at], STREAM[at:], choices=2)[1] == FOLDED


@given(st.integers(0, len(STREAM)))
def test_any_prefix_folds_to_a_prefix(at):
    transcript, folded = fold(STREAM[:at], choices=2, end=False)
    assert not transcript.malformed
    for choice in folded["choices"]:
        assert FOLDED["choices"][choice["index"]]["text"].startswith(choice["text"])


def test_json_body_in_any_split():
    body = orjson.dumps({
        **completion("one", "two", token_ids=[4, 2], logprobs={"content": [LOGPROB]}),
        "prompt_token_ids": [1],
    })
    whole = fold(body, event_stream=False, choices=2)[1]
    assert [choice["text"] for choice in whole["choices"]] == ["one", "two"]
    assert [choice["token_ids"] for choice in whole["choices"]] == [[4, 2], [4, 2]]
    assert whole["prompt_token_ids"] == [1]
    for at in range(len(body)):
        assert fold(body[:at], body[at:], event_stream=False, choices=2)[1] == whole


def test_half_a_json_body_is_no_answer():
    transcript, folded = fold(orjson.dumps(completion("one"))[:-9], event_stream=False, end=False)
    assert transcript.empty
    assert not transcript.ended
    assert folded["choices"] == []


def test_tool_calls_are_joined():
    def delta(*calls):
        return {"choices": [{"index": 0, "delta": {"tool_calls": list(calls)}, "finish_reason": None}]}

    _, folded = fold(events(
        delta({"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}),
        delta({"index": 0, "function": {"arguments": '{"a"'}}),
        delta({"index": 1, "id": "c2", "function": {"name": "g", "arguments": "{}"}}),
        delta({"index": 0, "function": {"arguments": ": 1}"}}),
    ))
    assert folded["choices"][0]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


@pytest.mark.parametrize("delta", [
    {"reasoning": "why"}, {"reasoning_content": "why"}, {"reasoning": "why", "reasoning_content": "why"},
])
def test_reasoning_under_each_name(delta):
    _, folded = fold(events({"choices": [{"index": 0, "delta": delta}]}))
    assert folded["choices"][0]["reasoning"] == "why"


def test_ids_of_logprob_entries_are_kept():
    entry = {**LOGPROB, "id": 57, "top_logprobs": [{"token": "b", "logprob": -1, "bytes": None, "id": 58}]}
    _, folded = fold(events(stream_chunk("a", logprobs={"content": [entry]})))
    assert folded["choices"][0]["logprobs"] == [entry]


def test_error_after_200():
    transcript, folded = fold(events(stream_chunk("a"), {"error": {"message": "boom", "code": 500}}))
    assert transcript.error == {"message": "boom", "type": None, "param": None, "code": "500"}
    assert folded["choices"][0]["text"] == "a"


def test_nothing_counts_after_done():
    _, folded = fold(events(stream_chunk("a", finish="stop")) + events(stream_chunk("late")))
    assert folded["choices"][0]["text"] == "a"


@pytest.mark.parametrize("value", [
    [], 1, None, {"choices": {}}, {"choices": [1]}, {"choices": [{"index": 10**9, "delta": {}}]},
    {"choices": [{"index": -1}]}, {"choices": [{"index": True}]}, {"choices": [{"index": 0, "delta": []}]},
    {"choices": [{"delta": {"content": 1}}]}, {"choices": [{"token_ids": [-1]}]},
    {"choices": [{"token_ids": ["1"]}]}, {"choices": [{"token_ids": [2**31]}]},
    {"choices": [{"finish_reason": 1}]}, {"choices": [{"delta": {"tool_calls": [1]}}]},
    {"choices": [{"delta": {"tool_calls": [{"function": 3}]}}]},
    {"choices": [{"logprobs": {"content": [{"token": 1}]}}]},
    {"choices": [{"logprobs": {"content": [{"token": "a", "bytes": [300]}]}}]},
    {"choices": [{"logprobs": {"content": [{"token": "a", "id": -1}]}}]},
    {"choices": [{"logprobs": {"content": [{"token": "a", "id": "1"}]}}]},
    {"choices": [{"logprobs": {"content": [{"token": "a", "logprob": "x"}]}}]}, {"prompt_token_ids": [1.5]},
])
def test_hostile_chunks_end_the_folding_and_keep_what_came(value):
    transcript, folded = fold(events(stream_chunk("kept"), value, stream_chunk("dropped")))
    assert transcript.malformed
    assert folded["choices"][0]["text"] == "kept"


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 5000, b'{"a": NaN}', b'{"a": "\\ud800"}', b"<html>"])
def test_no_json_is_malformed(data):
    assert fold(b"data: " + data + b"\n\n")[0].malformed
    assert fold(data, event_stream=False)[0].malformed


def test_deep_error_does_not_recurse():
    deep = orjson.loads(b"[" * 1000 + b"]" * 1000)
    assert error_object(deep)["message"] is None
    assert error_object({"message": deep, "code": 3})["code"] == "3"


def test_recording_stops_at_its_cap():
    transcript, folded = fold(
        events(stream_chunk("a"), done=False), events(stream_chunk("b" * 500)), choices=1, max_bytes=400
    )
    assert transcript.truncated
    assert folded["choices"][0]["text"] == "a"


FIELDS = [
    "choices", "delta", "message", "index", "content", "token_ids", "logprobs", "tool_calls", "function", "usage",
    "error", "finish_reason", "prompt_token_ids", "top_logprobs",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=5), st.booleans())
def test_any_json_is_folded_without_an_exception(values, event_stream):
    stream = events(*values) if event_stream else b"".join(orjson.dumps(value) for value in values)
    _, folded = fold(stream, event_stream=event_stream, choices=4)
    orjson.dumps(folded)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_folded_without_an_exception(data, event_stream):
    fold(data, event_stream=event_stream)
