"""One exchange's way into the record: put once, just before the last bytes of its answer or at its end."""

from __future__ import annotations

import asyncio
import logging
import time

from proxy.draft import Draft
from proxy.faults import frames
from proxy.observation import Observer
from proxy.recorder import Recorder

logger = logging.getLogger(__name__)


class Entry:
    """The record of a draft, in the recorder and before the observer."""

    def __init__(self, draft: Draft, *, recorder: Recorder, observer: Observer) -> None:
        self._draft, self._recorder, self._observer = draft, recorder, observer
        self._put = False
        self._record: asyncio.Future[None] | None = None

    def put(self) -> None:
        """Hand over what is known by now, unless that has been done. Never raises, never waits."""
        if self._put:
            return
        self._put = True
        now = time.monotonic()
        try:
            exchange = self._draft.finish(now)
        except Exception as error:
            # the answer has been given; a fault of the record must not take it back
            logger.error("exchange %s could not be folded: %s", self._draft.id, frames(error))  # noqa: TRY400
            self._recorder.lost += 1
            self._observer.refused(self._draft.status, "not_recorded")
        else:
            self._record = self._recorder.put(exchange)
            self._observer.ended(self._draft.observation(exchange, now))

    async def durable(self) -> None:
        """All bytes of the answer have come: put it, and wait until the last of them may be sent.

        Raises:
            storage.errors.JournalFull: they must not be.
        """
        self._draft.ended_at = self._draft.ended_at or time.monotonic()
        self.put()
        if self._record is not None:
            await self._recorder.durable(self._record)
