"""The kernel's twin in plain torch, on any device: the same columns by sorting, and noise written out in float64.

It is what the kernel is tested against and timed against; it takes some 40 bytes for every logit.
"""

from __future__ import annotations

import math

import torch

from verifier.kernels_rows import KernelRows, Noise

_LOW32 = 0xFFFFFFFF
_STEP31 = 4.6566127342e-10


def _product(a: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a 32-bit word times a 32-bit factor, in int64 without overflow."""
    low, high = a * (factor & 0xFFFF), a * (factor >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _LOW32


def philox(k0: torch.Tensor, k1: torch.Tensor, *counter: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Philox-4x32-10 of words held in int64."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return c0, c1, c2, c3


def murmur(*words: torch.Tensor) -> torch.Tensor:
    """Murmur3-x86-32 of words held in int64, from state 0."""
    h = torch.zeros_like(words[0])
    for word in words:
        k = _product(word, 0xCC9E2D51)[1]
        k = ((k << 15) | (k >> 17)) & _LOW32
        h = h ^ _product(k, 0x1B873593)[1]
        h = ((h << 13) | (h >> 19)) & _LOW32
        h = (h * 5 + 0xE6546B64) & _LOW32
    h = h ^ 16
    h = _product(h ^ (h >> 16), 0x85EBCA6B)[1]
    h = _product(h ^ (h >> 13), 0xC2B2AE35)[1]
    return h ^ (h >> 16)


def noise(rows: KernelRows, width: int, device: torch.device) -> torch.Tensor:
    """Gumbel noise [R, V] in float64."""
    wholes = rows.wholes(width, device)
    seeds, positions = wholes[1][:, None], wholes[2][:, None]
    v = torch.arange(width, device=device)[None].expand(len(rows), -1)
    zero = torch.zeros_like(v)
    seed, position = (seeds & _LOW32, (seeds >> 32) & _LOW32), (positions & _LOW32, (positions >> 32) & _LOW32)
    if rows.noise is Noise.GREEDY:
        return zero.double()
    if rows.noise is Noise.CUDA_RACE:
        turn = v // rows.threads
        words = torch.stack(philox(*seed, position[0] + turn // 4, position[1] + zero, v % rows.threads, zero))
        return _race(words.gather(0, (turn % 4)[None])[0])
    if rows.noise in {Noise.VLLM_F, Noise.SGLANG_059, Noise.SGLANG_0518}:
        return _hashed(rows.noise, murmur(seed[0] + zero, seed[1] + zero, position[0] + zero, v))
    key = philox(*seed, position[0], position[1], torch.zeros_like(positions), torch.zeros_like(positions))[0]
    return _keyed(rows.noise, *philox(key, torch.zeros_like(key), v, zero, zero, zero)[:2])


def _race(word: torch.Tensor) -> torch.Tensor:
    x = word.float() * 2.0**-32 + 2.0**-33
    q = torch.where(x >= 1.0 - 2.0**-24, 2.0**-24, -x.double().log())
    return -q.log()


def _hashed(family: Noise, h: torch.Tensor) -> torch.Tensor:
    if family is Noise.VLLM_F:
        u = ((h.double() + 0.5) * 2.0**-32).float()
        series = 1.0 + u * 0.0
        for order in range(8, 0, -1):
            series = (u * series if order < 8 else torch.zeros_like(u)) + 1.0 / order
        rest = (1.0 - u).clamp(min=2.0**-24).double().log().neg()
        return -torch.where(u < 0.25, (u * series).double(), rest).log()
    log_u = (h.double() / _LOW32).log().clamp(min=-1.7976931348623157e308)
    cap = -(2.0**-32) if family is Noise.SGLANG_0518 else 0.0
    return -(-log_u.clamp(max=cap)).log()


def _keyed(family: Noise, w0: torch.Tensor, w1: torch.Tensor) -> torch.Tensor:
    if family is Noise.VLLM_C:
        u = (w1.double() * 4294967296.0 + w0.double()) * 2.0**-64
        return -(-u.clamp(min=2.2250738585072014e-308).log()).log()
    r = torch.where(w0 >= 2**31, _LOW32 - w0, w0).float() * torch.tensor(_STEP31, dtype=torch.float32)
    r = r.double()
    if family is Noise.VLLM_A:
        return -(-(r + 1e-20).log() + 1e-20).log()
    if family is Noise.VLLM_E:
        return -(-torch.log1p(-r.clamp(min=_STEP31))).log()
    least = 1e-7 if family is Noise.VLLM_B else 2.0**-126
    return -(-r.clamp(min=least).log()).log()


def cuts(z: torch.Tensor, rows: KernelRows) -> torch.Tensor:
    """The lowest logit [R] that each row's filters leave, −∞ where none is on; `z` [R, V] is float64."""
    width = z.shape[1]
    _, top_p, drop = rows.reals(z.device).double()
    top_k = rows.wholes(width, z.device)[3]
    heat = torch.from_numpy(rows.temperature).to(z.device).double()[:, None]
    ordered = z.sort(1, descending=True).values
    cut = ordered[:, 0] + drop
    kth = ordered.gather(1, (top_k - 1).clamp(min=0)[:, None])[:, 0]
    cut = torch.where(top_k > 0, cut.maximum(kth), cut).float().double()
    weights = ((ordered - ordered[:, :1]) / heat).exp().masked_fill(ordered < cut[:, None], 0.0)
    mass = weights.cumsum(1)
    last = (mass < top_p[:, None] * mass[:, -1:]).sum(1, keepdim=True).clamp(max=width - 1)
    edge = torch.where(top_p < 1.0, ordered.gather(1, last)[:, 0].maximum(cut), cut)
    unfiltered = ~torch.from_numpy(rows.filtered(width)).to(z.device)
    return edge.masked_fill(unfiltered, -math.inf)


def score_rows(logits: torch.Tensor, rows: KernelRows) -> torch.Tensor:
    """Scores [R, 8] (kernels_rows.COLUMNS, float32) of logits [R, V], as kernels.score_rows gives them."""
    width, device = logits.shape[1], logits.device
    z = logits.double()
    claimed = rows.wholes(width, device)[0][:, None]
    heat = torch.from_numpy(rows.temperature).to(device).double()[:, None]
    log_p = (z / heat).log_softmax(1)
    own = z.gather(1, claimed)
    cut = cuts(z, rows)[:, None]
    soft = torch.where(own >= cut - rows.edge, own.minimum(cut), cut)
    inside = own >= soft
    noised = (z / heat + noise(rows, width, device)).masked_fill(z < soft, -math.inf)
    winner = noised.argmax(1, keepdim=True)
    own_noised = torch.where(inside, noised.gather(1, claimed), math.nan)
    margin = (heat * (noised.gather(1, winner) - own_noised)).nan_to_num(math.inf)
    kept = (z / heat).masked_fill(z < cut, -math.inf).logsumexp(1, keepdim=True)
    prob = torch.where(inside, (own / heat - kept).exp(), 0.0)
    if rows.noise is Noise.GREEDY:
        prob = (winner == claimed).double()
    won = z.gather(1, winner)
    near = (own < cut) & (own >= cut - rows.edge)
    doubtful = (winner != claimed) & (won <= cut + rows.edge) & (won < z.amax(1, keepdim=True)) & cut.isfinite()
    ahead = torch.where(inside, (noised > own_noised).sum(1, keepdim=True).double(), math.inf)
    entropy = -(log_p.exp() * log_p).nan_to_num(0.0).sum(1, keepdim=True)
    columns = [
        winner, margin, prob, log_p.gather(1, claimed), entropy, (z > own).sum(1, keepdim=True), ahead, near | doubtful
    ]  # fmt: skip
    return torch.cat([column.double() for column in columns], 1).float()
