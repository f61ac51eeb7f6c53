"""Bulk re-verification by Ray Data: keys stream page by page through actors, which read and keep rows themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any

import ray
import ray.data

from storage.database import open_database
from storage.reaudits import Key
from verifier.errors import ExecutorLost, VerifierError
from verifier.remote_auditor import Loading, Needs
from verifier.reverify import Ask, Reverifier

BLOCKS = 50
"""Of each worker, at most: Ray hands work out by blocks."""


class ReverifyingActor:
    """Has a reference warm and its own connection to the database; Ray Data calls it page by page."""

    def __init__(self, store: str, loading: Loading, ask: Ask) -> None:
        self._loop, self._stack = asyncio.new_event_loop(), AsyncExitStack()
        opening = self._stack.enter_async_context(open_database(store, upgrade=False))
        self._reverifier = Reverifier(self._loop.run_until_complete(opening), loading.auditor(), ask)

    def __call__(self, pages: dict[str, Any]) -> dict[str, list[int]]:
        """Ray Data's batch of one page → how many of its exchanges were done."""
        keys = [Key(datetime.fromisoformat(moment), number) for moment, number in json.loads(pages["keys"][0])]
        return {"done": [self._loop.run_until_complete(self._reverifier.do(keys))]}


def reverified(
    pages: Sequence[Sequence[Key]], *, address: str, store: str, loading: Loading, ask: Ask, needs: Needs, workers: int
) -> Iterator[int]:
    """Do all pages in the cluster; gives the number of exchanges of each as it is done.

    The rate is shared out among the workers. Rerun after an error: what was kept is not among the pages any more.

    Raises:
        ExecutorLost: no cluster answers, or it was lost.
        VerifierError: what an actor ran into.
    """
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, ignore_reinit_error=True)
    except (ConnectionError, TimeoutError) as error:
        raise ExecutorLost(f"no Ray cluster answers at {address}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    share = ask.tokens_per_second and ask.tokens_per_second / workers
    items = [{"keys": json.dumps([(key.created_at.isoformat(), key.exchange_id) for key in page])} for page in pages]
    rows = ray.data.from_items(items, override_num_blocks=min(len(items), BLOCKS * workers))
    done = rows.map_batches(
        ReverifyingActor, batch_size=1, concurrency=workers, num_cpus=needs.cpus,
        num_gpus=needs.gpus or None, fn_constructor_args=(store, loading, replace(ask, tokens_per_second=share)),
    )  # fmt: skip
    try:
        for row in done.iter_rows():
            yield int(row["done"])
    except ray.exceptions.RayTaskError as error:
        raise VerifierError(f"{type(error.cause).__name__}: {error.cause}") from None
    except ray.exceptions.RayError as error:
        raise ExecutorLost(f"the Ray cluster at {address} was lost: start again to go on") from error
    finally:
        ray.shutdown()
