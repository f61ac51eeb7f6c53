"""The arithmetic that all seeded samplers share, as scalar functions that numba vectorizes.

Everything is built from integer operations and IEEE +, −, ×, ÷ alone, so the same seed gives the same bits on
every machine; a platform's `log` does not promise that. 32-bit words travel in uint64 lanes: AVX2 has no other
widening multiply, and numba would promote them anyway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# numba's default raises on division by zero, and that branch would keep loops from being vectorized.
kernel: Any = njit(inline="always", error_model="numpy")

LOW32 = np.uint64(0xFFFFFFFF)
ZERO = np.uint64(0)
SHIFT32 = np.uint64(32)

_PHILOX_M0, _PHILOX_M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_PHILOX_W0, _PHILOX_W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@kernel
def philox4x32(k0, k1, c0, c1, c2, c3):
    """Philox-4x32-10 (Salmon et al., SC 2011): four words of key (k0, k1) and counter (c0, c1, c2, c3)."""
    for _ in range(10):
        p0 = _PHILOX_M0 * c0
        p1 = _PHILOX_M1 * c2
        c0, c1, c2, c3 = (p1 >> SHIFT32) ^ c1 ^ k0, p1 & LOW32, (p0 >> SHIFT32) ^ c3 ^ k1, p0 & LOW32
        k0 = (k0 + _PHILOX_W0) & LOW32
        k1 = (k1 + _PHILOX_W1) & LOW32
    return c0, c1, c2, c3


_TWO52_BITS = np.uint64(0x4330000000000000)


@kernel
def exact_float(i):
    """float64 of an integer below 2^52, by the exponent trick (AVX2 cannot convert 64-bit integers)."""
    return np.uint64(i | _TWO52_BITS).view(np.float64) - 4503599627370496.0


@kernel
def exact_float53(i):
    """float64 of an integer below 2^53."""
    return exact_float(i >> SHIFT32) * 4294967296.0 + exact_float(i & LOW32)


_SQRT_HALF_BITS = np.uint64(0x3FE6A09E667F3BCD)
_MANTISSA = np.uint64(0x000FFFFFFFFFFFFF)
_EXPONENT_SHIFT = np.uint64(52)
_EXPONENT_BIAS = np.uint64(0x4000000000000000)


@kernel
def log(x):
    """Natural logarithm of a normal float64 > 0, within one ulp (fdlibm's e_log.c without its branches)."""
    bits = np.float64(x).view(np.uint64) - _SQRT_HALF_BITS
    k = exact_float((bits + _EXPONENT_BIAS) >> _EXPONENT_SHIFT) - 1024.0
    f = np.uint64((bits & _MANTISSA) + _SQRT_HALF_BITS).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    tail = 1.818357216161805012e-01 + z * (1.531383769920937332e-01 + z * 1.479819860511658591e-01)
    tail = 2.857142874366239149e-01 + z * (2.222219843214978396e-01 + z * tail)
    r = z * (6.666666666666735130e-01 + z * (3.999999999940941908e-01 + z * tail))
    half = 0.5 * f * f
    low = s * (half + r) + k * 1.90821492927058770002e-10
    return k * 6.93147180369123816490e-01 - ((half - low) - f)


@kernel
def log1m(u):
    """log(1 − u) of float64 0 ≤ u < 1, accurate for small u too."""
    y = 1.0 - u
    return log(y) + (-u - (y - 1.0)) / y


@kernel
def gumbel53(word):
    """−ln(−ln u) of u = (word + ½)·2^−53; the largest words round u to 1, where noise is infinite."""
    u = (exact_float53(word) + 0.5) * 2.0**-53
    inner = -log(u)
    return -log(inner) if inner > 0.0 else np.inf
