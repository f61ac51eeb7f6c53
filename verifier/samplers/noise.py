"""Gumbel noise as the engines make it, compiled from three scalar functions a contract gives.

A contract states its noise as
    key(seed, position, setting) -> four uint64     once per row
    word(k0, k1, k2, k3, v)      -> uint64          the random bits of vocabulary entry v
    gumbel(word)                 -> float           never falls as the word rises
and gets two kernels: `rows` writes noise out, `race` finds the winner of a row of logits without writing any.
Because `gumbel` is monotone, `race` compares integer words and takes logarithms only of the few that could matter.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import get_num_threads, njit
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

BLOCK = 512  # vocabulary entries per block of `race`: its words (4 KiB) stay in the first-level cache


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
        _over_rows(
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
                logits[a:b], floors[a:b], heats[a:b], claims[a:b], keys[a:b], places[a:b], np.uint64(setting),
                result.winners[a:b], result.leads[a:b], result.ahead[a:b],
            )  # fmt: skip

        _over_rows(count, run)
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
        return _compile_race(self._key, self._word, self._gumbel, self._top_word)


def as_words(values: Integers) -> NDArray[np.uint64]:
    """Signed or unsigned 64-bit values as their two's complement words."""
    array = np.asarray(values)
    return array.astype(np.uint64) if array.dtype == np.uint64 else array.astype(np.int64).view(np.uint64)


def _over_rows(count: int, run: Callable[[int, int], None]) -> None:
    """Call run(a, b) over contiguous row ranges on all cores (the kernels release the GIL)."""
    parts = min(get_num_threads(), count)
    if parts <= 1:
        run(0, count)
        return
    edges = np.linspace(0, count, parts + 1).astype(int)
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(run, edges[:-1], edges[1:]))


def _compile_race(key: Any, word: Any, gumbel: Any, top_word: np.uint64) -> Any:
    # Called, not inlined: outside the one vectorized loop, speed matters less than the time to compile.
    @njit(nogil=True, error_model="numpy")
    def noise_of(w):
        return gumbel(w)

    @njit(nogil=True, error_model="numpy")
    def fill_words(k0, k1, k2, k3, base, words):
        for i in range(words.size):
            words[i] = word(k0, k1, k2, k3, np.uint64(base + i))

    @njit(nogil=True, error_model="numpy")
    def least_word(need):
        """The smallest word whose noise reaches `need`; one more than the largest if none does."""
        low, high = np.uint64(0), top_word
        if noise_of(top_word) < need:
            return top_word, False
        while low < high:
            middle = low + (high - low) // np.uint64(2)
            if noise_of(middle) >= need:
                high = middle
            else:
                low = middle + np.uint64(1)
        return low, True

    @njit(nogil=True, error_model="numpy")
    def race_row(z, cut, temperature, claimed, seed, position, setting, words):
        k0, k1, k2, k3 = key(seed, position, setting)
        inside = z[claimed] >= cut
        start = claimed if inside else np.argmax(z)
        fill_words(k0, k1, k2, k3, start, words[:1])
        floor = z[start] / temperature + noise_of(words[0])
        best, winner, ahead = floor, np.int64(start), np.int64(0)
        for base in range(0, z.size, BLOCK):
            block = z[base : base + BLOCK]
            peak = block.max()
            if peak < cut:
                continue
            # 1e-6 absorbs the rounding of z/T and of the noise's own logarithms.
            threshold, reachable = least_word(floor - peak / temperature - 1e-6)
            if not reachable:
                continue
            fill_words(k0, k1, k2, k3, base, words[: block.size])
            for i in range(block.size):
                if words[i] >= threshold and block[i] >= cut:
                    score = block[i] / temperature + noise_of(words[i])
                    if score > floor:
                        ahead += 1
                    if score > best or (score == best and base + i < winner):
                        best, winner = score, np.int64(base + i)
        return winner, (best - floor if inside else np.inf), ahead

    @njit(nogil=True, error_model="numpy")
    def race(z, cuts, temperatures, claimed, seeds, positions, setting, winners, leads, ahead):
        words = np.empty(BLOCK, np.uint64)
        for r in range(z.shape[0]):
            winners[r], leads[r], ahead[r] = race_row(
                z[r], cuts[r], temperatures[r], claimed[r], seeds[r], positions[r], setting, words
            )

    return race
