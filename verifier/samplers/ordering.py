"""Rows of logits from the largest down, as the engines that draw by rank or invert a sorted distribution see them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.filters import Support
from verifier.sampling_params import SamplingParams

_SIGN, _REST, _DIGIT = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(2047)

# The number of entries that an engine's filters leave of a row, given its logits from the largest down (its top k if
# that filter comes first) and log Σ exp(logit/T) over the whole row.
Prefix = Callable[[NDArray[np.float32], float, SamplingParams], int]


@njit(nogil=True, error_model="numpy")
def _descending(bits):
    """Stable radix sort by the floats' bits, turned so that larger floats have smaller keys; faster than argsort."""
    keys, moved = np.empty(bits.size, np.uint32), np.empty(bits.size, np.uint32)
    for i in range(bits.size):
        keys[i] = bits[i] if bits[i] & _SIGN else bits[i] ^ _REST
    order, other = np.arange(bits.size).astype(np.int32), np.empty(bits.size, np.int32)
    for shift in (0, 11, 22):
        starts = np.zeros(2049, np.int64)
        for key in keys:
            starts[((key >> np.uint32(shift)) & _DIGIT) + 1] += 1
        starts = np.cumsum(starts)
        for i in range(bits.size):
            digit = (keys[i] >> np.uint32(shift)) & _DIGIT
            moved[starts[digit]], other[starts[digit]] = keys[i], order[i]
            starts[digit] += 1
        keys, moved = moved, keys
        order, other = other, order
    return order


def descending(row: NDArray[np.float32], top_k: int = 0) -> NDArray[np.int32]:
    """Ids of the row's logits, the largest first and equal ones by id; only the first `top_k` if that is positive."""
    if not 0 < top_k < row.size:
        found: NDArray[np.int32] = _descending(np.ascontiguousarray(row).view(np.uint32))
        return found
    cut = np.partition(row, row.size - top_k)[row.size - top_k]
    head = np.flatnonzero(row >= cut)
    return head[np.argsort(-row[head], kind="stable")[:top_k]].astype(np.int32)


def running_mass(z: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Cumulative sums of exp((z − z[0])/T): the masses that "cumulative probability" means, before division."""
    weights = np.exp((z - z[0]) / np.float32(temperature))
    return np.cumsum(weights, dtype=np.float64)


def is_filtered(params: SamplingParams) -> bool:
    """Whether the request uses any filter that may leave tokens out."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def prefix_support(
    logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams, prefix: Prefix,
    *, top_k_first: bool = True,
) -> Support:  # fmt: skip
    """Support of rows whose filters leave a prefix of the descending order; entries equal to its last one stay too."""
    if not is_filtered(params):
        return Support(np.full(len(logits), -np.inf, np.float32), log_mass)
    cuts, masses = np.empty(len(logits), np.float32), np.empty(len(logits))
    for r, row in enumerate(logits):
        z = row[descending(row, params.top_k if top_k_first else 0)]
        z = z[: prefix(z, float(log_mass[r]), params)]
        cuts[r] = z[-1]
        masses[r] = z[0] / params.temperature + np.log(running_mass(z, params.temperature)[-1])
    return Support(cuts, masses)
