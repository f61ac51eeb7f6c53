"""SGLang with `--enable-deterministic-inference`: stateless Gumbel noise of (seed, position, index).

Without that switch it ignores seeds, and nothing can be replayed.

Source: srt/layers/sampler.py and srt/layers/utils/hash.py of the wheels 0.5.3 … 0.5.23. token = argmax(ln p + g), p the
filtered softmax; position is the index of the last input token, prompt length + j − 1.

    versions       noise                                                              score
    0.5.3          u = h24/2^24;                 g = −ln(−ln(u + 1e-9) + 1e-9)        ln(p + 1e-9)  float32
    0.5.4–0.5.8    u = h24/2^24 in [1e-10, 1);   g = −ln(−ln u)                       ln(p + 1e-10) float32
    0.5.9–0.5.17   u = murmur3/(2^32 − 1);       g = −ln(−ln u)                       ln p          float64
    0.5.18–        the same with ln u ≤ −2^−32, so g ≤ 22.18
with h24 the low 24 bits of (((seed·19349663) xor (position·73856093))·8589934591) xor (index·479001599).

The index is the token's id only while no request of the batch uses top-k, top-p or min-p or is greedy; else it is
the token's rank in the descending order of probability (0.5.3: always). A request's own filters always mean rank; for
others `:index=auto`, the default, tests both per token and lets the nearer one count, which gives a cheat two chances
instead of one. Equal probabilities rank by id.

Filters act jointly on the sorted row: rank < k and exclusive cumulative probability (of the unfiltered row) ≤ p; then
p ≥ min_p · p_max. All choices of n > 1 share the seed. A request without a seed gets 42: the caller's to fill in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.errors import UnknownContract
from verifier.filters import EDGE
from verifier.samplers import eras
from verifier.samplers.arithmetic import LOW32, ZERO, exact_float, kernel, log
from verifier.samplers.contract import Draws, GumbelContract
from verifier.samplers.murmur import murmur3, murmur_key
from verifier.samplers.names import ContractName, render
from verifier.samplers.noise import GumbelNoise, Integers
from verifier.samplers.ordering import descending, is_filtered, running_mass
from verifier.sampling_params import SamplingParams

_SEED, _POSITION, _STEP, _INDEX = (np.uint64(n) for n in (19349663, 73856093, 8589934591, 479001599))
_LOW24 = np.uint64(2**24 - 1)
_EPSILON = np.float32(1e-9)
_LOWEST_LOG = -1.7976931348623157e308
_ROWS = 64  # ranked at once: as many sorted copies of logits exist at a time


@kernel
def _product_key(seed, position, setting):
    return ((seed * _SEED) ^ (position * _POSITION)) * _STEP, ZERO, ZERO, ZERO


@kernel
def _product_word(k0, k1, k2, k3, v):
    return (k0 ^ (v * _INDEX)) & _LOW24


@kernel
def _gumbel_053(word):
    u = np.float32(np.float32(exact_float(word)) * np.float32(2.0**-24))
    inner = np.float32(-log(np.float64(np.float32(u + _EPSILON))))
    return np.float32(-log(np.float64(np.float32(inner + _EPSILON))))


@kernel
def _gumbel_054(word):
    u = np.float32(np.float32(exact_float(word)) * np.float32(2.0**-24))
    u = u if u > np.float32(1e-10) else np.float32(1e-10)
    inner = np.float32(-log(np.float64(u)))
    return np.float32(-log(np.float64(inner)))


@kernel
def _murmur_word(k0, k1, k2, k3, v):
    return murmur3(k0, k1, k2, v & LOW32, ZERO)


@kernel
def _gumbel_059(word):
    log_u = log(exact_float(word) / 4294967295.0) if word > ZERO else _LOWEST_LOG
    return -log(-log_u) if log_u < 0.0 else np.inf


@kernel
def _gumbel_0518(word):
    log_u = log(exact_float(word) / 4294967295.0) if word > ZERO else _LOWEST_LOG
    return -log(-log_u if log_u < -(2.0**-32) else 2.0**-32)


# Of each era: its noise, and what it adds to a probability before the logarithm.
ERAS = {
    "0.5.3": (GumbelNoise(_product_key, _product_word, _gumbel_053, top_word=2**24 - 1), 1e-9),
    "0.5.4": (GumbelNoise(_product_key, _product_word, _gumbel_054, top_word=2**24 - 1), 1e-10),
    "0.5.9": (GumbelNoise(murmur_key, _murmur_word, _gumbel_059, top_word=2**32 - 1, dtype=np.float64), 0.0),
    "0.5.18": (GumbelNoise(murmur_key, _murmur_word, _gumbel_0518, top_word=2**32 - 1, dtype=np.float64), 0.0),
}


def prefix(z: NDArray[np.float32], log_mass: float, params: SamplingParams) -> int:
    """How many of the row's logits, sorted from the largest down to the k-th, the filters leave."""
    count, heat = len(z), params.temperature
    if params.top_p < 1.0:
        before = np.concatenate([[0.0], running_mass(z, heat)[:-1]])
        total = np.exp(log_mass - z[0] / heat)
        count = int(np.searchsorted(before, params.top_p * total, side="right"))
    if params.min_p > 0.0:
        count = min(count, int(np.count_nonzero(z >= z[0] + heat * np.log(params.min_p))))
    return max(count, 1)


