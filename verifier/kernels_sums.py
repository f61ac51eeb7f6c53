"""What the scoring kernels share: a row with its softmax sums in one sweep, races, and integers that sort as logits."""

from __future__ import annotations

import triton
import triton.language as tl

from verifier.kernels_noise import gumbel, may_beat, row_key

LEAST = tl.constexpr(-1e30)  # below every finite logit; unlike −∞, it can be subtracted from itself
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def taken(row, at, WIDTH: tl.constexpr):
    """Logits of a row as float32, −∞ beyond its end."""
    return tl.load(row + at, mask=at < WIDTH, other=float("-inf")).to(tl.float32)


@triton.jit
def ordered(z, IDLE: tl.constexpr):
    """Integers that order as float32 values do whose IDLE lowest bits are zero; these bits are dropped."""
    bits = z.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> IDLE


@triton.jit
def value(key, IDLE: tl.constexpr):
    """The float32 value that `ordered` made this integer of."""
    bits = (key << IDLE).to(tl.int32)
    return tl.where(bits < 0, (bits ^ 0x7FFFFFFF) & (-1 << IDLE), bits).to(tl.float32, bitcast=True)


@triton.jit
def claim(logits, stride, chosen, wholes, reals, count, threads, FAMILY: tl.constexpr, WRAPPED: tl.constexpr,
          APPROX: tl.constexpr):  # fmt: skip
    """This program's row: its number, address, claimed id with logit and noised score, 1/T, and noise key."""
    row = tl.load(chosen + tl.program_id(0))
    claimed = tl.load(wholes + row).to(tl.int32)
    inverse = 1.0 / tl.load(reals + row)
    z_row = logits + row.to(tl.int64) * stride
    own_z = tl.load(z_row + claimed).to(tl.float32)
    k0, k1, k2, k3 = row_key(tl.load(wholes + count + row), tl.load(wholes + 2 * count + row), FAMILY)
    block = tl.full([32], 0, tl.uint32) + claimed.to(tl.uint32)
    own = own_z * inverse + tl.max(gumbel(k0, k1, k2, k3, block, threads, FAMILY, WRAPPED, APPROX), 0)
    return row, z_row, claimed, own_z, own, inverse, k0, k1, k2, k3


@triton.jit
def _term(z, top, scale):
    """2^x and x·2^x of x = (z − top)·scale; 0 where z is −∞."""
    x = tl.maximum((z - top) * scale, -1e4)
    e = tl.exp2(x)
    return e, e * x


@triton.jit
def summed(z0, z1, z2, z3, largest, own_z, inverse, tops, mass, moment, above):
    """Every lane's sums brought up to date with four logits.

    Args:
        largest: the largest of the four.
        tops: the largest logit so far, LEAST before the first.
        mass, moment: Σ 2^x and Σ x·2^x of x = (z − tops)/(T ln 2).
        above: how many logits exceed the claimed one.
    """
    scale = inverse * _LOG2E
    higher = tl.maximum(tops, largest)
    rise = (higher - tops) * scale
    shrink = tl.exp2(-rise)
    e0, m0 = _term(z0, higher, scale)
    e1, m1 = _term(z1, higher, scale)
    e2, m2 = _term(z2, higher, scale)
    e3, m3 = _term(z3, higher, scale)
    moment = shrink * (moment - rise * mass) + ((m0 + m1) + (m2 + m3))
    mass = shrink * mass + ((e0 + e1) + (e2 + e3))
    above += (z0 > own_z).to(tl.int32) + (z1 > own_z).to(tl.int32)
    above += (z2 > own_z).to(tl.int32) + (z3 > own_z).to(tl.int32)
    return higher, mass, moment, above


@triton.jit
def stored_sums(out_row, own_z, inverse, tops, mass, moment, above):
    """Store logprob, entropy and logit_rank; returns the row's peak and Σ e^((z − peak)/T)."""
    peak = tl.max(tops, 0)
    below = (peak - tops) * inverse * _LOG2E
    share = tl.exp2(-below)
    total = tl.sum(share * mass, 0)
    log_mass = tl.log(total)
    tl.store(out_row + 3, (own_z - peak) * inverse - log_mass)
    tl.store(out_row + 4, log_mass - _LN2 * tl.sum(share * (moment - below * mass), 0) / total)
    tl.store(out_row + 5, tl.sum(above, 0).to(tl.float32))
    return peak, total


@triton.jit
def near(z, v, inverse, own, k0, k1, k2, k3, threads, FAMILY: tl.constexpr, WRAPPED: tl.constexpr):
    """Whether ids v with logits z may reach the score `own`; True a few times too often."""
    ratio = tl.exp(tl.minimum(z * inverse - own, 80.0))
    return may_beat(k0, k1, k2, k3, v.to(tl.uint32), threads, ratio, FAMILY, WRAPPED)


@triton.jit
def raced(
    z, v, runs, inverse, own, k0, k1, k2, k3, threads, best, ids, ahead,
    FAMILY: tl.constexpr, WRAPPED: tl.constexpr, APPROX: tl.constexpr,
):  # fmt: skip
    """Every lane's best score with its id, and how many exceed the claimed one's, brought up to date.

    Where a lane holds the same score twice, the first one that came stays: callers go by rising id.
    """
    g = gumbel(k0, k1, k2, k3, v.to(tl.uint32), threads, FAMILY, WRAPPED, APPROX)
    score = tl.where(runs, z * inverse + g, float("-inf"))
    ahead += (score > own).to(tl.int32)
    ids = tl.where(score > best, v, ids)
    return tl.maximum(best, score), ids, ahead


@triton.jit
def finished(out, best, ids, own, claimed, inverse, inside):
    """Store winner and margin; returns whether the claimed id wins, and the best other one."""
    top = tl.max(best, 0)
    rival = tl.min(tl.where(best == top, ids, 2147483647), 0)
    wins = inside & ((own > top) | ((own == top) & (claimed < rival)))
    tl.store(out, tl.where(wins, claimed, rival).to(tl.float32))
    lead = tl.where(wins, 0.0, (top - own) / inverse)
    tl.store(out + 1, tl.where(inside, lead, float("inf")))
    return wins, rival


@triton.jit
def quarters(low, high):
    """Three keys that cut low + 1 … high into four parts of like size."""
    span = high.to(tl.int64) - low - 1
    start = low.to(tl.int64) + 1
    return (start + span // 4).to(tl.int32), (start + span // 2).to(tl.int32), (start + 3 * span // 4).to(tl.int32)


@triton.jit
def narrowed(low, high, t1, t2, t3, w1, w2, w3, wanted):
    """The quarter that holds the largest key of weight ≥ wanted, given the weights [BLOCK] of the three keys."""
    s1, s2, s3 = tl.reduce((w1, w2, w3), 0, _added)
    high = tl.where(s3 >= wanted, high, tl.where(s2 >= wanted, t3 - 1, tl.where(s1 >= wanted, t2 - 1, t1 - 1)))
    low = tl.where(s3 >= wanted, t3, tl.where(s2 >= wanted, t2, tl.where(s1 >= wanted, t1, low)))
    return low, high


@triton.jit
def _added(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2
