"""Rows with top-k, top-p or min-p: the exact cut, then the race among what it leaves, as Triton kernels.

`keep_largest` keeps the four largest logits of each of BLOCK parts of a row while it takes the sums, packed with their
block's number into one integer each. Let t be the largest of the parts' fourth ones: every logit above t is among those
kept, so `filter_rows` finds a cut above t exactly, by sections over the logits' bits. A support so wide that some part
holds four of it is left to `filter_whole_rows`, which reads the row once for every two bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from verifier.kernels_sums import (
    LEAST,
    claim,
    finished,
    narrowed,
    near,
    ordered,
    quarters,
    raced,
    stored_sums,
    summed,
    taken,
    value,
)


@triton.jit
def _packed(z, number, IDLE: tl.constexpr):
    """Order keys with a block's number in their idle bits; of float32, with both in 64 bits."""
    key = ordered(z, IDLE)
    if IDLE == 0:
        pack = (key.to(tl.int64) << 16) + number
    else:
        pack = (key << IDLE) + number
    return pack


@triton.jit
def _inserted(pack, q0, q1, q2, q3):
    """The four largest of five integers, by falling size, in every lane."""
    q0, pack = tl.maximum(q0, pack), tl.minimum(q0, pack)
    q1, pack = tl.maximum(q1, pack), tl.minimum(q1, pack)
    q2, pack = tl.maximum(q2, pack), tl.minimum(q2, pack)
    return q0, q1, q2, tl.maximum(q3, pack)


@triton.jit
def _found(keys, weights, low, high, wanted):
    """The largest key from `low` to `high` such that the entries from it on have weight ≥ wanted, else `low`."""
    while low < high:
        t1, t2, t3 = quarters(low, high)
        w1, w2 = tl.where(keys >= t1, weights, 0.0), tl.where(keys >= t2, weights, 0.0)
        w3 = tl.where(keys >= t3, weights, 0.0)
        low, high = narrowed(low, high, t1, t2, t3, w1, w2, w3, wanted)
    return low


@triton.jit
def _at_least(cut, IDLE: tl.constexpr):
    """The least key whose value is not under the cut."""
    key = ordered(cut, IDLE)
    return key + (value(key, IDLE) < cut).to(tl.int32)


@triton.jit
def _stored_support(out_row, own_z, peak, inverse, cut, mass, inside, wins, won, ahead, EDGE: tl.constexpr):
    """Store prob, gumbel_rank and flags."""
    probability = tl.exp((own_z - peak) * inverse - tl.log(mass))
    tl.store(out_row + 2, tl.where(inside, probability, 0.0))
    tl.store(out_row + 6, tl.where(inside, tl.sum(ahead, 0).to(tl.float32), float("inf")))
    near_cut = (own_z < cut) & (own_z >= cut - EDGE)
    doubtful = (wins == 0) & (won <= cut + EDGE) & (won < peak) & (cut > float("-inf"))
    tl.store(out_row + 7, (near_cut | doubtful).to(tl.float32))


