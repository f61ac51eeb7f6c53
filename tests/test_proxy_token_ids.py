"""Token ids from every place where servers put them, streamed and whole, and nothing from what is no id."""

import orjson
import pytest
from upstreams import completion, events, stream_chunk

from proxy.token_ids import told_ids
from proxy.transcript import Transcript


def folded(*chunks, event_stream=True, choices=1, text=False):
    transcript = Transcript(event_stream=event_stream, choices=choices, text=text)
    transcript.feed(events(*chunks) if event_stream else orjson.dumps(chunks[0]))
    transcript.end()
    assert not transcript.malformed
    return transcript.finish()


def with_fields(chunk, **fields):
    """The chunk with further fields of its first choice."""
    return {**chunk, "choices": [{**chunk["choices"][0], **fields}]}


TRIPLES = [[-0.1, 7, "a"], [-0.2, 8, "b"]]


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("output_ids", {"output_ids": [7, 8]}),
        ("meta_info", {"meta_info": {"output_token_logprobs": TRIPLES}}),
        ("raw_output", {"raw_output": {"completion_token_ids": [7, 8], "prompt_token_ids": [1, 2]}}),
        ("logprobs.token_ids",
         {"logprobs": {"tokens": ["a", "b"], "token_logprobs": [-0.1, -0.2], "token_ids": [7, 8]}}),
        ("provider_specific_fields", {"provider_specific_fields": {"token_ids": [7, 8]}}),
    ],
)  # fmt: skip
def test_whole_answers_tell_ids_in_many_fields(source, fields):
    answer = folded(with_fields(completion("ab"), **fields), event_stream=False)
    choice = answer["choices"][0]
    assert (choice["token_ids"], choice["ids_from"]) == ([7, 8], source)
    assert answer["prompt_token_ids"] == ([1, 2] if source == "raw_output" else None)


def test_togethers_streams_tell_one_id_a_chunk():
    chunks = [stream_chunk("a"), stream_chunk("b"), stream_chunk(finish="eos")]
    for chunk, token in zip(chunks, (7, 8, 2), strict=True):
        chunk["choices"][0]["delta"]["token_id"] = token
    choice = folded(*chunks)["choices"][0]
    assert (choice["token_ids"], choice["ids_from"]) == ([7, 8, 2], "delta.token_id")


def test_what_is_told_whole_in_every_chunk_is_not_added_up():
    chunks = [
        with_fields(stream_chunk("a"), meta_info={"output_token_logprobs": TRIPLES[:1]}),
        with_fields(stream_chunk("b", finish="stop"), meta_info={"output_token_logprobs": TRIPLES}),
    ]
    assert folded(*chunks)["choices"][0]["token_ids"] == [7, 8]


@pytest.mark.parametrize("listed", [[[7, 8], [9]], [7, 8]])
def test_sglangs_streams_tell_all_ids_beside_the_choices(listed):
    chunks = [stream_chunk("ab", finish="stop"), stream_chunk("c", index=1, finish="stop")]
    last = {"choices": [], "sglext": {"input_ids": [1, 2], "output_ids": listed}}
    answer = folded(*chunks, last, choices=2)
    assert answer["prompt_token_ids"] == [1, 2]
    assert (answer["choices"][0]["token_ids"], answer["choices"][0]["ids_from"]) == ([7, 8], "sglext")
    assert answer["choices"][1]["token_ids"] == ([9] if [9] in listed else None)


def test_the_plain_field_goes_first_and_is_not_named():
    chunk = with_fields(completion("ab"), token_ids=[7, 8], output_ids=[5, 5])
    choice = folded(chunk, event_stream=False)["choices"][0]
    assert choice["token_ids"] == [7, 8]
    assert "ids_from" not in choice


def test_each_prompt_of_a_text_completion_keeps_its_own_ids():
    choices = [
        {"index": n, "text": "a", "finish_reason": "stop", "prompt_token_ids": [1, n]} for n in range(2)
    ]
    answer = folded({"choices": choices}, event_stream=False, choices=2, text=True)
    assert answer["prompt_token_ids"] == [1, 0]
    assert [choice.get("prompt_token_ids") for choice in answer["choices"]] == [None, [1, 1]]


@pytest.mark.parametrize(
    "fields",
    [
        {"output_ids": "12"}, {"output_ids": [1, "2"]}, {"output_ids": [-1]}, {"output_ids": [2**40]},
        {"output_ids": [True]}, {"output_ids": []}, {"meta_info": [1]}, {"meta_info": {"output_token_logprobs": [[1]]}},
        {"meta_info": {"output_token_logprobs": 5}}, {"raw_output": {"completion_token_ids": {"a": 1}}},
        {"delta": {"token_id": None}}, {"delta": {"token_id": "7"}}, {"provider_specific_fields": 7},
    ],
)  # fmt: skip
def test_what_is_no_list_of_ids_is_no_claim(fields):
    assert told_ids(fields) is None
