"""How many workers a backlog asks for, and how calmly they are let go."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from storage_rows import NOON

from verifier.scaling import CALM, DRAIN_SECONDS, LATE_SECONDS, Demand, Scale, shared_out, workers_wanted

IDLE = Demand(0.0, 0.0)


def wanted(tokens, *, oldest=1.0, running=1, speed=1000.0, least=0, most=8):
    demand = Demand(tokens, oldest)
    return workers_wanted(demand, running=running, tokens_per_second=speed, least=least, most=most)


def test_workers_follow_the_backlog_and_the_measured_speed():
    assert wanted(1) == 1
    assert wanted(3 * 1000 * DRAIN_SECONDS) == 3
    assert wanted(3 * 1000 * DRAIN_SECONDS, speed=3000.0) == 1
    assert wanted(1e12) == 8


def test_idle_references_keep_the_least_and_the_first_job_gets_one_worker():
    assert wanted(0) == 0
    assert wanted(0, least=2) == 2
    assert wanted(1e9, speed=None, running=0) == 1


def test_late_jobs_ask_for_one_more_than_runs():
    assert wanted(10, oldest=LATE_SECONDS + 1, running=2) == 3
    assert wanted(10, oldest=LATE_SECONDS + 1, running=8) == 8


def test_up_at_once_and_down_only_after_a_calm_time():
    scale = Scale().after(4, NOON)
    assert scale.workers == 4
    scale = scale.after(1, NOON)
    assert scale.workers == 4
    assert scale.after(1, NOON + CALM - timedelta(seconds=1)).workers == 4
    assert scale.after(1, NOON + CALM).workers == 1
    busy = scale.after(4, NOON + CALM / 2)
    assert busy.after(1, NOON + CALM).workers == 4


def test_the_longest_waiting_come_first_where_workers_are_too_few():
    demands = {"a": Demand(9.0, 5.0), "b": Demand(9.0, 50.0), "c": Demand(9.0, 500.0)}
    assert shared_out({"a": 4, "b": 4, "c": 4}, demands, 2) == {"a": 0, "b": 1, "c": 1}
    assert shared_out({"a": 4, "b": 1, "c": 4}, demands, 6) == {"a": 2, "b": 1, "c": 3}


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 9), st.floats(0, 1e6))), st.integers(1, 20))
def test_all_workers_that_are_wanted_and_there_are_given(pools, most):
    asked = {name: count for name, (count, _) in pools.items()}
    given_out = shared_out(asked, {name: Demand(1.0, oldest) for name, (_, oldest) in pools.items()}, most)
    assert sum(given_out.values()) == min(most, sum(asked.values()))
    assert all(given_out[name] <= count for name, count in asked.items())
