"""Gumbel noise in registers: what samplers/ states for CPUs, as Triton functions of uint32 words.

Formulas and sources: samplers/torch_cuda.py, vllm_v2.py, sglang.py. Float64 formulas of the engines are evaluated in
float32 in a form that loses nothing near 1, so noise differs from theirs by rounding alone (under 1e-5).
"""

from __future__ import annotations

import triton
import triton.language as tl

from verifier.kernels_rows import Noise

_GREEDY = tl.constexpr(int(Noise.GREEDY))
_RACE = tl.constexpr(int(Noise.CUDA_RACE))
_A, _B, _C = (tl.constexpr(int(n)) for n in (Noise.VLLM_A, Noise.VLLM_B, Noise.VLLM_C))
_D, _E, _F = (tl.constexpr(int(n)) for n in (Noise.VLLM_D, Noise.VLLM_E, Noise.VLLM_F))
_S9, _S18 = tl.constexpr(int(Noise.SGLANG_059)), tl.constexpr(int(Noise.SGLANG_0518))
_STEP31 = tl.constexpr(4.6566127342e-10)  # Triton's uint_to_uniform_float scale


@triton.jit
def _philox(k0, k1, c0, c1, c2, c3):
    """Philox-4x32-10; words are uint32."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _times(x, factor: tl.constexpr):
    return (x.to(tl.uint64) * factor).to(tl.uint32)


@triton.jit
def _mix(h, k):
    k = _times(k, 0xCC9E2D51)
    k = (k << 15) | (k >> 17)
    h = h ^ _times(k, 0x1B873593)
    h = (h << 13) | (h >> 19)
    return (h.to(tl.uint64) * 5 + 0xE6546B64).to(tl.uint32)


@triton.jit
def _murmur(h, v):
    """Murmur3 of four words, of which `h` has the first three mixed in."""
    h = _mix(h, v) ^ 16
    h = _times(h ^ (h >> 16), 0x85EBCA6B)
    h = _times(h ^ (h >> 13), 0xC2B2AE35)
    return h ^ (h >> 16)


@triton.jit
def row_key(seed, position, FAMILY: tl.constexpr):
    """What a row's noise starts from: four uint32 words, from the int64 seed and position."""
    s, p = seed.to(tl.uint64), position.to(tl.uint64)
    s0, s1 = (s & 0xFFFFFFFF).to(tl.uint32), (s >> 32).to(tl.uint32)
    p0, p1 = (p & 0xFFFFFFFF).to(tl.uint32), (p >> 32).to(tl.uint32)
    zero = p0 ^ p0
    if FAMILY >= _F:
        s0 = _mix(_mix(_mix(zero, s0), s1), p0)
    elif FAMILY >= _A:
        s0, s1, p0, p1 = _philox(s0, s1, p0, p1, zero, zero)
        s1 = zero
    return s0, s1, p0, p1


@triton.jit
def _neg_log1m(u):
    """−ln(1 − u) of float32 u in [0, 1): a series below ⅛, a logarithm above."""
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6 + u * (1 / 7 + u / 8)))))))
    return tl.where(u < 0.125, series, -tl.log(tl.maximum(1.0 - u, 5.9604644775390625e-08)))


@triton.jit
def _neg_log1m_f(u):
    """Era F's own −ln(1 − u): its series reaches up to ¼."""
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6 + u * (1 / 7 + u / 8)))))))
    return tl.where(u < 0.25, series, -tl.log(tl.maximum(1.0 - u, 5.9604644775390625e-08)))


@triton.jit
def _race_word(k0, k1, k2, k3, v, threads, WRAPPED: tl.constexpr):
    """The word that torch's `exponential_` makes value v of a row from."""
    zero = v ^ v
    if WRAPPED:
        turn = v // threads.to(tl.uint32)
        w0, w1, w2, w3 = _philox(k0, k1, k2 + (turn >> 2), k3 + zero, v - turn * threads.to(tl.uint32), zero)
        lane = turn & 3
        w = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    else:
        w, _1, _2, _3 = _philox(k0, k1, k2 + zero, k3 + zero, v, zero)
    return w


@triton.jit
def _folded(w0):
    """Triton's 31-bit whole number of a word, as float32 (`uint_to_uniform_float`)."""
    return tl.where(w0 >= 0x80000000, w0 ^ 0xFFFFFFFF, w0).to(tl.int32).to(tl.float32)


