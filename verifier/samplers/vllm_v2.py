"""vLLM's model runner V2: stateless Gumbel noise of (seed, position, token id), the same on every machine.

Source: vllm/v1/worker/gpu/sample/gumbel.py of the wheels 0.12.0 … 0.33.0. token = argmax(z + g), z the processed and
tempered float32 logits, g as below; position is the index of the last *input* token, prompt length + j − 1.

    era  versions    noise
    A    0.12–0.16   r = R(w0);                            g = −ln(−ln(r + 1e-20) + 1e-20)        in float64
    B    0.17–0.18   u = max(R(w0), 1e-7);                 g = −ln(−ln u)
    C    0.19–0.21   u = max((w1·2^32 + w0)·2^−64, tiny);  g = −ln(−ln u)                         in float64
    D    0.22–0.23   u = max(R(w0), 2^−126);               g = −ln(−ln u)
    E    0.24–0.30   u = max(R(w0), 4.6566127342e-10);     g = −ln(−log1p(−u))
    F    0.31–       u = (murmur3(seed, pos, v) + ½)·2^−32; g = −ln(L(u)), L(u) ≈ −log1p(−u)

A–E take w from Philox keyed by G, the first word of Philox keyed by the seed at counter `pos` (Triton's tl.randint
and tl.rand); R folds a word to 31 bits and scales it to [0, 1).

`use_fp64_gumbel` (0.22 and later; here `:fp64=on`) means C's formula in D and E, and in F
    u = (((murmur3 from 0x9E3779B9 · 2^32 + murmur3) >> 11) + ½)·2^−53,  g = −ln(−ln u)  in float64.

Speculation (speculation.py): `:ngram=SHORTEST-LONGEST,drafts=COUNT` names a drafter that can be replayed from the text,
`:drafter=any` one that cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from verifier.errors import UnknownContract
from verifier.samplers import eras
from verifier.samplers.arithmetic import (
    LOW32,
    SHIFT32,
    ZERO,
    exact_float,
    gumbel53,
    kernel,
    log,
    log1m,
    philox4x32,
)
from verifier.samplers.contract import GumbelContract
from verifier.samplers.drafters import NgramDrafter, drafter_of
from verifier.samplers.murmur import murmur3, murmur_key
from verifier.samplers.names import ContractName, render
from verifier.samplers.noise import GumbelNoise, Integers, as_words

_HALF = np.uint64(0x80000000)
_TOP31 = np.uint64(0x7FFFFFFF)
_DOMAIN, _11 = np.uint64(0x9E3779B9), np.uint64(11)
_STEP = np.float32(4.6566127342e-10)  # Triton's uint_to_uniform_float scale, a little under 2^−31
_TINY32 = np.float32(2.0**-126)
_TINY64 = 2.2250738585072014e-308
_FLOOR_B = np.float32(1e-7)


@kernel
def _philox_key(seed, position, setting):
    g = philox4x32(seed & LOW32, seed >> SHIFT32, position & LOW32, position >> SHIFT32, ZERO, ZERO)[0]
    return g, ZERO, ZERO, ZERO


@kernel
def _folded_word(k0, k1, k2, k3, v):
    w = philox4x32(k0, k1, v & LOW32, ZERO, ZERO, ZERO)[0]
    return LOW32 - w if w >= _HALF else w


@kernel
def _flipped_word(k0, k1, k2, k3, v):
    """Eras E and F flip the tail, so that noise falls as the uniform rises; a contract's word must rise with it."""
    return _TOP31 - _folded_word(k0, k1, k2, k3, v)


@kernel
def _wide_word(k0, k1, k2, k3, v):
    w = philox4x32(k0, k1, v & LOW32, ZERO, ZERO, ZERO)
    return (w[1] << SHIFT32) | w[0]


@kernel
def _uniform(word):
    return np.float32(np.float32(exact_float(word)) * _STEP)


@kernel
def _double_log(u):
    inner = np.float32(-log(np.float64(u)))
    return np.float32(-log(np.float64(inner)))


@kernel
def _gumbel_a(word):
    return np.float32(-log(-log(np.float64(_uniform(word)) + 1e-20) + 1e-20))


@kernel
def _gumbel_b(word):
    u = _uniform(word)
    return _double_log(u if u > _FLOOR_B else _FLOOR_B)


@kernel
def _gumbel_c(word):
    u = (exact_float(word >> SHIFT32) * 4294967296.0 + exact_float(word & LOW32)) * 5.421010862427522e-20
    u = u if u > _TINY64 else _TINY64
    # A word near 2^64 rounds u to 1; the engine's −ln(−0) is +inf there, and so is ours.
    inner = -log(u)
    return -log(inner) if inner > 0.0 else np.inf


@kernel
def _gumbel_d(word):
    u = _uniform(word)
    return _double_log(u if u > _TINY32 else _TINY32)


