"""What kernels over rows of logits share: all cores, and a row's peak."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import get_num_threads, njit


def over_rows(count: int, run: Callable[[int, int], None]) -> None:
    """Call run(a, b) for contiguous row ranges that cover 0 … count; `run` must release the GIL.

    A pool of its own, since numba's may not be entered from two threads at once.
    """
    parts = min(get_num_threads(), count)
    if parts <= 1:
        run(0, count)
        return
    edges = np.linspace(0, count, parts + 1).astype(int).tolist()
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(run, edges[:-1], edges[1:]))


# A maximum that need not tell NaN or the two zeros apart vectorizes; NumPy's own does not.
_peak: Any = njit(nogil=True, error_model="numpy", fastmath={"nnan", "nsz"})

BLOCK = 64  # values of a row that are looked at, or passed over, together


@_peak
def block_peak(block):  # type: ignore[no-untyped-def]
    """The largest of a few values, each finite or −∞."""
    top = block[0]
    for i in range(block.size):  # iterating over the array itself is not vectorized
        top = max(top, block[i])
    return top


@_peak
def row_peak(row):  # type: ignore[no-untyped-def]
    """The largest of many values, each finite or −∞; by BLOCK running maxima, since one alone is not vectorized."""
    tops = np.full(BLOCK, row[0])
    whole = row.size // BLOCK * BLOCK
    for base in range(0, whole, BLOCK):
        for i in range(BLOCK):
            tops[i] = max(tops[i], row[base + i])
    top = block_peak(tops)
    for i in range(whole, row.size):
        top = max(top, row[i])
    return top
