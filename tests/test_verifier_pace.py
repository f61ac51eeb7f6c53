"""How many jobs a worker claims at a time, and what it tells."""

from datetime import timedelta

import pytest
from storage_rows import NOON

from verifier.pace import Pace, size_of


def test_claims_follow_the_size_of_answers():
    pace = Pace(tokens=1000, most=64, now=NOON)
    assert pace.jobs == 64
    pace.add([100])
    assert pace.jobs == 10
    pace.add([5000] * 30)
    assert pace.jobs == 1
    pace.add([1] * 100)
    assert pace.jobs == 64


def test_a_line_tells_speed_queue_and_memory_since_the_last_one():
    pace = Pace(tokens=1000, most=8, now=NOON)
    assert not pace.is_due(NOON + timedelta(hours=1))
    pace.add([300, 700])
    assert not pace.is_due(NOON + timedelta(seconds=9))
    later = NOON + timedelta(seconds=50)
    assert pace.is_due(later)
    line = pace.told(later, waiting=7, oldest=NOON + timedelta(seconds=38), memory="3.0 of 80.0 GiB")
    assert line == (
        "audited 2 answers, 20 tokens/s; 7 jobs wait, the oldest for 12 s; GPU memory 3.0 of 80.0 GiB"
    )
    assert not pace.is_due(later + timedelta(hours=1))


@pytest.mark.parametrize(
    ("usage", "size"),
    [({"total_tokens": 12}, 12), ({"total_tokens": 10**15}, 10**6), ({"total_tokens": -3}, 30),
     ({"total_tokens": True}, 30), ({"total_tokens": "9"}, 30), (None, 30), ([], 30)],
)  # fmt: skip
def test_a_providers_count_is_believed_within_bounds(usage, size):
    response = {"usage": usage, "choices": ["x" * 55]}
    assert size_of({"q": "y" * 53}, response) == size
