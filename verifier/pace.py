"""How much a worker claims at a time, and what it tells of its speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

REPORT_EVERY = timedelta(seconds=30)
_LONGEST = 1_000_000  # tokens that a provider's own count is believed to have
_CHARACTERS = 4  # of a text to a token, roughly


class Pace:
    """Jobs per claim by a budget of tokens, from the answers seen so far; and a line of log now and then.

    Args:
        tokens: of prompts and answers that one claim should hold.
        most: jobs of one claim, whatever their size.
        now: when the worker began.
    """

    def __init__(self, *, tokens: int, most: int, now: datetime) -> None:
        self._tokens, self._most = tokens, most
        self._mean: float | None = None
        self._since, self._answers, self._done = now, 0, 0
        self._speed: float | None = None

    @property
    def mean(self) -> float | None:
        """Tokens of an answer with its prompt, lately; None before the first."""
        return self._mean

    @property
    def speed(self) -> float | None:
        """Tokens per second of one batch at a time, lately; None before the first."""
        return self._speed

    @property
    def jobs(self) -> int:
        """How many jobs to claim next; until an answer has been seen, as many as are allowed."""
        if not self._mean:
            return self._most
        return max(1, min(self._most, int(self._tokens / self._mean)))

    def add(self, sizes: Sequence[int], seconds: float = 0.0) -> None:
        """Answers of these many tokens, prompts included, are done, after so many seconds."""
        if sizes and seconds > 0:
            speed = sum(sizes) / seconds
            self._speed = speed if self._speed is None else 0.8 * self._speed + 0.2 * speed
        for size in sizes:
            self._mean = float(size) if self._mean is None else 0.9 * self._mean + 0.1 * size
        self._answers += len(sizes)
        self._done += sum(sizes)

    def is_due(self, now: datetime) -> bool:
        """Whether it is time to tell."""
        return self._answers > 0 and now - self._since >= REPORT_EVERY

    def told(self, now: datetime, *, waiting: int, oldest: datetime | None, memory: str = "") -> str:
        """The line about what was done since the last one.

        Args:
            waiting: unfinished jobs of the queue.
            oldest: when the exchange of the oldest one came.
            memory: what the GPU holds, if there is one.
        """
        seconds = (now - self._since).total_seconds()
        speed = self._done / seconds if seconds > 0 else 0.0
        age = f", the oldest for {(now - oldest).total_seconds():.0f} s" if oldest else ""
        line = f"audited {self._answers} answers, {speed:.0f} tokens/s; {waiting} jobs wait{age}"
        self._since, self._answers, self._done = now, 0, 0
        return line + (f"; GPU memory {memory}" if memory else "")


def size_of(request: Mapping[str, Any], response: Mapping[str, Any]) -> int:
    """Tokens of an exchange's prompt and answer: the provider's count, or a guess from the length of both."""
    usage = response.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, Mapping) else None
    if isinstance(total, int) and not isinstance(total, bool) and total > 0:
        return min(total, _LONGEST)
    return min(max(1, (len(str(request)) + len(str(response.get("choices")))) // _CHARACTERS), _LONGEST)
