"""Rules into decisions: when an alert begins, fires, is told again, is kept quiet and ends."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.alerts import Facts, Quiet, ReferenceFact, Rule, StreamFact, decide, fingerprint, problems_of, wilson

START = datetime(2026, 11, 24, tzinfo=timezone.utc)
LABELS = {"upstream": "prod-a", "model": "m", "reference": "r", "sampler": "s"}
RULE = Rule(name="Deviates", when="verdict", receivers=("ops",), holds=timedelta(minutes=2))


def stream(**changes):
    values = {
        "labels": LABELS, "verdict": "deviates", "reasons": ("margin_tail",), "match": (0.6, 0.7, 0.8),
        "drift_alarm_at": 9,
    }  # fmt: skip
    return StreamFact(**{**values, **changes})


BAD, GOOD = Facts(streams=[stream()]), Facts(streams=[stream(verdict="consistent")])


class History:
    """Evaluations one after another; `told` is what receivers heard: minute and state."""

    def __init__(self, rule=RULE):
        self.rule, self.standings, self.told = rule, (), []

    def at(self, minute, facts, *quiet):
        now = START + timedelta(minutes=minute)
        decided = decide([self.rule], facts, self.standings, quiet, now=now)
        self.standings = decided.standings
        self.told += [(minute, alert.state) for group in decided.groups for alert in group.changed]
        return [standing.state for standing in decided.standings]


def test_an_alert_waits_fires_repeats_and_is_resolved():
    history = History()
    assert history.at(0, BAD) == ["pending"]
    assert history.at(1, BAD) == ["pending"]
    assert history.at(2, BAD) == ["firing"]
    assert history.at(100, BAD) == ["firing"]
    assert history.told == [(2, "firing")]
    history.at(2 + 240, BAD)
    assert history.at(300, GOOD) == ["resolved"]
    assert history.at(301, GOOD) == ["resolved"]
    assert history.told == [(2, "firing"), (242, "firing"), (300, "resolved")]
    assert history.at(300 + 8 * 24 * 60, GOOD) == []


def test_a_short_trouble_is_told_to_nobody():
    history = History()
    history.at(0, BAD)
    assert history.at(1, GOOD) == []
    assert history.at(2, BAD) == ["pending"]
    assert history.told == []


def test_what_comes_and_goes_is_told_once_in_a_cooldown():
    history = History(replace(RULE, holds=timedelta(), cooldown=timedelta(minutes=30)))
    for minute in range(0, 60, 2):
        history.at(minute, BAD)
        history.at(minute + 1, GOOD)
    assert history.told == [(0, "firing"), (1, "resolved"), (32, "firing"), (33, "resolved")]


def test_a_condition_must_be_gone_for_a_while_where_the_rule_says_so():
    history = History(replace(RULE, holds=timedelta(), resolve_after=timedelta(minutes=5)))
    history.at(0, BAD)
    assert history.at(4, GOOD) == ["firing"]
    assert history.at(4, BAD) == ["firing"]
    assert history.at(8, GOOD) == ["firing"]
    assert history.at(9, GOOD) == ["resolved"]


def test_a_silence_keeps_quiet_until_it_ends():
    quiet = Quiet({"upstream": "prod-*", "rule": "Deviates"})
    history = History(replace(RULE, holds=timedelta()))
    assert history.at(0, BAD, quiet) == ["firing"]
    assert history.standings[0].silenced
    assert history.told == []
    history.at(1, BAD, Quiet({"upstream": "prod-b"}))
    history.at(2, GOOD, quiet)
    history.at(3, GOOD)
    assert history.told == [(1, "firing"), (3, "resolved")]


def test_a_rule_that_is_gone_takes_its_alerts_along():
    history = History()
    history.at(0, BAD)
    decided = decide([], BAD, history.standings, [], now=START)
    assert (decided.standings, decided.groups) == ((), ())
    assert decided.dropped == (history.standings[0].fingerprint,)


def test_a_group_tells_what_changed_first_and_what_fires_besides():
    two = Facts(streams=[stream(), stream(labels={**LABELS, "upstream": "prod-b"})])
    rule = replace(RULE, holds=timedelta(), receivers=("ops", "chat"))
    first = decide([rule], BAD, (), [], now=START)
    second = decide([rule], two, first.standings, [], now=START + timedelta(minutes=1))
    assert [group.receiver for group in second.groups] == ["ops", "chat"]
    group = second.groups[0]
    assert [alert.labels["upstream"] for alert in group.changed] == ["prod-b"]
    assert [alert.labels["upstream"] for alert in group.alerts] == ["prod-b", "prod-a"]


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=30))
def test_receivers_hear_firing_and_resolved_in_turn_and_the_same_moment_changes_nothing(steps):
    history, minute = History(replace(RULE, repeat_after=timedelta(days=999))), 0
    for wait, bad in steps:
        minute += wait
        facts = BAD if bad else GOOD
        history.at(minute, facts)
        before = history.standings, list(history.told)
        history.at(minute, facts)
        assert (history.standings, history.told) == before
    states = [state for _, state in history.told]
    assert states == ["firing", "resolved"] * (len(states) // 2) + ["firing"] * (len(states) % 2)


LAGGING = ReferenceFact(reference="r", lag=timedelta(hours=2), retried=3, reason="BadWeights: no")


@pytest.mark.parametrize(
    ("rule", "facts", "value"),
    [
        ({"when": "drift"}, BAD, 9.0),
        ({"when": "match_rate_below", "threshold": 0.81}, BAD, 0.8),
        ({"when": "match_rate_below", "threshold": 0.65, "bound": "lower"}, BAD, 0.6),
        ({"when": "lag_above", "threshold": 3600.0}, Facts(references=[LAGGING]), 7200.0),
        ({"when": "reference_failing"}, Facts(references=[LAGGING]), 3.0),
        ({"when": "losses_above"}, Facts(lost=2), 2.0),
    ],
)
def test_each_condition_holds_where_it_must(rule, facts, value):
    (problem,) = problems_of(Rule(name="x", receivers=(), **rule), facts)
    assert problem.value == value


@pytest.mark.parametrize(
    ("rule", "facts"),
    [
        ({"when": "verdict"}, GOOD),
        ({"when": "verdict", "labels": {"upstream": "test-*"}}, BAD),
        ({"when": "drift"}, Facts(streams=[stream(drift_alarm_at=None)])),
        ({"when": "match_rate_below", "threshold": 0.8}, BAD),
        ({"when": "match_rate_below", "threshold": 0.9}, Facts(streams=[stream(match=None)])),
        ({"when": "lag_above", "threshold": 7200.0}, Facts(references=[LAGGING])),
        ({"when": "losses_above"}, Facts()),
    ],
)
def test_no_condition_holds_where_it_must_not(rule, facts):
    assert list(problems_of(Rule(name="x", receivers=(), **rule), facts)) == []


def test_a_window_speaks_from_enough_tokens_on():
    window = timedelta(hours=1)
    rule = Rule(name="x", when="match_rate_below", receivers=(), threshold=0.95, window=window)

    def values(tokens, matches):
        return [p.value for p in problems_of(rule, Facts(streams=[stream(windows={window: (tokens, matches)})]))]

    assert values(199, 0) == []
    assert values(400, 380) == []
    (value,) = values(4000, 3700)
    assert value == pytest.approx(0.9327, abs=1e-3)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share(counts):
    low, share, high = wilson(*counts)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1


def test_a_fingerprint_is_of_rule_and_labels_in_any_order():
    assert fingerprint("a", {"x": "1", "y": "2"}) == fingerprint("a", {"y": "2", "x": "1"})
    assert len({fingerprint("a", {}), fingerprint("b", {}), fingerprint("a", {"x": "1"})}) == 3
