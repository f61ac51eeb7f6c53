"""Murmur3-x86-32 over four 32-bit blocks, as vLLM ≥ 0.31 and SGLang ≥ 0.5.9 hash (seed, position, token)."""

from __future__ import annotations

import numpy as np

from verifier.samplers.arithmetic import LOW32, SHIFT32, ZERO, kernel

_C1, _C2, _STEP = np.uint64(0xCC9E2D51), np.uint64(0x1B873593), np.uint64(0xE6546B64)
_F1, _F2 = np.uint64(0x85EBCA6B), np.uint64(0xC2B2AE35)
_5, _13, _15, _16, _17, _19 = (np.uint64(n) for n in (5, 13, 15, 16, 17, 19))


@kernel
def murmur_key(seed, position, setting):
    """A contract's key: seed and position as three words."""
    return seed & LOW32, seed >> SHIFT32, position & LOW32, ZERO


@kernel
def _mix(h, k):
    k = (k * _C1) & LOW32
    k = ((k << _15) | (k >> _17)) & LOW32
    h = h ^ ((k * _C2) & LOW32)
    h = ((h << _13) | (h >> _19)) & LOW32
    return (h * _5 + _STEP) & LOW32


@kernel
def murmur3(seed_low, seed_high, position, v, domain):
    """32-bit hash; all arguments are 32-bit words in uint64. Only the low half of a position enters.

    `domain` is the initial state: zero, or another to get further bits at the same place.
    """
    h = _mix(_mix(_mix(_mix(domain, seed_low), seed_high), position), v) ^ _16
    h = ((h ^ (h >> _16)) * _F1) & LOW32
    h = ((h ^ (h >> _13)) * _F2) & LOW32
    return h ^ (h >> _16)