@triton.jit
def keep_largest(
    logits, stride, chosen, wholes, reals, count, threads, out, sums, kept,
    WIDTH: tl.constexpr, FAMILY: tl.constexpr, WRAPPED: tl.constexpr, APPROX: tl.constexpr, IDLE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of one row, and its parts' four largest logits."""
    row, z_row, _claimed, own_z, _own, inverse, _k0, _k1, _k2, _k3 = claim(
        logits, stride, chosen, wholes, reals, count, threads, FAMILY, WRAPPED, APPROX
    )
    lanes = tl.arange(0, BLOCK)
    tops = tl.full([BLOCK], LEAST, tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    above = tl.zeros([BLOCK], tl.int32)
    q0 = _packed(tl.full([BLOCK], float("-inf"), tl.float32), 0, IDLE)
    q1, q2, q3 = q0, q0, q0
    for base in range(0, WIDTH, 4 * BLOCK):
        at = base + lanes
        z0, z1 = taken(z_row, at, WIDTH), taken(z_row, at + BLOCK, WIDTH)
        z2, z3 = taken(z_row, at + 2 * BLOCK, WIDTH), taken(z_row, at + 3 * BLOCK, WIDTH)
        largest = tl.maximum(tl.maximum(z0, z1), tl.maximum(z2, z3))
        tops, mass, moment, above = summed(z0, z1, z2, z3, largest, own_z, inverse, tops, mass, moment, above)
        number = base // BLOCK
        q0, q1, q2, q3 = _inserted(_packed(z0, number, IDLE), q0, q1, q2, q3)
        q0, q1, q2, q3 = _inserted(_packed(z1, number + 1, IDLE), q0, q1, q2, q3)
        q0, q1, q2, q3 = _inserted(_packed(z2, number + 2, IDLE), q0, q1, q2, q3)
        q0, q1, q2, q3 = _inserted(_packed(z3, number + 3, IDLE), q0, q1, q2, q3)
    peak, total = stored_sums(out + row * 8, own_z, inverse, tops, mass, moment, above)
    tl.store(sums + 2 * row, peak)
    tl.store(sums + 2 * row + 1, total)
    place = kept + row.to(tl.int64) * (4 * BLOCK) + lanes
    tl.store(place, q0)
    tl.store(place + BLOCK, q1)
    tl.store(place + 2 * BLOCK, q2)
    tl.store(place + 3 * BLOCK, q3)


@triton.jit
def filter_rows(
    logits, stride, chosen, wholes, reals, count, threads, out, sums, kept,
    FAMILY: tl.constexpr, WRAPPED: tl.constexpr, APPROX: tl.constexpr, IDLE: tl.constexpr, BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """Scores of one row from what `keep_largest` kept; where that was enough, the row's mass becomes 0."""
    row, z_row, claimed, own_z, own, inverse, k0, k1, k2, k3 = claim(
        logits, stride, chosen, wholes, reals, count, threads, FAMILY, WRAPPED, APPROX
    )
    shift: tl.constexpr = 16 if IDLE == 0 else IDLE
    places = tl.arange(0, 4 * BLOCK)
    pack = tl.load(kept + row.to(tl.int64) * (4 * BLOCK) + places)
    keys = (pack >> shift).to(tl.int32)
    z = value(keys, IDLE)
    v = (pack & ((1 << shift) - 1)).to(tl.int32) * BLOCK + places % BLOCK
    peak, total = tl.load(sums + 2 * row), tl.load(sums + 2 * row + 1)
    weights = tl.exp((z - peak) * inverse)

    unsure = tl.max(tl.where(places >= 3 * BLOCK, keys, -2147483647), 0)  # what lies above it is complete
    highest = ordered(peak, IDLE)
    top_k = tl.load(wholes + 3 * count + row)
    top_p = tl.load(reals + count + row)
    cut = peak + tl.load(reals + 2 * count + row)
    if top_k > 0:
        ones = tl.full([4 * BLOCK], 1.0, tl.float32)
        cut = tl.maximum(cut, value(_found(keys, ones, unsure, highest, top_k.to(tl.float32)), IDLE))
    least = value(unsure, IDLE)
    complete = (cut > least) | (cut == float("-inf"))  # what top-p takes its share of
    if top_p < 1.0:
        floor = unsure
        if cut > float("-inf"):
            floor = tl.maximum(unsure, _at_least(cut, IDLE))
            total = tl.sum(tl.where(keys >= floor, weights, 0.0), 0)
        cut = tl.maximum(cut, value(_found(keys, weights, floor, highest, top_p * total), IDLE))

    soft = tl.where(own_z >= cut - EDGE, tl.minimum(own_z, cut), cut)
    if complete & (soft > least):
        inside = own_z >= soft
        best = tl.full([4 * BLOCK], float("-inf"), tl.float32)
        ids = tl.zeros([4 * BLOCK], tl.int32)
        ahead = tl.zeros([4 * BLOCK], tl.int32)
        best, ids, ahead = raced(z, v, (z >= soft) & (v != claimed), inverse, own, k0, k1, k2, k3, threads,
                                 best, ids, ahead, FAMILY, WRAPPED, APPROX)  # fmt: skip
        out_row = out + row * 8
        wins, rival = finished(out_row, best, ids, own, claimed, inverse, inside)
        won = tl.load(z_row + rival).to(tl.float32)
        mass = tl.sum(tl.where(z >= cut, weights, 0.0), 0)
        _stored_support(out_row, own_z, peak, inverse, cut, mass, inside, wins, won, ahead, EDGE)
        tl.store(sums + 2 * row + 1, 0.0)


@triton.jit
def _found_in_row(z_row, low, high, wanted, peak, inverse, COUNTED: tl.constexpr, WIDTH: tl.constexpr,
                  IDLE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The largest key from `low` to `high` that logits of weight `wanted` reach; one sweep for every two bits."""
    while low < high:
        t1, t2, t3 = quarters(low, high)
        w1 = tl.zeros([BLOCK], tl.float32)
        w2 = tl.zeros([BLOCK], tl.float32)
        w3 = tl.zeros([BLOCK], tl.float32)
        for base in range(0, WIDTH, BLOCK):
            z = taken(z_row, base + tl.arange(0, BLOCK), WIDTH)
            key = ordered(z, IDLE)
            share = tl.exp((z - peak) * inverse)
            if COUNTED:
                share = (z > float("-inf")).to(tl.float32)
            w1 += tl.where(key >= t1, share, 0.0)
            w2 += tl.where(key >= t2, share, 0.0)
            w3 += tl.where(key >= t3, share, 0.0)
        low, high = narrowed(low, high, t1, t2, t3, w1, w2, w3, wanted)
    return low


@triton.jit
def _mass_from(z_row, cut, peak, inverse, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for base in range(0, WIDTH, BLOCK):
        z = taken(z_row, base + tl.arange(0, BLOCK), WIDTH)
        total += tl.where(z >= cut, tl.exp((z - peak) * inverse), 0.0)
    return tl.sum(total, 0)


@triton.jit
def filter_whole_rows(
    logits, stride, chosen, wholes, reals, count, threads, out, sums,
    WIDTH: tl.constexpr, FAMILY: tl.constexpr, WRAPPED: tl.constexpr, APPROX: tl.constexpr, IDLE: tl.constexpr,
    BLOCK: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Scores of one row whose support `filter_rows` found too wide."""
    total = tl.load(sums + 2 * tl.load(chosen + tl.program_id(0)) + 1)
    if total == 0.0:
        return
    row, z_row, claimed, own_z, own, inverse, k0, k1, k2, k3 = claim(
        logits, stride, chosen, wholes, reals, count, threads, FAMILY, WRAPPED, APPROX
    )
    peak = tl.load(sums + 2 * row)
    top_k = tl.load(wholes + 3 * count + row)
    top_p = tl.load(reals + count + row)
    cut = peak + tl.load(reals + 2 * count + row)
    low, high = ordered(peak - float("inf"), IDLE), ordered(peak, IDLE)
    if top_k > 0:
        key = _found_in_row(z_row, low, high, top_k.to(tl.float32), peak, inverse, True, WIDTH, IDLE, BLOCK)
        cut = tl.maximum(cut, value(key, IDLE))
    if top_p < 1.0:
        if cut > float("-inf"):
            total = _mass_from(z_row, cut, peak, inverse, WIDTH, BLOCK)
            low = _at_least(cut, IDLE)
        else:
            # All that lies below this weighs less than 1 − p together.
            low = ordered(peak + (tl.log((1.0 - top_p) * total / WIDTH) - 0.01) / inverse, IDLE)
        key = _found_in_row(z_row, low, high, top_p * total, peak, inverse, False, WIDTH, IDLE, BLOCK)
        cut = tl.maximum(cut, value(key, IDLE))

    soft = tl.where(own_z >= cut - EDGE, tl.minimum(own_z, cut), cut)
    inside = own_z >= soft
    to_beat = tl.where(inside, own, float("-inf"))  # outside the support, the claimed token does not race
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    ids = tl.zeros([BLOCK], tl.int32)
    ahead = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    for base in range(0, WIDTH, BLOCK):
        v = base + tl.arange(0, BLOCK)
        z = taken(z_row, v, WIDTH)
        mass += tl.where(z >= cut, tl.exp((z - peak) * inverse), 0.0)
        runs = (z >= soft) & (v != claimed) & (v < WIDTH)
        may = runs & near(z, v, inverse, to_beat, k0, k1, k2, k3, threads, FAMILY, WRAPPED)
        if tl.max(may.to(tl.int32), 0) > 0:
            best, ids, ahead = raced(z, v, runs, inverse, own, k0, k1, k2, k3, threads, best, ids, ahead,
                                     FAMILY, WRAPPED, APPROX)  # fmt: skip
    out_row = out + row * 8
    wins, rival = finished(out_row, best, ids, own, claimed, inverse, inside)
    won = tl.load(z_row + rival).to(tl.float32)
    _stored_support(out_row, own_z, peak, inverse, cut, tl.sum(mass, 0), inside, wins, won, ahead, EDGE)
