"""Exchanges out of a golden file's answers, each cut to its first tokens: real work for workers, as much as wanted.

Greedy ones unless told: no contract has to be identified, so that a new process is at work within seconds.
"""

from itertools import cycle, islice

from recorded import golden
from storage_rows import exchange

from verifier.recordings import read_recordings
from verifier.tokenization import ChatTokenizer


def recorded_exchanges(directory, count, *, name="greedy", tokens=24, first=1, **changes):
    """`count` exchanges of a golden file, audited by the reference in `directory`; `changes` are columns."""
    tokenizer = ChatTokenizer(directory)
    rows = islice(cycle(read_recordings(golden(name))), count)
    return [_exchange(number, row, tokenizer, directory, tokens, changes) for number, row in enumerate(rows, first)]


def _exchange(number, row, tokenizer, directory, tokens, changes):
    ids = row.sequence.output_token_ids[: tokens - number % 5]
    choice = {"index": 0, "text": tokenizer.decode(ids), "token_ids": ids, "finish_reason": "length"}
    known = {
        "request": {"model": "smollm2", "messages": row.messages},
        "forced": {"seed": row.seed, "temperature": row.params.temperature},
        "sampler": "greedy",
        "response": {"choices": [choice], "prompt_token_ids": row.sequence.prompt_token_ids},
        "reference": str(directory),
    }
    return exchange(number, **{**known, **changes})
