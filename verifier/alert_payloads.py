"""What each kind of receiver gets. Pure; no payload holds an address or a secret, for they are kept in the database.

webhook    Prometheus Alertmanager's webhook, version 4: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
slack      an incoming webhook's message: `text` for notifications, `blocks` for people
pagerduty  Events API v2, one event for each alert: `dedup_key` makes it the same incident until it is resolved
email      subject and plain text
command    the webhook's JSON on its standard input
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from storage.alerts import NewNotice
from verifier.alerts import Group, Standing

KINDS = ("webhook", "slack", "pagerduty", "email", "command")
NEVER = "0001-01-01T00:00:00Z"
"""Alertmanager's `endsAt` of an alert that fires."""
_PAGERDUTY = {"critical": "critical", "warning": "warning", "info": "info"}
_MOST_LISTED = 20
_SLACK_TEXT = 2900
"""Slack takes 3,000 characters in a section."""


def notices(group: Group, kind: str, *, base_url: str) -> list[NewNotice]:
    """The messages that tell a group to a receiver of that kind. `base_url` is the dashboard's, empty for none."""
    topic = f"rule:{group.rule.name}"
    if kind == "pagerduty":
        return [
            NewNotice(group.receiver, f"alert:{alert.fingerprint}", _event(alert, base_url)) for alert in group.changed
        ]
    made = {"slack": _message, "email": _mail}.get(kind, webhook)
    return [NewNotice(group.receiver, topic, made(group, base_url))]


def webhook(group: Group, base_url: str) -> dict[str, Any]:
    """Alertmanager's JSON: every alert of the rule that fires, and those that have just been resolved."""
    alerts = [_alert(alert, base_url) for alert in group.alerts]
    name = {"alertname": group.rule.name}
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{group.rule.name}"}}',
        "truncatedAlerts": 0,
        "status": _status(group),
        "receiver": group.receiver,
        "groupLabels": name,
        "commonLabels": _common([alert["labels"] for alert in alerts]),
        "commonAnnotations": _common([alert["annotations"] for alert in alerts]),
        "externalURL": base_url,
        "alerts": alerts,
    }


def test_group(receiver: str, rule: Any, now: datetime) -> Group:
    """A made-up alert, so that people can try their receivers."""
    standing = Standing(
        fingerprint="0" * 64, rule=rule.name, severity="info", state="firing", labels={"upstream": "test"},
        summary="this is a test of seedproof's alerts", value=None, started_at=now, seen_at=now, fired_at=now,
    )  # fmt: skip
    return Group(receiver, rule, (standing,), (standing,))


def _alert(alert: Standing, base_url: str) -> dict[str, Any]:
    annotations = {"summary": alert.summary}
    if alert.value is not None:
        annotations["value"] = f"{alert.value:.6g}"
    return {
        "status": "resolved" if alert.state == "resolved" else "firing",
        "labels": {"alertname": alert.rule, "severity": alert.severity, **alert.labels},
        "annotations": annotations,
        "startsAt": _time(alert.fired_at or alert.started_at),
        "endsAt": _time(alert.resolved_at) if alert.state == "resolved" and alert.resolved_at else NEVER,
        "generatorURL": f"{base_url}/alerts" if base_url else "",
        "fingerprint": alert.fingerprint[:16],
    }


def _message(group: Group, base_url: str) -> dict[str, Any]:
    firing, mark = _status(group) == "firing", {"critical": ":red_circle:", "info": ":large_blue_circle:"}
    sign = mark.get(group.rule.severity, ":large_orange_circle:") if firing else ":white_check_mark:"
    title = f"{sign} {_for_slack(group.rule.name)}: {'firing' if firing else 'resolved'}"
    lines = [f"• {'' if a.state == 'firing' else '(resolved) '}{_for_slack(a.summary)}" for a in _listed(group)]
    blocks: list[dict[str, Any]] = [
        {"type": "section", "text": {"type": "mrkdwn", "text": f"*{title}*"}},
        {"type": "section", "text": {"type": "mrkdwn", "text": "\n".join(lines)[:_SLACK_TEXT]}},
    ]
    if base_url:
        link = f"<{base_url}/alerts|Dashboard> · severity {group.rule.severity}"
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": link}]})
    return {"text": f"{title} ({_for_slack(group.changed[0].summary)})"[:_SLACK_TEXT], "blocks": blocks}


def _event(alert: Standing, base_url: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        "event_action": "resolve" if alert.state == "resolved" else "trigger",
        "dedup_key": f"seedproof/{alert.fingerprint}",
    }
    if alert.state == "resolved":
        return event
    event["payload"] = {
        "summary": alert.summary[:1024],
        "source": alert.labels.get("upstream") or alert.labels.get("reference") or "seedproof",
        "severity": _PAGERDUTY.get(alert.severity, "error"),
        "timestamp": _time(alert.fired_at or alert.started_at),
        "class": alert.rule,
        "custom_details": {**alert.labels, "value": alert.value},
    }
    if base_url:
        event |= {"client": "seedproof", "client_url": f"{base_url}/alerts"}
    return event


def _mail(group: Group, base_url: str) -> dict[str, Any]:
    firing = _status(group) == "firing"
    lines = [f"{a.state.upper()}  {a.summary}\n  since {_time(a.fired_at or a.started_at)}" for a in _listed(group)]
    link = [f"\n{base_url}/alerts"] if base_url else []
    subject = f"[seedproof] {'FIRING' if firing else 'RESOLVED'} {group.rule.name}: {group.changed[0].summary}"
    # a header is one line
    return {"subject": " ".join(subject.split())[:200], "text": "\n".join([*lines, *link]) + "\n"}


def _listed(group: Group) -> Sequence[Standing]:
    return group.alerts[:_MOST_LISTED]


def _status(group: Group) -> str:
    return "firing" if any(alert.state == "firing" for alert in group.alerts) else "resolved"


def _common(values: Sequence[dict[str, str]]) -> dict[str, str]:
    return {k: v for k, v in values[0].items() if all(other.get(k) == v for other in values)} if values else {}


def _for_slack(text: str) -> str:
    """Names may be a stranger's: no mention, link or formatting begins in them."""
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, entity)
    return "".join("\u2009" + c if c in "*_~`" else c for c in text)


def _time(moment: datetime | None) -> str:
    return NEVER if moment is None else moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
