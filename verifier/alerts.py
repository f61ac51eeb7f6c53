"""Rules and facts into decisions: which alerts begin, fire and end, and who is told. Pure.

An alert is one rule on one set of labels. It is pending until its condition has held for the rule's `holds`, fires,
and is resolved when the condition has been gone for `resolve_after`. Receivers are told once when it fires, again
every `repeat_after`, and once when it is resolved; an alert that comes and goes is told at most every `cooldown`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

CONDITIONS = ("verdict", "match_rate_below", "drift", "lag_above", "losses_above", "reference_failing")
BOUNDS = ("upper", "mean", "lower")
FEWEST_TOKENS = 200
"""A window with fewer says nothing of a match rate."""
REMEMBERED = timedelta(days=7)
"""How long a resolved alert is shown."""
_Z = 1.959964
"""97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One condition and whom it concerns.

    Args:
        when: one of CONDITIONS.
        verdicts: for `verdict`.
        threshold: a rate, seconds or a count, by the condition.
        bound: for `match_rate_below`, which end of the confidence interval must lie below.
        window: for `match_rate_below`: only tokens audited within it, with a Wilson interval; None for the stream's
            whole life with its confidence sequence, which holds however often it is looked at.
        labels: only alerts whose labels match, * standing for any text.
    """

    name: str
    when: str
    receivers: tuple[str, ...]
    severity: str = "warning"
    verdicts: tuple[str, ...] = ("deviates",)
    threshold: float = 0.0
    bound: str = "upper"
    window: timedelta | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    holds: timedelta = timedelta()
    resolve_after: timedelta = timedelta()
    repeat_after: timedelta = timedelta(hours=4)
    cooldown: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class StreamFact:
    """A stream now. `windows` holds (tokens, exact matches) by the windows that rules ask for."""

    labels: Mapping[str, str]
    verdict: str
    reasons: tuple[str, ...]
    match: tuple[float, float, float] | None
    """Lower end, mean, upper end."""
    drift_alarm_at: int | None
    windows: Mapping[timedelta, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReferenceFact:
    """The backlog of one reference now."""

    reference: str
    lag: timedelta
    retried: int
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that rules look at."""

    streams: Sequence[StreamFact] = ()
    references: Sequence[ReferenceFact] = ()
    lost: int = 0


@dataclass(frozen=True)
class Problem:
    """A condition that holds."""

    labels: Mapping[str, str]
    value: float | None
    summary: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where one alert stands; fields as `storage.models_alerts.Alert` has them."""

    fingerprint: str
    rule: str
    severity: str
    state: str
    labels: Mapping[str, str]
    summary: str
    value: float | None
    started_at: datetime
    seen_at: datetime
    fired_at: datetime | None = None
    resolved_at: datetime | None = None
    told: str | None = None
    told_at: datetime | None = None
    silenced: bool = False


@dataclass(frozen=True)
class Group:
    """What one receiver is told of one rule: `changed` now; `alerts` are these and all others that fire."""

    receiver: str
    rule: Rule
    alerts: tuple[Standing, ...]
    changed: tuple[Standing, ...]


@dataclass(frozen=True)
class Decisions:
    """New standings, fingerprints that are forgotten, and who is told what."""

    standings: tuple[Standing, ...]
    dropped: tuple[str, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Quiet:
    """A silence that holds now: labels (and `rule`) that must match."""

    matchers: Mapping[str, str]


def decide(
    rules: Sequence[Rule], facts: Facts, before: Sequence[Standing], quiet: Sequence[Quiet], *, now: datetime
) -> Decisions:
    """What an evaluation changes. The same facts a moment later change nothing."""
    known = {standing.fingerprint: standing for standing in before}
    after: dict[str, Standing] = {}
    dropped: list[str] = []
    groups: list[Group] = []
    for rule in rules:
        problems = {fingerprint(rule.name, p.labels): p for p in problems_of(rule, facts)}
        of_rule = [
            standing
            for print_, old in _union(rule, problems, known)
            if (standing := _moved(rule, print_, old, problems.get(print_), now)) is not None
        ]
        of_rule = [replace(one, silenced=any(_is_quiet(one, q) for q in quiet)) for one in of_rule]
        told = [_told(rule, standing, now) for standing in of_rule]
        changed = tuple(new for old, new in zip(of_rule, told, strict=True) if old != new)
        after |= {standing.fingerprint: standing for standing in told}
        if changed:
            firing = tuple(s for s in told if s.state == "firing" and not s.silenced and s not in changed)
            groups += [Group(receiver, rule, (*changed, *firing), changed) for receiver in rule.receivers]
    dropped = [print_ for print_ in known if print_ not in after]
    return Decisions(tuple(after.values()), tuple(dropped), tuple(groups))


def problems_of(rule: Rule, facts: Facts) -> Iterator[Problem]:
    """Where the rule's condition holds now."""
    for problem in _candidates(rule, facts):
        if all(fnmatchcase(problem.labels.get(name, ""), pattern) for name, pattern in rule.labels.items()):
            yield problem


def fingerprint(rule: str, labels: Mapping[str, str]) -> str:
    """The same for the same rule and labels, in whatever order."""
    return hashlib.sha256(json.dumps([rule, sorted(labels.items())]).encode()).hexdigest()


