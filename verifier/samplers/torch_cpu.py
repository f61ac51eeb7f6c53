"""torch's CPU `exponential_` as a race: what vLLM's CPU backend and transformers on a CPU draw from.

Source: ATen/native/cpu/DistributionTemplates.h, ATen/core/DistributionsHelper.h (torch 2.7 … 2.14; before 2.7, MKL made
other numbers). Value n of a fresh generator takes words 2n (high) and 2n + 1 (low) of MT19937 seeded with the low 32
bits of the seed: v = their low 53 bits, q = float32(−log1p(−v·2^−53)). token = argmax p/q; in Gumbel units g = −ln q.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.rows import BLOCK, over_rows
from verifier.samplers import mt19937
from verifier.samplers.arithmetic import SHIFT32, exact_float53, kernel, log, log1m
from verifier.samplers.contract import RaceContract
from verifier.samplers.mt19937 import SIZE, seek, temper
from verifier.samplers.noise import Floats, Integers, RaceResult

_LOW21 = np.uint64(2**21 - 1)


@kernel
def _gumbel(v):
    q = np.float32(-log1m(exact_float53(v) * 2.0**-53))
    return -log(np.float64(q)) if q > np.float32(0.0) else np.inf


@njit(nogil=True, error_model="numpy")
def _noise(v):
    return _gumbel(v)


@njit(nogil=True, error_model="numpy")
def _fill(state, cursor, seed, first, out):
    """53-bit values first … first + out.size − 1 of the seed's stream. Pairs of words never straddle a twist."""
    done = 0
    while done < out.size:
        at = seek(state, cursor, seed, 2 * (first + done))
        here = out[done : done + (SIZE - at) // 2]
        for i in range(here.size):
            high, low = np.uint64(temper(state[at + 2 * i])), np.uint64(temper(state[at + 2 * i + 1]))
            here[i] = ((high & _LOW21) << SHIFT32) | low
        done += here.size


@njit(nogil=True, error_model="numpy")
def _rows(seeds, firsts, columns, width, out):
    state, cursor, values = np.empty(SIZE, np.uint32), np.full(2, -1), np.empty(width, np.uint64)
    for r in range(out.shape[0]):
        _fill(state, cursor, seeds[r], firsts[r], values)
        row = out[r]
        for c in range(columns.size):
            row[c] = _gumbel(values[columns[c]])


@njit(nogil=True, error_model="numpy")
def _largest(need):
    """No value above this one has noise of at least `need`; 1e-6 absorbs the rounding of q and of z/T."""
    q = np.exp(1e-6 - need) if need > -700.0 else np.inf
    return np.uint64(min(-np.expm1(-q) * 2.0**53 + 1.0, 2.0**53))


@njit(nogil=True, error_model="numpy")
def _any_within(values, limit):
    count = 0
    for i in range(values.size):
        count += values[i] <= limit
    return count > 0


@njit(nogil=True, error_model="numpy")
def _race_row(z, cut, temperature, claimed, values):
    inside = z[claimed] >= cut
    start = claimed if inside else np.argmax(z)
    floor = z[start] / temperature + _noise(values[start])
    best, winner, ahead = floor, np.int64(start), np.int64(0)
    for base in range(0, z.size, BLOCK):
        block, own = z[base : base + BLOCK], values[base : base + BLOCK]
        peak = block.max()
        if peak < cut:
            continue
        limit = _largest(floor - peak / temperature)
        if not _any_within(own, limit):
            continue
        for i in range(block.size):
            if own[i] <= limit and block[i] >= cut:
                score = block[i] / temperature + _noise(own[i])
                ahead += score > floor
                if score > best or (score == best and base + i < winner):
                    best, winner = score, np.int64(base + i)
    return winner, (best - floor if inside else np.inf), ahead


@njit(nogil=True, error_model="numpy")
def _race(z, cuts, temperatures, claimed, seeds, firsts, winners, leads, ahead):
    state, cursor, values = np.empty(SIZE, np.uint32), np.full(2, -1), np.empty(z.shape[1], np.uint64)
    for r in range(z.shape[0]):
        _fill(state, cursor, seeds[r], firsts[r], values)
        winners[r], leads[r], ahead[r] = _race_row(z[r], cuts[r], temperatures[r], claimed[r], values)


@dataclass(frozen=True)
class CpuRace(RaceContract):
    """A race on torch's CPU generator; position k is the k-th fill of a tensor [batch, V], of which we are one row."""

    id: str
    lowest_temperature: float = 0.0
    row: int = 0
    batch: int = 1

    def choice_seed(self, seed: int, choice: int) -> int:
        return seed + choice

    def positions(self, prompt_length: int, count: int) -> NDArray[np.int64]:
        return np.arange(count, dtype=np.int64)

    def gumbel(self, seeds: Integers, positions: Integers, columns: Integers, width: int) -> Floats:
        """Noise [R, C] of token ids `columns` [C] at each (seed, position) [R]; `width` is the logits' width V."""
        chosen, out = np.asarray(columns, np.int64), np.empty((len(seeds), len(columns)))
        keys, firsts = self._places(seeds, positions, width)
        over_rows(len(keys), lambda a, b: _rows(keys[a:b], firsts[a:b], chosen, width, out[a:b]))
        return out

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers,
    ) -> RaceResult:  # fmt: skip
        count = len(logits)
        found = RaceResult(np.empty(count, np.int64), np.empty(count), np.empty(count, np.int64))
        keys, firsts = self._places(seeds, positions, logits.shape[1])
        heats, claims = np.asarray(temperatures, np.float64), np.asarray(claimed, np.int64)
        floors = np.asarray(cuts, np.float32)
        over_rows(
            count,
            lambda a, b: _race(
                logits[a:b], floors[a:b], heats[a:b], claims[a:b], keys[a:b], firsts[a:b],
                found.winners[a:b], found.leads[a:b], found.ahead[a:b],
            ),
        )  # fmt: skip
        return found

    def _places(self, seeds: Integers, positions: Integers, width: int) -> tuple[Integers, Integers]:
        keys = np.array([mt19937.low32(int(seed)) for seed in seeds], np.int64)
        return keys, (np.asarray(positions, np.int64) * self.batch + self.row) * width
