"""What the dashboard shows of each database row: plain dictionaries for pages, JSON and CSV alike. Pure.

A match rate is 1 − the mean of the detector `mismatch`; its confidence sequence and its band turn round with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from storage.history import RATE_BOUNDS
from storage.models import Audit, Exchange, Job, Stream
from storage.models_alerts import Alert, Notice, Silence
from storage.models_history import StreamHistory, VerdictChange
from storage.overview import Waiting
from storage.search import Auditing

DEFAULT_ALPHA = 1e-3
STREAM_KEY = ("upstream", "model", "reference", "sampler")
STREAM = (
    *STREAM_KEY, "verdict", "reasons", "hint", "match_rate", "match_low", "match_high", "match_tolerated",
    "match_honest", "log_e", "alarm_log_e", "requests", "tokens", "audits", "drift_alarm_at", "updated_at",
)  # fmt: skip
HISTORY = (
    "at", "audits", "tokens", "exact_matches", "match_rate", "match_mean", "match_low", "match_high",
    "match_tolerated", "outside_support", "ambiguous_tokens", "unsupported", "failed", "verdict", "log_e",
    "total_requests", "total_tokens",
)  # fmt: skip
VERDICT = ("at", *STREAM_KEY, "previous", "verdict", "reasons", "log_e", "requests", "tokens")
EXCHANGE = (
    "id", "created_at", "upstream", "model", "streamed", "status", "outcome", "total_seconds", "auditing", "reason",
    "choice_index", "reference", "sampler", "token_source", "tokens", "exact_matches", "match_rate",
    "outside_support", "ambiguous_tokens", "clipped_margin", "audited_at",
)  # fmt: skip
AUDIT = (
    "exchange_id", "choice_index", "audited_at", "tokens", "exact_matches", "match_rate", "outside_support",
    "ambiguous_tokens", "clipped_margin", "token_source",
)  # fmt: skip
WAITING = ("reference", "todo", "leased", "more", "oldest", "retried", "reason")


ALERT = (
    "rule", "severity", "state", "summary", "value", "labels", "started_at", "seen_at", "fired_at", "resolved_at",
    "told", "told_at", "silenced", "fingerprint",
)  # fmt: skip
NOTICE = ("id", "created_at", "receiver", "topic", "state", "attempts", "run_at", "sent_at", "error")
SILENCE = ("id", "created_at", "starts_at", "ends_at", "matchers", "comment")


def alert_row(alert: Alert) -> dict[str, Any]:
    """Where one alert stands."""
    return {name: getattr(alert, name) for name in ALERT}


def notice_row(notice: Notice) -> dict[str, Any]:
    """One message to a receiver, without what it says."""
    return {name: getattr(notice, name) for name in NOTICE}


def silence_row(silence: Silence) -> dict[str, Any]:
    """What is kept quiet."""
    return {name: getattr(silence, name) for name in SILENCE}


def stream_row(stream: Stream) -> dict[str, Any]:
    """One stream as it stands now."""
    detail = stream.detail
    return {
        **{name: getattr(stream, name) for name in STREAM_KEY},
        "verdict": stream.verdict, "reasons": stream.reasons, "hint": detail.get("hint"),
        **_match(detail.get("effects", ())),
        "log_e": stream.log_e, "alarm_log_e": -math.log(detail.get("alpha") or DEFAULT_ALPHA),
        "requests": stream.requests, "tokens": stream.tokens, "audits": stream.audits,
        "drift_alarm_at": stream.drift_alarm_at, "updated_at": stream.updated_at,
    }  # fmt: skip


def history_row(row: StreamHistory) -> dict[str, Any]:
    """One span of a stream: `match_rate` is of the span alone, what follows it of all until then."""
    return {
        "at": row.at, "audits": row.audits, "tokens": row.tokens, "exact_matches": row.exact_matches,
        "match_rate": row.exact_matches / row.tokens if row.tokens else None,
        **{name: getattr(row, name) for name in ("match_mean", "match_low", "match_high", "match_tolerated")},
        "outside_support": row.outside_support, "ambiguous_tokens": row.ambiguous_tokens,
        "unsupported": row.unsupported, "failed": row.failed, "verdict": row.verdict, "log_e": row.log_e,
        "total_requests": row.total_requests, "total_tokens": row.total_tokens,
    }  # fmt: skip


def rate_counts(rows: Sequence[StreamHistory]) -> list[tuple[float, int]]:
    """How many audited answers had at most which match rate; each counted once."""
    return [(bound, sum(row.match_rates[i] for row in rows)) for i, bound in enumerate(RATE_BOUNDS)]


def verdict_row(change: VerdictChange) -> dict[str, Any]:
    """One change of a stream's verdict."""
    return {name: getattr(change, name) for name in VERDICT}


