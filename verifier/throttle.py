"""How long to wait so that no more than so many tokens a second are worked on. Pure."""

from __future__ import annotations


class Throttle:
    """Work is paid for after it was done: a burst of one page is let through, the next one waits.

    Args:
        tokens_per_second: None for no limit.
    """

    def __init__(self, tokens_per_second: float | None) -> None:
        self._rate, self._free_at = tokens_per_second, 0.0

    def wait(self, now: float) -> float:
        """Seconds from `now` until the next page may begin."""
        return max(0.0, self._free_at - now)

    def add(self, tokens: int, now: float) -> None:
        """So many tokens were begun at `now`."""
        if self._rate is not None:
            self._free_at = max(self._free_at, now) + tokens / self._rate
