"""How a fault of ours is told in a log."""

from __future__ import annotations

import traceback


def frames(error: BaseException) -> str:
    """Where an error comes from, without its text, which may quote a user's words or a key."""
    lines = traceback.format_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " / ".join(" ".join(line.split()) for line in lines[-3:])
