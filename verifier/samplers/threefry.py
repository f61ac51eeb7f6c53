"""Threefry-2x32 with 20 rounds (Salmon et al., SC 2011), and MLX's way to draw keys and words from it."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.samplers.arithmetic import LOW32, SHIFT32, ZERO, kernel
from verifier.samplers.noise import Integers

_PARITY = np.uint64(0x1BD11BDA)
_EVEN, _ODD = (13, 15, 26, 6), (17, 29, 16, 24)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)


@kernel
def _turn(x0, x1, rotation):
    x0 = (x0 + x1) & LOW32
    x1 = ((x1 << np.uint64(rotation)) | (x1 >> np.uint64(32 - rotation))) & LOW32
    return x0, x1 ^ x0


@kernel
def threefry2x32(k0, k1, c0, c1):
    """Two words of key (k0, k1) and counter (c0, c1), 32-bit words in uint64."""
    k2 = k0 ^ k1 ^ _PARITY
    x0, x1 = (c0 + k0) & LOW32, (c1 + k1) & LOW32
    # Loops, which LLVM unrolls: twenty rounds written out would take numba ten seconds to compile.
    for group in range(5):
        for i in range(4):
            x0, x1 = _turn(x0, x1, _ODD[i] if group & 1 else _EVEN[i])
        x0, x1 = (x0 + k1) & LOW32, (x1 + k2 + np.uint64(group + 1)) & LOW32
        k0, k1, k2 = k1, k2, k0
    return x0, x1


@kernel
def array_word(k0, k1, width, v):
    """Word v of an array of `width` words: the halves of the array are the first and second words of one block."""
    half = width >> _ONE
    gap = width - half  # one more than half of an odd width, whose middle word stands alone
    middle = (v == half) & (gap > half)
    low = v if v < gap else v - gap
    w = threefry2x32(k0, k1, low, ZERO if middle else low + gap)
    return w[0] if v < gap else w[1]


@njit(error_model="numpy")
def _keys(seed, draws, out):
    k0, k1, done = seed >> SHIFT32, seed & LOW32, 0
    for i in range(draws.size):
        while done <= draws[i]:
            a, b = threefry2x32(k0, k1, ZERO, _TWO), threefry2x32(k0, k1, _ONE, _THREE)
            k0, k1, use = a[0], b[0], (a[1] << SHIFT32) | b[1]
            done += 1
        out[i] = use


def keys(seed: int, draws: Integers) -> NDArray[np.uint64]:
    """Keys, high word first, of MLX's global sequence after mx.random.seed(seed): each draw splits into (next, own)."""
    wanted = np.asarray(draws, np.int64)
    order = np.argsort(wanted, kind="stable")
    out, placed = np.empty(len(wanted), np.uint64), np.empty(len(wanted), np.uint64)
    _keys(np.uint64(seed & (2**64 - 1)), wanted[order], out)
    placed[order] = out
    return placed