def exchange_row(row: Any) -> dict[str, Any]:
    """One choice of an exchange (or an exchange without audits), as `storage.search.page` gives it."""
    auditing, reason = _auditing(row)
    return {
        **{name: getattr(row, name) for name in EXCHANGE if hasattr(row, name)},
        "outcome": row.outcome.value, "auditing": auditing, "reason": reason,
        "token_source": row.token_source.value if row.token_source else None,
        "match_rate": row.exact_match_rate,
    }  # fmt: skip


def audit_row(row: Any) -> dict[str, Any]:
    """One audit, as `storage.search.latest` gives it."""
    source = row.token_source
    kept = {name: getattr(row, name) for name in AUDIT if hasattr(row, name)}
    return {**kept, "match_rate": row.exact_match_rate, "token_source": source.value if source else None}


def waiting_row(row: Waiting) -> dict[str, Any]:
    """The backlog of one reference."""
    return {name: getattr(row, name) for name in WAITING}


def conversation(exchange: Exchange) -> dict[str, list[tuple[str, Any]]]:
    """Who said what: `prompt` and `answers`, each as pairs of a role and a text (or what stands in its place).

    A client and a provider may have sent anything: whatever is not a message is shown as it is.
    """
    request, response = exchange.request, exchange.response
    messages, choices = request.get("messages"), response.get("choices")
    prompt = [_said(message, "role", "content") for message in messages] if isinstance(messages, list) else []
    if not prompt and request.get("prompt") is not None:
        prompt = [("prompt", request["prompt"])]
    answers = [_said(choice, "index", "text") for choice in choices] if isinstance(choices, list) else []
    return {"prompt": prompt, "answers": answers or ([("error", response["error"])] if response.get("error") else [])}


def _said(value: Any, role: str, text: str) -> tuple[str, Any]:
    if not isinstance(value, Mapping):
        return "?", value
    told = value.get(text)
    return str(value.get(role, "?")), value if told is None else told


def exchange_detail(
    exchange: Exchange | None, audits: Sequence[Audit], job: Job | None, *, payloads: bool
) -> dict[str, Any]:
    """All that is known of one exchange; without `payloads` neither what was asked nor what was answered."""
    return {
        "exchange": None if exchange is None else _exchange(exchange, payloads=payloads),
        "job": None if job is None else {
            "state": job.state.value, "attempts": job.attempts, "worker": job.worker, "reason": job.reason,
        },
        "audits": [audit_detail(audit) for audit in audits],
    }  # fmt: skip


def _exchange(exchange: Exchange, *, payloads: bool) -> dict[str, Any]:
    plain = (
        "id", "created_at", "upstream", "endpoint", "model", "streamed", "status", "first_byte_seconds",
        "total_seconds", "audit", "unaudited_reason", "reference", "sampler", "forced", "overridden",
    )  # fmt: skip
    found = {name: getattr(exchange, name) for name in plain}
    # who sees the seed can foresee the noise of this answer only; it is over
    texts = {"request": exchange.request, "response": exchange.response} if payloads else {}
    return {**found, "outcome": exchange.outcome.value, **texts}


def audit_detail(audit: Audit) -> dict[str, Any]:
    """All numbers of one audit."""
    plain = (
        "choice_index", "created_at", "upstream", "model", "reference", "sampler", "reason", "tokens",
        "exact_matches", "exact_match_rate", "outside_support", "ambiguous_tokens", "mean_margin", "clipped_margin",
        "cross_entropy", "mean_logit_rank", "mean_gumbel_rank", "sampling", "stream_position", "notes",
    )  # fmt: skip
    return {
        **{name: getattr(audit, name) for name in plain},
        "verdict_status": audit.verdict_status.value,
        "token_source": audit.token_source.value if audit.token_source else None,
    }


def _match(effects: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = {"match_rate": "mean", "match_low": "high", "match_high": "low", "match_tolerated": "tolerated"}
    names["match_honest"] = "honest"
    found = next((effect for effect in effects if effect["detector"] == "mismatch"), None)
    if found is None:
        return dict.fromkeys(names)
    return {ours: None if found.get(theirs) is None else 1 - found[theirs] for ours, theirs in names.items()}


def _auditing(row: Any) -> tuple[str, str | None]:
    if row.verdict_status is not None:
        return row.verdict_status.value, row.reason
    if not row.audit:
        return Auditing.UNAUDITED.value, row.unaudited_reason
    given_up = row.job_state is not None and row.job_state.value == "failed"
    return (Auditing.GIVEN_UP if given_up else Auditing.WAITING).value, row.job_reason
