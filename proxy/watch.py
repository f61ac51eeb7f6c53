"""Deadlines of one request: a single timer that cancels its task when the time of the present phase has passed."""

from __future__ import annotations

import asyncio

_EPSILON = 0.001


class Watch:
    """`expired` names the phase whose deadline cancelled the task; the task must then call `survive`.

    A phase's deadline may move on (`touch`) at the cost of one assignment: the timer looks when it fires.
    """

    def __init__(self, *, total_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._end = self._loop.time() + total_seconds
        self._due = self._end
        self._armed_for = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.phase = ""
        self.seconds = 0.0
        self.expired: str | None = None

    def enter(self, phase: str, seconds: float) -> None:
        """From now on `seconds` may pass until the next `touch` or `enter`."""
        self.phase, self.seconds = phase, seconds
        self.touch()
        if self._timer is None or self._due < self._armed_for - _EPSILON:
            self._arm()

    def touch(self) -> None:
        """Something has moved."""
        self._due = min(self._loop.time() + self.seconds, self._end)

    def stop(self) -> None:
        """No deadline any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def survive(self) -> None:
        """The cancellation was ours and ends here."""
        uncancel = getattr(self._task, "uncancel", None)  # Python 3.11
        if uncancel is not None:
            uncancel()

    def _arm(self) -> None:
        self.stop()
        self._armed_for = self._due
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() < self._due - _EPSILON:
            self._arm()
            return
        self.expired = "total" if self._due >= self._end else self.phase
        if self._task is not None:
            self._task.cancel(f"deadline: {self.expired}")