@triton.jit
def _exponential(k0, k1, k2, k3, v, threads, WRAPPED: tl.constexpr, APPROXIMATE: tl.constexpr):
    """Value v of one row filled by torch's `exponential_`; APPROXIMATE takes the GPU's own logarithm, as it does."""
    w = _race_word(k0, k1, k2, k3, v, threads, WRAPPED)
    x = w.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    if APPROXIMATE:
        lg2 = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
        q = -lg2 * 0.6931471824645996
    else:
        q = -tl.log(x)
    return tl.where(x >= 0.9999999403953552, 5.9604644775390625e-08, q)


@triton.jit
def _wide_exponential(w0, w1):
    """−ln u of the 64-bit uniform u = (w1·2^32 + w0)·2^−64: by its complement where u is near 1."""
    u = w1.to(tl.float32) * 2.3283064365386963e-10 + w0.to(tl.float32) * 5.421010862427522e-20
    rest0, rest1 = w0 ^ 0xFFFFFFFF, w1 ^ 0xFFFFFFFF
    rest = rest1.to(tl.float32) * 2.3283064365386963e-10 + (rest0.to(tl.float32) + 1.0) * 5.421010862427522e-20
    return tl.where(u < 0.5, -tl.log(tl.maximum(u, 1.1754943508222875e-38)), _neg_log1m(tl.minimum(rest, 0.75)))


@triton.jit
def _hashed_exponential(h):
    """−ln u of u = h/(2^32 − 1), by its complement where u is near 1."""
    u = h.to(tl.float32) * 2.3283064370807974e-10
    rest = (h ^ 0xFFFFFFFF).to(tl.float32) * 2.3283064370807974e-10
    return tl.where(u < 0.5, -tl.log(tl.maximum(u, 1.1754943508222875e-38)), _neg_log1m(tl.minimum(rest, 0.75)))


@triton.jit
def gumbel(k0, k1, k2, k3, v, threads, FAMILY: tl.constexpr, WRAPPED: tl.constexpr, APPROXIMATE: tl.constexpr):
    """Noise of token ids v (a block of uint32), as float32."""
    zero = v ^ v
    if FAMILY == _GREEDY:
        g = zero.to(tl.float32)
    elif FAMILY == _RACE:
        g = -tl.log(_exponential(k0, k1, k2, k3, v, threads, WRAPPED, APPROXIMATE))
    elif FAMILY >= _F:
        h = _murmur(k0, v)
        if FAMILY == _F:
            u = ((h.to(tl.float64) + 0.5) * 2.3283064365386963e-10).to(tl.float32)
            g = -tl.log(_neg_log1m_f(u))
        else:
            e = _hashed_exponential(h)
            if FAMILY == _S18:
                e = tl.maximum(e, 2.3283064365386963e-10)
            g = tl.where(h == 0, -709.782712893384, -tl.log(e))
    else:
        w0, w1, _w2, _w3 = _philox(k0, k1, v, zero, zero, zero)
        if FAMILY == _C:
            g = -tl.log(_wide_exponential(w0, w1))
        else:
            r = _folded(w0) * _STEP31
            if FAMILY == _A:
                g = -tl.log(-tl.log(r + 1e-20) + 1e-20)
            elif FAMILY == _B:
                g = -tl.log(-tl.log(tl.maximum(r, 1e-7)))
            elif FAMILY == _D:
                g = -tl.log(-tl.log(tl.maximum(r, 1.1754943508222875e-38)))
            else:
                g = -tl.log(_neg_log1m(tl.maximum(r, _STEP31)))
    return g


@triton.jit
def may_beat(k0, k1, k2, k3, v, threads, ratio, FAMILY: tl.constexpr, WRAPPED: tl.constexpr):
    """Whether token ids v (a block of uint32) may win by noise of e^−g < `ratio`; True a few times too often.

    Of the random word alone: e^−g is −ln u or −ln(1 − u) of its uniform u, thus at least 1 − u or u. The slack covers
    rounding of both sides and the GPU's logarithm (2^−21.4).
    """
    if FAMILY == _GREEDY:
        least = 1.0
    elif FAMILY == _RACE:
        least = 1.0 - _race_word(k0, k1, k2, k3, v, threads, WRAPPED).to(tl.float32) * 2.3283064365386963e-10
    elif FAMILY == _F:
        least = _murmur(k0, v).to(tl.float32) * 2.3283064365386963e-10
    elif FAMILY > _F:
        least = 1.0 - _murmur(k0, v).to(tl.float32) * 2.3283064365386963e-10
    else:
        zero = v ^ v
        w0, w1, _w2, _w3 = _philox(k0, k1, v, zero, zero, zero)
        if FAMILY == _C:
            least = 1.0 - w1.to(tl.float32) * 2.3283064365386963e-10
        elif FAMILY == _E:
            least = _folded(w0) * _STEP31
        else:
            least = 1.0 - _folded(w0) * _STEP31
    return least <= ratio * 1.0001 + 5e-7
