"""Where batches are audited: in this process, or elsewhere behind the same few calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from storage.models import Exchange
from verifier.auditor import Auditor, Results


class Executor(Protocol):
    """Audits batches of one reference each. Nothing of the queue is known here: jobs stay leased by the worker."""

    async def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        """What `Auditor.audit` returns."""
        ...


class InlineExecutor:
    """Audits in threads of this process: one batch is tokenized while the reference works on another."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor

    async def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        return await asyncio.to_thread(self._auditor.audit, reference, batch, now=now)
