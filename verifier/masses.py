"""Softmax sums of rows of logits, in one pass and without a copy of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.rows import over_rows, row_peak

_BLOCK = 512
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5 · 2^23: adding and subtracting it rounds a small float32 to whole
_LEAST = np.float32(-87.0)


@dataclass(frozen=True)
class Masses:
    """Of each row z at temperature T: log Σ exp(z/T), the entropy of softmax(z/T) in nats, and how many logits
    exceed the claimed one."""

    log_mass: NDArray[np.float64]
    entropy: NDArray[np.float32]
    rank: NDArray[np.int32]


def masses(logits: NDArray[np.float32], temperature: float, claimed: NDArray[np.int64]) -> Masses:
    """Masses of logits [R, V]."""
    count = len(logits)
    out = Masses(np.empty(count), np.empty(count, np.float32), np.empty(count, np.int32))
    inverse = np.float32(1.0 / temperature)
    over_rows(
        count,
        lambda a, b: _masses(logits[a:b], inverse, claimed[a:b], out.log_mass[a:b], out.entropy[a:b], out.rank[a:b]),
    )
    return out


@njit(inline="always", error_model="numpy")
def _exp(x: Any) -> Any:
    """e^x of float32 x ≤ 0 within 2e-7 (Cephes' expf, without its branches, so that it vectorizes)."""
    x = x if x > _LEAST else _LEAST
    shifted = np.float32(x * _LOG2_E + _ROUND)
    k = np.float32(shifted - _ROUND)
    r = np.float32(np.float32(x - k * _LN2_HIGH) - k * _LN2_LOW)
    p = np.float32(1.9875691500e-4)
    p = np.float32(p * r + np.float32(1.3981999507e-3))
    p = np.float32(p * r + np.float32(8.3334519073e-3))
    p = np.float32(p * r + np.float32(4.1665795894e-2))
    p = np.float32(p * r + np.float32(1.6666665459e-1))
    p = np.float32(p * r + np.float32(5.0000001201e-1))
    p = np.float32(p * r * r + r + np.float32(1.0))
    scale = np.int32(np.int32(np.float32(shifted).view(np.int32) << np.int32(23)) + np.int32(0x3F800000))
    return np.float32(p * np.int32(scale).view(np.float32))


@njit(nogil=True, error_model="numpy")
def _fill(block, peak, inverse, exps, moments):  # type: ignore[no-untyped-def]
    for i in range(block.size):
        x = np.float32((block[i] - peak) * inverse)
        exps[i] = _exp(x)
        moments[i] = exps[i] * x


# These sums may be taken in any order: unlike noise, they need not be the same to the bit everywhere.
@njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _sum(values):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(values.size):  # iterating over the array itself is not vectorized
        total += values[i]
    return total


@njit(nogil=True, error_model="numpy")
def _above(block, own):  # type: ignore[no-untyped-def]
    count = np.int32(0)
    for i in range(block.size):
        count = np.int32(count + (1 if block[i] > own else 0))
    return count


@njit(nogil=True, error_model="numpy")
def _masses(z, inverse, claimed, log_mass, entropy, rank):  # type: ignore[no-untyped-def]
    exps, moments = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for r in range(z.shape[0]):
        row = z[r]
        peak, own = row_peak(row), row[claimed[r]]
        mass, moment, above = 0.0, 0.0, 0
        for base in range(0, row.size, _BLOCK):
            block = row[base : base + _BLOCK]
            _fill(block, peak, inverse, exps, moments)
            mass += _sum(exps[: block.size])
            moment += _sum(moments[: block.size])
            above += _above(block, own)
        log_mass[r] = np.log(mass) + np.float64(peak) * inverse
        entropy[r] = np.log(mass) - moment / mass
        rank[r] = above
