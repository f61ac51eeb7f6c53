"""The stand-in of bench.executors, under a name by which other processes find it: an auditor that only takes time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from storage.audits import NewAudit
from storage.models import Exchange
from verifier.auditor import Auditor, Results
from verifier.remote_auditor import Loading

REFERENCE = "reference"
"""As bench.ingest's exchanges name it."""


class TimedAuditor(Auditor):
    """Refuses every exchange after a fixed time, one batch at a time as on a reference."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._turn = seconds, threading.Lock()

    def warm(self, reference: str) -> None:
        """There is nothing to load."""

    def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:  # noqa: ARG002
        with self._turn:
            time.sleep(self._seconds)
        return {one.id: [_audit(one, now)] for one in batch}


def _audit(one: Exchange, now: datetime) -> NewAudit:
    return NewAudit(
        exchange_id=one.id, choice_index=0, created_at=now, upstream=one.upstream, model=one.model,
        reference=REFERENCE, sampler=one.sampler, verdict_status="unsupported", reason="not_replayed",
    )  # fmt: skip


@dataclass(frozen=True)
class Timed(Loading):
    """Gives that auditor."""

    seconds: float = 1.0

    def auditor(self) -> Auditor:
        return TimedAuditor(self.seconds)
