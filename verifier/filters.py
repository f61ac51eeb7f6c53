"""Which tokens the sampler may draw: top-k, top-p and min-p as a threshold on each row of logits.

vLLM masks in this order: min_p, top_k, top_p, each on what the last one left (vllm/v1/sample/sampler.py and
ops/topk_topp_sampler.py 0.8.5 … 0.33). Its sorting path keeps every tie at the k-th logit, and drops the ascending
prefix whose cumulative probability is ≤ 1 − p; so the support of a row is always "logit ≥ cut".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.rows import BLOCK, block_peak, over_rows, row_peak
from verifier.sampling_params import SamplingParams

EDGE = 0.2
"""Logits by which a token may miss the cut and still count as inside: what rounding in bfloat16 moves logits by.

Of 2,000 honest bfloat16 tokens (golden t07_p09, honest_bf16, v1_pen, v2_n4) two miss it, by 0.03 and 0.06; of 512 drawn
at T = 1.1 instead of 1 nine do, up to 0.95; of 512 by 4-bit weights 17, up to 2.6 and most of them by more than this.
"""


@dataclass(frozen=True)
class Support:
    """Of each row: the lowest logit that may be drawn, and log Σ exp(logit/T) over those that may."""

    cuts: NDArray[np.float32]
    log_mass: NDArray[np.float64]


def support(logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams) -> Support:
    """Support of logits [R, V] under `params`; `log_mass` [R] is log Σ exp(logit/T) over the whole row."""
    width = logits.shape[1]
    top_k = params.top_k if 0 < params.top_k < width else 0
    if params.is_greedy or (not top_k and params.top_p >= 1.0 and params.min_p <= 0.0):
        return Support(np.full(len(logits), -np.inf, np.float32), log_mass)
    cuts, masses = np.empty(len(logits), np.float32), np.empty(len(logits))
    rules = (params.temperature, top_k, params.top_p, params.min_p)
    over_rows(
        len(logits), lambda a, b: _supports(logits[a:b], *rules, log_mass[a:b], cuts[a:b], masses[a:b])
    )
    return Support(cuts, masses)


def softened(cuts: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cuts [R], lowered to the claimed tokens' logits `own` [R] where these miss them by no more than EDGE."""
    return np.where(own >= cuts - np.float32(EDGE), np.minimum(own, cuts), cuts)


def at_the_edge(
    logits: NDArray[np.float32], cuts: NDArray[np.float32], claimed: NDArray[np.int64], winners: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Rows where rounding may decide the support, so that no match and no mismatch can be told.

    Either the claimed token misses the cut by no more than EDGE, or another token wins that clears it by no more; a
    row's largest logit is always inside.
    """
    rows = np.arange(len(logits))
    own, won = logits[rows, claimed], logits[rows, winners]
    edge: NDArray[np.bool_] = (own < cuts) & (own >= cuts - np.float32(EDGE))
    for row in np.flatnonzero((winners != claimed) & (won <= cuts + np.float32(EDGE)) & np.isfinite(cuts)):
        edge[row] |= won[row] < logits[row].max()
    return edge


_compiled: Any = njit(nogil=True, error_model="numpy")


@_compiled
def _sift_down(heap, x):
    """Replace the smallest value of a heap by x."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= heap.size:
            break
        if child + 1 < heap.size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= x:
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = x


@_compiled
def _kth_largest(z, k):
    """The k-th largest value by a heap of the k largest seen: far fewer writes than a partition of the row."""
    heap = np.sort(z[:k])
    for base in range(k, z.size, BLOCK):
        block = z[base : base + BLOCK]
        if block_peak(block) > heap[0]:
            for x in block:
                if x > heap[0]:
                    _sift_down(heap, x)
    return heap[0]


@_compiled
def _at_least(z, cut):
    """Values ≥ cut, largest first."""
    kept = np.empty(z.size, np.float32)
    n = 0
    for base in range(0, z.size, BLOCK):
        block = z[base : base + BLOCK]
        if block_peak(block) >= cut:
            for x in block:
                if x >= cut:
                    kept[n] = x
                    n += 1
    return np.sort(kept[:n])[::-1]


@_compiled
def _mass(values, peak, temperature):
    total = 0.0
    for x in values:
        total += np.exp((np.float64(x) - peak) / temperature)
    return total


@_compiled
def _nucleus(kept, peak, temperature, wanted):
    """Length of the shortest prefix of `kept` whose mass reaches `wanted`, or 0 if it never does."""
    total = 0.0
    for i in range(kept.size):
        total += np.exp((np.float64(kept[i]) - peak) / temperature)
        if total >= wanted:
            return i + 1
    return 0


@_compiled
def _support(z, temperature, top_k, top_p, min_p, log_mass):
    peak = np.float64(row_peak(z))
    cut = np.float32(-np.inf)
    if min_p > 0.0:
        cut = np.float32(peak + temperature * np.log(min_p))
    if top_k > 0:
        cut = max(cut, _kth_largest(z, top_k))
    narrowed = cut > -np.inf
    kept = _at_least(z, cut if narrowed else np.float32(peak - 8.0 * temperature))
    total = _mass(kept, peak, temperature) if narrowed else np.exp(log_mass - peak / temperature)
    if top_p < 1.0:
        wanted = top_p * total
        n = _nucleus(kept, peak, temperature, wanted)
        if n == 0 and not narrowed:
            # A flat row: eight temperatures below the peak do not hold a mass of p.
            kept = _at_least(z, np.float32(-np.inf))
            n = _nucleus(kept, peak, temperature, wanted)
        n = n if n > 0 else kept.size
        cut = kept[n - 1]
        # Ties at the edge share its fate only as far as the sort keeps them apart; keeping all is the wider support.
        while n < kept.size and kept[n] == cut:
            n += 1
        total = _mass(kept[:n], peak, temperature)
    return cut, peak / temperature + np.log(total)


@_compiled
def _supports(z, temperature, top_k, top_p, min_p, log_mass, cuts, masses):
    for r in range(z.shape[0]):
        cuts[r], masses[r] = _support(z[r], temperature, top_k, top_p, min_p, log_mass[r])