def wilson(matches: int, tokens: int) -> tuple[float, float, float]:
    """95 % score interval of a share: lower end, share, upper end."""
    share, spread = matches / tokens, _Z**2 / tokens
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / tokens + spread / (4 * tokens))
    return max(0.0, middle - half), share, min(1.0, middle + half)


def _candidates(rule: Rule, facts: Facts) -> Iterable[Problem]:
    if rule.when == "verdict":
        return (_verdict(s) for s in facts.streams if s.verdict in rule.verdicts)
    if rule.when == "match_rate_below":
        return filter(None, (_match_rate(rule, s) for s in facts.streams))
    if rule.when == "drift":
        return (_drift(s) for s in facts.streams if s.drift_alarm_at is not None)
    if rule.when == "lag_above":
        return (_lag(r) for r in facts.references if r.lag.total_seconds() > rule.threshold)
    if rule.when == "reference_failing":
        return (_failing(r) for r in facts.references if r.retried > rule.threshold)
    return [_lost(facts.lost)] if facts.lost > rule.threshold else []


def _verdict(s: StreamFact) -> Problem:
    why = ", ".join(s.reasons).replace("_", " ")
    return Problem(s.labels, None, f"{s.labels['upstream']} ({s.labels['model']}): {s.verdict}: {why}")


def _match_rate(rule: Rule, s: StreamFact) -> Problem | None:
    ends = s.match
    if rule.window is not None:
        tokens, matches = s.windows.get(rule.window, (0, 0))
        ends = wilson(matches, tokens) if tokens >= FEWEST_TOKENS else None
    if ends is None:
        return None
    value = {"lower": ends[0], "mean": ends[1], "upper": ends[2]}[rule.bound]
    if value >= rule.threshold:
        return None
    text = f"match rate {ends[1]:.4f} ({ends[0]:.4f}–{ends[2]:.4f}), {rule.bound} bound below {rule.threshold:g}"
    return Problem(s.labels, value, f"{s.labels['upstream']} ({s.labels['model']}): {text}")


def _drift(s: StreamFact) -> Problem:
    text = f"the drift alarm rang at token {s.drift_alarm_at}"
    return Problem(s.labels, float(s.drift_alarm_at or 0), f"{s.labels['upstream']} ({s.labels['model']}): {text}")


def _lag(r: ReferenceFact) -> Problem:
    seconds = r.lag.total_seconds()
    text = f"audits against {r.reference} lag by {seconds / 60:.0f} min"
    return Problem({"reference": r.reference}, seconds, text)


def _failing(r: ReferenceFact) -> Problem:
    text = f"{r.retried} audits against {r.reference} failed and will be tried again: {r.reason or 'no reason is told'}"
    return Problem({"reference": r.reference}, float(r.retried), text)


def _lost(lost: int) -> Problem:
    return Problem({}, float(lost), f"{lost} exchanges are recorded nowhere")


def _union(
    rule: Rule, problems: Mapping[str, Problem], known: Mapping[str, Standing]
) -> Iterator[tuple[str, Standing | None]]:
    for print_ in problems:
        yield print_, known.get(print_)
    for print_, standing in known.items():
        if standing.rule == rule.name and print_ not in problems:
            yield print_, standing


def _moved(rule: Rule, print_: str, old: Standing | None, problem: Problem | None, now: datetime) -> Standing | None:
    """The next standing; None for one that is forgotten."""
    if problem is None:
        return None if old is None else _without_problem(rule, old, now)
    if old is None or old.state == "resolved":
        told = (None, None) if old is None else (old.told, old.told_at)
        old = Standing(
            fingerprint=print_, rule=rule.name, severity=rule.severity, state="pending", labels=problem.labels,
            summary=problem.summary, value=problem.value, started_at=now, seen_at=now, told=told[0], told_at=told[1],
        )  # fmt: skip
    standing = replace(old, severity=rule.severity, summary=problem.summary, value=problem.value, seen_at=now)
    if standing.state == "pending" and now - standing.started_at >= rule.holds:
        return replace(standing, state="firing", fired_at=now)
    return standing


def _without_problem(rule: Rule, old: Standing, now: datetime) -> Standing | None:
    if old.state == "pending":
        # nobody was told, unless it had fired before
        return None if old.told is None else replace(old, state="resolved", resolved_at=now)
    if old.state == "firing" and now - old.seen_at >= rule.resolve_after:
        return replace(old, state="resolved", resolved_at=now)
    if old.resolved_at is not None and now - old.resolved_at >= REMEMBERED:
        return None
    return old


def _told(rule: Rule, standing: Standing, now: datetime) -> Standing:
    """With `told` and `told_at` of now where receivers must hear of it."""
    since = None if standing.told_at is None else now - standing.told_at
    if standing.silenced:
        return standing
    if standing.state == "firing":
        wait = rule.repeat_after if standing.told == "firing" else rule.cooldown
        return replace(standing, told="firing", told_at=now) if since is None or since >= wait else standing
    if standing.state == "resolved" and standing.told == "firing":
        return replace(standing, told="resolved", told_at=now)
    return standing


def _is_quiet(standing: Standing, quiet: Quiet) -> bool:
    labels: dict[str, Any] = {**standing.labels, "rule": standing.rule}
    return all(fnmatchcase(str(labels.get(name, "")), pattern) for name, pattern in quiet.matchers.items())