@dataclass(frozen=True)
class SGLang(GumbelContract):
    """SGLang's contract; `index` is id, rank or auto, `epsilon` what the era adds to probabilities."""

    index: str = "auto"
    epsilon: float = 0.0

    def draw(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], claimed: Integers,
        *, seed: int, positions: Integers, params: SamplingParams,
    ) -> Draws:  # fmt: skip
        """Draw by id, by rank, or per token by whichever comes nearer to the claim."""
        if self.index == "rank" or is_filtered(params):
            return self._by_rank(logits, log_mass, claimed, seed, positions, params)
        scores = self._scores(logits, log_mass, params)
        # Scores are final: they race at temperature 1, and margins become logit units again.
        found = super().draw(
            scores, np.zeros_like(log_mass), claimed, seed=seed, positions=positions,
            params=replace(params, temperature=1.0),
        )  # fmt: skip
        by_id = replace(found, margins=params.temperature * found.margins)
        if self.index == "id":
            return by_id
        return nearer(by_id, self._by_rank(logits, log_mass, claimed, seed, positions, params))

    def _scores(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], params: SamplingParams
    ) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = logits / np.float32(params.temperature)
        scores -= log_mass[:, None].astype(np.float32)
        if self.epsilon:
            np.exp(scores, out=scores)
            scores += np.float32(self.epsilon)
            np.log(scores, out=scores)
        return scores

    def _by_rank(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], claimed: Integers,
        seed: int, positions: Integers, params: SamplingParams,
    ) -> Draws:  # fmt: skip
        parts = [
            self._ranked(logits[a : a + _ROWS], log_mass[a : a + _ROWS], np.asarray(claimed)[a : a + _ROWS],
                         seed, np.asarray(positions)[a : a + _ROWS], params)
            for a in range(0, len(logits), _ROWS)
        ]  # fmt: skip
        return _combine(lambda name: np.concatenate([getattr(part, name) for part in parts]))

    def _ranked(
        self, logits: NDArray[np.float32], log_mass: NDArray[np.float64], claimed: Integers,
        seed: int, positions: Integers, params: SamplingParams,
    ) -> Draws:  # fmt: skip
        orders = [descending(row, params.top_k) for row in logits]
        count = len(orders)
        rows = np.arange(count)
        ranked = self._scores(np.stack([logits[r][orders[r]] for r in rows]), log_mass, params)
        hits = np.stack(orders) == np.asarray(claimed)[:, None]
        ranks, edge = hits.argmax(1), np.zeros(count, np.bool_)
        for r in rows if is_filtered(params) else ():
            z = logits[r][orders[r]]
            kept = prefix(z, float(log_mass[r]), params)
            edge[r] = hits[r].any() and ranks[r] >= kept and z[ranks[r]] >= z[kept - 1] - np.float32(EDGE)
            ranked[r, max(kept, ranks[r] + 1 if edge[r] else 0) :] = -np.inf
        inside = hits.any(1) & (ranked[rows, ranks] > -np.inf)
        lowest = np.full(count, np.finfo(np.float32).min)
        race = self.race(ranked, lowest, np.ones(count), ranks, np.full(count, seed, np.int64), positions)
        kept = np.logaddexp.reduce(ranked.astype(np.float64), axis=1)
        return Draws(
            winners=np.stack(orders)[rows, race.winners].astype(np.int64),
            margins=np.where(inside, params.temperature * race.leads, np.inf),
            prob=np.where(inside, np.exp(ranked[rows, ranks] - kept), 0.0),
            ahead=np.where(inside, race.ahead, np.inf),
            edge=edge,
        )


def nearer(one: Draws, other: Draws) -> Draws:
    """Per token the draw with the smaller margin; `one` where they are equal."""
    pick = one.margins <= other.margins
    return _combine(lambda name: np.where(pick, getattr(one, name), getattr(other, name)))


def _combine(column: Callable[[str], NDArray[Any]]) -> Draws:
    return Draws(column("winners"), column("margins"), column("prob"), column("ahead"), edge=column("edge"))


def contract(name: ContractName) -> SGLang:
    """`sglang[@VERSION][:index=id|rank|auto]`; without a version, the newest era."""
    index = name.take_options("index").get("index")
    era = eras.era("sglang", name.version)
    if era is None:
        raise UnknownContract("SGLang before 0.5.3 ignores seeds, and its answers cannot be replayed")
    always_by_rank = era == "0.5.3"
    if index not in {None, "id", "rank", "auto"} or (always_by_rank and index not in {None, "rank"}):
        raise UnknownContract(f"index={index} is not known: use id, rank or auto (0.5.3 draws by rank only)")
    noise, epsilon = ERAS[era]
    default = "rank" if always_by_rank else "auto"
    return SGLang(id=render(name), noise=noise, choice_step=0, index=index or default, epsilon=epsilon)
