"""Where batches are audited: in this process, or elsewhere behind the same few calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

from storage.models import Exchange
from verifier.auditor import Auditor, Results
from verifier.errors import AuditorDied


class Executor(Protocol):
    """Audits batches of one reference each. Nothing of the queue is known here: jobs stay leased by the worker."""

    async def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        """What `Auditor.audit` returns.

        Raises:
            ExecutorLost: nothing was audited and no job is to blame; the jobs can be given back.
        """
        ...


class InlineExecutor:
    """Audits in threads of this process: one batch is tokenized while the reference works on another."""

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor

    async def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        return await asyncio.to_thread(self._auditor.audit, reference, batch, now=now)

    def close(self) -> None:
        """Let a thread that still loads a reference end with that."""
        self._auditor.close()


async def outliving(
    audit: Callable[[Sequence[Exchange]], Awaitable[Results]], batch: Sequence[Exchange]
) -> Results:
    """Results of a batch in processes that may die: then each exchange is tried alone.

    So one that kills whoever audits it is charged with that itself, and the others get their audits.
    """
    try:
        return await audit(batch)
    except AuditorDied as error:
        if len(batch) == 1:
            return {batch[0].id: error}
    results: Results = {}
    for exchange in batch:
        results.update(await outliving(audit, [exchange]))
    return results
