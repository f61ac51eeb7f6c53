"""Gumbel noise as the engines make it, compiled from three scalar functions a contract gives.

A contract states its noise as
    key(seed, position, setting) -> four uint64     once per row
    word(k0, k1, k2, k3, v)      -> uint64          the random bits of vocabulary entry v
    gumbel(word)                 -> float           never falls as the word rises
and gets two kernels: `rows` writes noise out, `race` finds the winner of a row of logits without writing any.
Because `gumbel` is monotone, `race` compares integer words and takes logarithms only of the few that could matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.rows import BLOCK, block_peak, over_rows

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

# `race` looks up which word reaches a needed amount of noise, in steps of NEED_STEP from LEAST_NEED on.
LEAST_NEED, NEED_STEP, NEEDS = -8.0, 0.125, 512


@dataclass(frozen=True)
class RaceResult:
    """Of each row: who wins, by how much in Gumbel units (0 if the claimed id wins), how many beat the claimed id."""

    winners: NDArray[np.int64]
    leads: NDArray[np.float64]
    ahead: NDArray[np.int64]


class GumbelNoise:
    """Compiled noise of one family; instances are made once, at import, and compile when first used."""

    def __init__(self, key: Any, word: Any, gumbel: Any, *, top_word: int, dtype: Any = np.float32) -> None:
        self._key, self._word, self._gumbel = key, word, gumbel
        self._top_word, self.dtype = np.uint64(top_word), dtype

    def rows(self, seeds: Integers, positions: Integers, columns: Integers, setting: int = 0) -> Floats:
        """Noise of vocabulary entries `columns` [C] at each (seed, position) [R], as an array [R, C]."""
        out = np.empty((len(seeds), len(columns)), self.dtype)
        chosen = np.asarray(columns).astype(np.uint64)
        keys, places = as_words(seeds), as_words(positions)
        over_rows(
            len(seeds), lambda a, b: self._fill(keys[a:b], places[a:b], chosen, np.uint64(setting), out[a:b])
        )
        return out

    def race(
        self, logits: NDArray[np.float32], cuts: Floats, temperatures: Floats, claimed: Integers,
        seeds: Integers, positions: Integers, setting: int = 0,
    ) -> RaceResult:
        """Winner of logits/T + noise among entries with logit ≥ cut, for rows [R, V].

        Where a claimed id lies outside the support, its lead is infinite and everybody inside is ahead of it.
        """
        count = len(logits)
        result = RaceResult(np.empty(count, np.int64), np.empty(count), np.empty(count, np.int64))
        keys, places = as_words(seeds), as_words(positions)
        claims, floors = np.asarray(claimed, np.int64), np.asarray(cuts, np.float32)
        heats = np.asarray(temperatures, np.float64)

        def run(a: int, b: int) -> None:
            self._race(
                self._thresholds, logits[a:b], floors[a:b], heats[a:b], claims[a:b], keys[a:b], places[a:b],
                np.uint64(setting), result.winners[a:b], result.leads[a:b], result.ahead[a:b],
            )  # fmt: skip

        over_rows(count, run)
        return result

    @cached_property
    def _fill(self) -> Any:
        key, word, gumbel = self._key, self._word, self._gumbel

        @njit(nogil=True, error_model="numpy")
        def fill(seeds, positions, columns, setting, out):
            for r in range(out.shape[0]):
                k0, k1, k2, k3 = key(seeds[r], positions[r], setting)
                row = out[r]
                for c in range(columns.size):
                    row[c] = gumbel(word(k0, k1, k2, k3, columns[c]))

        return fill

    @cached_property
    def _race(self) -> Any:
        return _compile_race(self._key, self._word, self._gumbel)

    @cached_property
    def _thresholds(self) -> NDArray[np.uint64]:
        """The smallest word whose noise reaches each step of the table, as far as any word does."""
        gumbel, top = self._gumbel, int(self._top_word)

        @njit(error_model="numpy")
        def noise_of(w):
            return gumbel(w)

        needs = LEAST_NEED + NEED_STEP * np.arange(NEEDS)
        reachable = needs[needs <= noise_of(self._top_word)]
        # Not the bisect module: it cannot search the 2^64 words of the widest noise.
        def least_word(need: float) -> int:
            low, high = 0, top
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if noise_of(np.uint64(middle)) >= need else (middle + 1, high)
            return low

        return np.array([least_word(need) for need in reachable], np.uint64)


def as_words(values: Integers) -> NDArray[np.uint64]:
    """Signed or unsigned 64-bit values as their two's complement words."""
    array = np.asarray(values)
    return array.astype(np.uint64) if array.dtype == np.uint64 else array.astype(np.int64).view(np.uint64)


def _compile_race(key: Any, word: Any, gumbel: Any) -> Any:
    # Called, not inlined: outside the one vectorized loop, speed matters less than the time to compile.
    @njit(nogil=True, error_model="numpy")
    def noise_of(w):
        return gumbel(w)

    @njit(nogil=True, error_model="numpy")
    def fill_words(k0, k1, k2, k3, base, words):
        for i in range(words.size):
            words[i] = word(k0, k1, k2, k3, np.uint64(base + i))

    @njit(nogil=True, error_model="numpy")
    def reaches(words, threshold):
        """Whether any word does; without an early exit, so that it vectorizes."""
        count = 0
        for i in range(words.size):
            count += words[i] >= threshold
        return count > 0

    @njit(nogil=True, error_model="numpy")
    def needed(thresholds, lack):
        """The smallest word whose noise may make up for what a score lacks, and whether any word's may."""
        # Rounding down to the table's step also absorbs the rounding of z/T.
        step = int((lack - 1e-6 - LEAST_NEED) / NEED_STEP)
        if step >= thresholds.size:
            return np.uint64(0), False
        return (thresholds[step] if step >= 0 else np.uint64(0)), True

    @njit(nogil=True, error_model="numpy")
    def race_row(thresholds, z, cut, temperature, claimed, seed, position, setting, words):
        k0, k1, k2, k3 = key(seed, position, setting)
        inside = z[claimed] >= cut
        start = claimed if inside else np.argmax(z)
        fill_words(k0, k1, k2, k3, start, words[:1])
        floor = z[start] / temperature + noise_of(words[0])
        best, winner, ahead = floor, np.int64(start), np.int64(0)
        for base in range(0, z.size, BLOCK):
            block = z[base : base + BLOCK]
            peak = block_peak(block)
            threshold, possible = needed(thresholds, floor - peak / temperature)
            if peak < cut or not possible:
                continue
            fill_words(k0, k1, k2, k3, base, words[: block.size])
            if not reaches(words[: block.size], threshold):
                continue
            for i in range(block.size):
                if words[i] < threshold or block[i] < cut:
                    continue
                own, possible = needed(thresholds, floor - block[i] / temperature)
                if possible and words[i] >= own:
                    score = block[i] / temperature + noise_of(words[i])
                    if score > floor:
                        ahead += 1
                    if score > best or (score == best and base + i < winner):
                        best, winner = score, np.int64(base + i)
        return winner, (best - floor if inside else np.inf), ahead

    @njit(nogil=True, error_model="numpy")
    def race(thresholds, z, cuts, temperatures, claimed, seeds, positions, setting, winners, leads, ahead):
        words = np.empty(BLOCK, np.uint64)
        for r in range(z.shape[0]):
            winners[r], leads[r], ahead[r] = race_row(
                thresholds, z[r], cuts[r], temperatures[r], claimed[r], seeds[r], positions[r], setting, words
            )

    return race