@kernel
def _gumbel_e(word):
    u = _uniform(_TOP31 - word)
    u = u if u > _STEP else _STEP
    inner = np.float32(-log1m(np.float64(u)))
    return np.float32(-log(np.float64(inner)))


@kernel
def _murmur_word(k0, k1, k2, k3, v):
    return LOW32 - murmur3(k0, k1, k2, v & LOW32, ZERO)


@kernel
def _murmur_wide_word(k0, k1, k2, k3, v):
    high = murmur3(k0, k1, k2, v & LOW32, _DOMAIN)
    return ((high << SHIFT32) | murmur3(k0, k1, k2, v & LOW32, ZERO)) >> _11


@kernel
def _neg_log1m_f(u):
    """Era F's own −log1p(−u) in float32: a Horner polynomial below ¼, else −ln(max(1 − u, 2^−24))."""
    one = np.float32(1.0)
    p = np.float32(1.0 / 8.0)
    p = p * u + np.float32(1.0 / 7.0)
    p = p * u + np.float32(1.0 / 6.0)
    p = p * u + np.float32(1.0 / 5.0)
    p = p * u + np.float32(1.0 / 4.0)
    p = p * u + np.float32(1.0 / 3.0)
    p = p * u + np.float32(1.0 / 2.0)
    p = p * u + one
    rest = np.float32(one - u)
    rest = rest if rest > np.float32(2.0**-24) else np.float32(2.0**-24)
    return np.float32(u * p) if u < np.float32(0.25) else np.float32(-log(np.float64(rest)))


@kernel
def _gumbel_f(word):
    u = np.float32((exact_float(LOW32 - word) + 0.5) * 2.3283064365386963e-10)
    return np.float32(-log(np.float64(_neg_log1m_f(u))))


@njit(error_model="numpy")
def _acceptances(seed, positions):
    out = np.empty(positions.size)
    for i in range(positions.size):
        g = _philox_key(seed, positions[i], ZERO)[0]
        out[i] = _uniform(LOW32 - g if g >= _HALF else g)
    return out


def acceptances(seed: int, positions: Integers) -> NDArray[np.float64]:
    """The uniforms that a speculated token's probability must exceed at these positions, the same in every era."""
    found: NDArray[np.float64] = _acceptances(as_words(np.array([seed]))[0], as_words(positions))
    return found


ERAS = {
    "A": GumbelNoise(_philox_key, _folded_word, _gumbel_a, top_word=2**31 - 1),
    "B": GumbelNoise(_philox_key, _folded_word, _gumbel_b, top_word=2**31 - 1),
    "C": GumbelNoise(_philox_key, _wide_word, _gumbel_c, top_word=2**64 - 1, dtype=np.float64),
    "D": GumbelNoise(_philox_key, _folded_word, _gumbel_d, top_word=2**31 - 1),
    "E": GumbelNoise(_philox_key, _flipped_word, _gumbel_e, top_word=2**31 - 1),
    "F": GumbelNoise(murmur_key, _murmur_word, _gumbel_f, top_word=2**32 - 1),
}

WIDE_F = GumbelNoise(murmur_key, _murmur_wide_word, gumbel53, top_word=2**53 - 1, dtype=np.float64)


def era(version: tuple[int, ...] | None) -> str:
    """Noise era of a vLLM version; without a version, and for later ones than we have read, the newest."""
    found = eras.era("vllm/v2", version)
    if found is None:
        raise UnknownContract("vLLM before 0.12 has no V2 runner: write vllm@VERSION/v1")
    return found


@dataclass(frozen=True, kw_only=True)
class SpeculatingGumbel(GumbelContract):
    """Noise by position where a drafter proposes tokens; None is a drafter that we cannot run."""

    drafter: NgramDrafter | None


def contract(name: ContractName) -> GumbelContract:
    """`vllm[@VERSION]/v2[:fp64=on,ngram=SHORTEST-LONGEST,drafts=COUNT | drafter=any]`."""
    options = name.take_options("fp64", "ngram", "drafts", "drafter")
    wide = options.get("fp64", "off")
    own = era(name.version)
    if wide not in {"on", "off"} or (wide == "on" and own in "AB"):
        raise UnknownContract(f"fp64={wide} is not known: write fp64=on (vLLM 0.22 or later) or fp64=off")
    noise = ERAS[own] if wide == "off" else WIDE_F if own == "F" else ERAS["C"]
    plain = GumbelContract(id=render(name), noise=noise, lowest_temperature=0.01)
    drafter = drafter_of(options)
    if options.get("drafter", "any") != "any" or (drafter and "drafter" in options):
        raise UnknownContract("a drafter is written drafter=any, or ngram=SHORTEST-LONGEST,drafts=COUNT")
    speculates = drafter is not None or "drafter" in options
    return SpeculatingGumbel(**vars(plain), drafter=drafter) if speculates else plain
