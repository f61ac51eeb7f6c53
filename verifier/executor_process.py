"""Audits in processes of this machine, one for each GPU or share of the cores, with references warm in them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from storage.models import Exchange
from verifier.auditor import Results
from verifier.child import Child, ChildDied
from verifier.errors import AuditorDied, ExecutorLost
from verifier.executor import outliving
from verifier.remote_auditor import Loading, RemoteAuditor, packed_batch, unpacked_results

LANES = 2
"""Batches of one process at a time: one is tokenized while the reference works on the other."""


@dataclass(frozen=True)
class Place:
    """Where one process works: the GPUs that it sees (as in CUDA_VISIBLE_DEVICES), None for the CPU."""

    loading: Loading
    gpus: str | None = None

    def start(self) -> Child:
        """A process with an auditor."""
        environment = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus}
        return Child(RemoteAuditor, self.loading, calls=LANES, environment=environment)


class ProcessExecutor:
    """Gives each batch to the process that has least to do; one that died is started again for the next batch."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._processes = [_Process(place) for place in places]

    async def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        return await outliving(partial(self._audit, reference, now), batch)

    async def _audit(self, reference: str, now: datetime, batch: Sequence[Exchange]) -> Results:
        process = min(self._processes, key=lambda process: process.batches)
        return await process.audit(reference, batch, now)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()


class _Process:
    def __init__(self, place: Place) -> None:
        self.batches = 0
        self._place, self._starting = place, asyncio.Lock()
        self._child: Child | None = None
        self._has: set[str] = set()

    async def audit(self, reference: str, batch: Sequence[Exchange], now: datetime) -> Results:
        self.batches += 1
        try:
            return await self._on(await self._warm(reference), reference, batch, now)
        finally:
            self.batches -= 1

    async def _on(self, child: Child, reference: str, batch: Sequence[Exchange], now: datetime) -> Results:
        try:
            return unpacked_results(await child.call("audit", reference, packed_batch(batch), now))
        except ChildDied as error:
            if self._child is child:  # and not the next one, which another batch has started meanwhile
                self.close()
            raise AuditorDied(f"the process that held {reference} died while it audited") from error

    async def _warm(self, reference: str) -> Child:
        """The process, once it has the reference. Raises ExecutorLost if it did not live to have it."""
        async with self._starting:
            try:
                if self._child is None:
                    self._child, self._has = await asyncio.to_thread(self._place.start), set()
                if reference not in self._has:
                    await self._child.call("warm", reference)
                    self._has.add(reference)
            except ChildDied as error:
                self.close()
                raise ExecutorLost(f"a process died while it loaded {reference}: is there memory for it?") from error
            return self._child

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
