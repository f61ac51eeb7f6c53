"""Where two texts or two lists part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the longest common beginning; compares slices, so that texts of megabytes take milliseconds."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_suffix(one: Sequence[Any], other: Sequence[Any], limit: int) -> int:
    """Length of the longest common end, at most `limit`."""
    limit = min(limit, len(one), len(other))
    return common_prefix(one[len(one) - limit :][::-1], other[len(other) - limit :][::-1])
