"""Rows for tests of storage: complete, valid, with what a test says changed."""

from datetime import datetime, timedelta, timezone
from typing import Any

from storage.audits import NewAudit
from storage.exchanges import NewExchange

NOON = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


def exchange(number: int, **changes: Any) -> NewExchange:
    values: dict[str, Any] = {
        "id": f"0193-{number:04}",
        "created_at": NOON + timedelta(seconds=number),
        "upstream": "honest",
        "endpoint": "/v1/chat/completions",
        "model": "smollm2",
        "streamed": False,
        "request": {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]},
        "forced": {"seed": 7, "temperature": 1.0},
        "overridden": {"temperature": 0.2},
        "response": {"choices": [{"index": 0, "text": "Hello"}]},
        "status": 200,
        "outcome": "complete",
        "first_byte_seconds": 0.25,
        "total_seconds": 1.5,
        "audit": True,
        "reference": "smollm2-bf16",
        "sampler": "vllm@0.26.0/v2",
    }
    return NewExchange(**{**values, **changes})


def unaudited(number: int, reason: str = "not_selected", **changes: Any) -> NewExchange:
    return exchange(number, audit=False, unaudited_reason=reason, reference=None, sampler=None, **changes)


def audit(number: int, **changes: Any) -> NewAudit:
    values: dict[str, Any] = {
        "exchange_id": f"0193-{number:04}",
        "choice_index": 0,
        "created_at": NOON + timedelta(seconds=number) + MINUTE,
        "upstream": "honest",
        "model": "smollm2",
        "reference": "smollm2-bf16",
        "sampler": "vllm@0.26.0/v2",
        "verdict_status": "verified",
        "token_source": "given",
        "tokens": 100,
        "exact_matches": 98,
        "exact_match_rate": 0.98,
    }
    return NewAudit(**{**values, **changes})
