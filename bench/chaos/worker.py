"""A worker whose reference takes a moment and judges nothing: the real queue without a model's cost.

    usage: python -m bench.chaos.worker DATABASE-URL

Claims, leases, heartbeats, transactions and weighing are the shipped worker's. In place of a model's replay each batch
waits some milliseconds, and its audits say `unsupported`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta

from storage.audits import NewAudit
from storage.database import open_database
from storage.models import Exchange
from verifier import worker
from verifier.auditor import Results

# a killed worker's jobs come back after this, so that a run does not have to wait for five minutes
worker.LEASE = timedelta(seconds=15)
SECONDS_PER_EXCHANGE = 0.001


class TimedExecutor:
    """One audit for each choice, after a moment."""

    async def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        await asyncio.sleep(SECONDS_PER_EXCHANGE * len(batch))
        return {exchange.id: [_audit(exchange, choice, now) for choice in _choices(exchange)] for exchange in batch}


def _choices(exchange: Exchange) -> list[int]:
    return [choice["index"] for choice in exchange.response["choices"]]


def _audit(exchange: Exchange, choice: int, now: datetime) -> NewAudit:
    return NewAudit(
        exchange_id=exchange.id, choice_index=choice, created_at=now, upstream=exchange.upstream,
        model=exchange.model, reference=exchange.reference or "", sampler=exchange.sampler,
        verdict_status="unsupported", reason="not_replayed",
    )  # fmt: skip


async def main(url: str) -> None:
    async with open_database(url) as database:
        task = asyncio.ensure_future(
            worker.Worker(database, TimedExecutor(), name=f"chaos:{os.getpid()}", batch=32).run()
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        print("ready", flush=True)
        try:
            await task
        except asyncio.CancelledError:
            return


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(sys.argv[1]))
