"""The Mersenne Twister MT19937 (Matsumoto, Nishimura 1998), from which CPU engines draw, at any place of its stream.

torch's CPU generator and std::mt19937 start it by `init_genrand` of the low 32 bits of a seed. Word n of a stream lies
in the state after n // 624 + 1 twists, and a twist is a few hundred vector operations: reaching draw 1,000 of a
128,256-wide vocabulary takes 60 ms, so nothing is kept between calls.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.samplers.noise import Integers

SIZE, _MIDDLE = 624, 397
_UPPER, _LOWER, _MATRIX = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0x9908B0DF)
_LOW32 = np.uint64(0xFFFFFFFF)


@njit(nogil=True, error_model="numpy")
def _start(state, seed):
    value = np.uint64(seed) & _LOW32
    for i in range(SIZE):
        state[i] = value
        value = (np.uint64(1812433253) * (value ^ (value >> np.uint64(30))) + np.uint64(i + 1)) & _LOW32


@njit(inline="always", error_model="numpy")
def _mixed(far, high, low):
    y = (high & _UPPER) | (low & _LOWER)
    return far ^ (y >> np.uint32(1)) ^ ((y & np.uint32(1)) * _MATRIX)


@njit(nogil=True, error_model="numpy")
def _twist(state):
    for i in range(SIZE - _MIDDLE):
        state[i] = _mixed(state[i + _MIDDLE], state[i], state[i + 1])
    for i in range(SIZE - _MIDDLE, SIZE - 1):
        state[i] = _mixed(state[i + _MIDDLE - SIZE], state[i], state[i + 1])
    state[SIZE - 1] = _mixed(state[_MIDDLE - 1], state[SIZE - 1], state[0])


@njit(inline="always", error_model="numpy")
def temper(y):
    """The output word of one state word."""
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    return y ^ (y >> np.uint32(18))


@njit(nogil=True, error_model="numpy")
def seek(state, cursor, seed, word):
    """Bring `state` to the twist that holds this word of the seed's stream; returns the word's index in it.

    `cursor` [2] is (seed, twists done) of `state`, and says −1 twists before its first use.
    """
    twists = word // SIZE + 1
    if cursor[0] != seed or cursor[1] < 0 or cursor[1] > twists:
        _start(state, seed)
        cursor[0], cursor[1] = seed, 0
    while cursor[1] < twists:
        _twist(state)
        cursor[1] += 1
    return word - (twists - 1) * SIZE


@njit(nogil=True, error_model="numpy")
def _words(seed, count):
    state, cursor, out = np.empty(SIZE, np.uint32), np.full(2, -1), np.empty(count, np.uint32)
    for n in range(count):
        out[n] = temper(state[seek(state, cursor, seed, n)])
    return out


def low32(seed: int) -> int:
    """What the generator is seeded with: seeds that agree modulo 2^32 give one stream."""
    return seed & 0xFFFFFFFF


def words(seed: int, count: int) -> NDArray[np.uint32]:
    """The first `count` words of a seed's stream."""
    found: NDArray[np.uint32] = _words(low32(seed), count)
    return found


def uniforms(seed: int, draws: Integers) -> NDArray[np.float64]:
    """std::uniform_real_distribution<double>(0, 1) at draw indices `draws`, as libstdc++ makes it of two words."""
    stream = words(seed, 2 * int(np.max(draws, initial=-1)) + 2)
    low, high = (stream[2 * np.asarray(draws) + i].astype(np.float64) for i in (0, 1))
    return np.minimum((low + high * 2.0**32) * 2.0**-64, np.nextafter(1.0, 0.0))
