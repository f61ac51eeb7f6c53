"""Scores of claimed tokens in one sweep over the logits, as Triton kernels; kernels_twin.py is the same in plain torch.

A row of logits is read once from memory, and once or twice more from the cache; neither noise nor a float32 copy is
written. Rows without filters race over the whole vocabulary while their softmax sums are taken. For rows with filters,
the sweep keeps only candidates: entries above a bound that no kept token can lie under, which follows from
    top-k   the k-th largest of the maxima of BLOCK disjoint parts of the row
    min-p   peak + T·ln(min_p)
    top-p   peak + T·ln((1 − p)·mass/V): all that lies below it together weighs less than 1 − p
A second kernel finds the exact cut among the candidates by bisection over the logits' bits, then races among those
above it. Rows with more than CAPACITY candidates go through the same kernel over the whole row.
Sums run in a fixed order, so results are the same to the bit from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import triton
import triton.language as tl

from verifier.kernels_noise import gumbel, row_key
from verifier.kernels_rows import COLUMNS, KernelRows, Noise, sent

BLOCK = 1024
CAPACITY = 4096
_WARPS = 4
# Low bits that are zero in every float32 that came from this type: bisection need not look at them.
_IDLE_BITS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}


@triton.jit
def _ordered(z, IDLE: tl.constexpr):
    """Integers that order as the float32 values do."""
    bits = z.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> IDLE


@triton.jit
def _value(key, IDLE: tl.constexpr):
    bits = (key << IDLE).to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _kth_largest(values, k, IDLE: tl.constexpr):
    """The k-th largest of a block of values, of which at least k exist."""
    keys = _ordered(values, IDLE).to(tl.int64)
    low, high = tl.min(keys, 0), tl.max(keys, 0)
    while low < high:
        middle = (low + high + 1) >> 1
        enough = tl.sum((keys >= middle).to(tl.int32), 0) >= k
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle - 1)
    return _value(low, IDLE)


@triton.jit
def _finish(out, best, ids, own, claimed, temperature, inside):
    """Winner, margin and whether the claimed id wins, from every lane's best other score."""
    top = tl.max(best, 0)
    rival = tl.min(tl.where(best == top, ids, 2147483647), 0)
    wins = inside & ((own > top) | ((own == top) & (claimed < rival)))
    tl.store(out, tl.where(wins, claimed, rival).to(tl.float32))
    lead = tl.where(wins, 0.0, temperature * (top - own))
    tl.store(out + 1, tl.where(inside, lead, float("inf")))
    return wins, rival


@triton.jit
def _own_noise(k0, k1, k2, k3, claimed, threads, FAMILY: tl.constexpr, WRAPPED: tl.constexpr, APPROX: tl.constexpr):
    block = tl.full([32], 0, tl.uint32) + claimed.to(tl.uint32)
    return tl.max(gumbel(k0, k1, k2, k3, block, threads, FAMILY, WRAPPED, APPROX), 0)


@triton.jit
def _sweep(
    logits, stride, chosen, wholes, reals, count, threads, out, kept, kept_ids, counts, sums,
    WIDTH: tl.constexpr, FAMILY: tl.constexpr, WRAPPED: tl.constexpr, APPROX: tl.constexpr, FILTERED: tl.constexpr,
    IDLE: tl.constexpr, BLOCK: tl.constexpr, CAPACITY: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Softmax sums of one row, and its race (unfiltered) or its candidates (filtered)."""
    row = tl.load(chosen + tl.program_id(0))
    claimed = tl.load(wholes + row).to(tl.int32)
    temperature = tl.load(reals + row)
    inverse = 1.0 / temperature
    z_row = logits + row.to(tl.int64) * stride
    lanes = tl.arange(0, BLOCK)
    own_z = tl.load(z_row + claimed).to(tl.float32)
    peaks = tl.full([BLOCK], float("-inf"), tl.float32)
    for base in range(0, WIDTH, BLOCK):
        z = tl.load(z_row + base + lanes, mask=base + lanes < WIDTH, other=float("-inf")).to(tl.float32)
        peaks = tl.maximum(peaks, z)
    peak = tl.max(peaks, 0)

    mass = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    above = tl.zeros([BLOCK], tl.int32)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    ids = tl.zeros([BLOCK], tl.int32)
    ahead = tl.zeros([BLOCK], tl.int32)
    k0, k1, k2, k3 = row_key(tl.load(wholes + count + row), tl.load(wholes + 2 * count + row), FAMILY)
    own = own_z * inverse + _own_noise(k0, k1, k2, k3, claimed, threads, FAMILY, WRAPPED, APPROX)
    for base in range(0, WIDTH, BLOCK):
        at = base + lanes
        z = tl.load(z_row + at, mask=at < WIDTH, other=float("-inf")).to(tl.float32)
        x = (z - peak) * inverse
        e = tl.exp(x)
        mass += e
        moment += tl.where(e > 0.0, e * x, 0.0)
        above += (z > own_z).to(tl.int32)
        if not FILTERED:
            g = gumbel(k0, k1, k2, k3, at.to(tl.uint32), threads, FAMILY, WRAPPED, APPROX)
            score = tl.where((at == claimed) | (at >= WIDTH), float("-inf"), z * inverse + g)
            ahead += (score > own).to(tl.int32)
            ids = tl.where(score > best, at, ids)
            best = tl.maximum(best, score)
    total = tl.sum(mass, 0)
    log_mass = tl.log(total)
    out_row = out + row * 8
    tl.store(out_row + 3, (own_z - peak) * inverse - log_mass)
    tl.store(out_row + 4, log_mass - tl.sum(moment, 0) / total)
    tl.store(out_row + 5, tl.sum(above, 0).to(tl.float32))
    if not FILTERED:
        wins, _rival = _finish(out_row, best, ids, own, claimed, temperature, own_z > float("-inf"))
        probability = tl.exp((own_z - peak) * inverse - log_mass)
        if FAMILY == 0:
            probability = wins.to(tl.float32)
        tl.store(out_row + 2, probability)
        tl.store(out_row + 6, tl.sum(ahead, 0).to(tl.float32))
        tl.store(out_row + 7, 0.0)
    else:
        top_k = tl.load(wholes + 3 * count + row)
        top_p = tl.load(reals + count + row)
        drop = tl.load(reals + 2 * count + row)
        bound = peak + drop
        if (top_k > 0) & (top_k <= BLOCK):
            bound = tl.maximum(bound, _kth_largest(peaks, top_k, IDLE))
        if top_p < 1.0:
            held = tl.where((top_k > 0) | (drop > float("-inf")), 1.0, total)
            bound = tl.maximum(bound, peak + temperature * (tl.log((1.0 - top_p) * held / WIDTH) - 0.01))
        # The claimed token may lower the cut to itself (filters.softened).
        bound = tl.where((own_z < bound) & (own_z >= bound - EDGE), own_z, bound)
        bound -= 1e-5 * tl.abs(bound) + 1e-6
        filled = 0
        for base in range(0, WIDTH, BLOCK):
            at = base + lanes
            z = tl.load(z_row + at, mask=at < WIDTH, other=float("-inf")).to(tl.float32)
            take = ((z >= bound) & (at < WIDTH)).to(tl.int32)
            more = tl.sum(take, 0)
            if more > 0:
                place = filled + tl.cumsum(take, 0) - 1
                fits = (take > 0) & (place < CAPACITY)
                tl.store(kept + row * CAPACITY + place, z, mask=fits)
                tl.store(kept_ids + row * CAPACITY + place, at, mask=fits)
            filled += more
        tl.store(counts + row, filled)
        tl.store(sums + 3 * row, peak)
        tl.store(sums + 3 * row + 1, total)
        tl.store(sums + 3 * row + 2, bound)


@triton.jit
def _piece(values, ids, base, count, COMPACT: tl.constexpr, BLOCK: tl.constexpr):
    at = base + tl.arange(0, BLOCK)
    z = tl.load(values + at, mask=at < count, other=float("-inf")).to(tl.float32)
    if COMPACT:
        v = tl.load(ids + at, mask=at < count, other=0)
    else:
        v = at
    return z, v, at < count


@triton.jit
def _weight(values, ids, count, key, peak, inverse, COUNTED: tl.constexpr, COMPACT: tl.constexpr,
            IDLE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """How many entries are at least the key's value (COUNTED), or their mass."""
    total = tl.zeros([BLOCK], tl.float32)
    base = 0
    while base < count:
        z, _v, real = _piece(values, ids, base, count, COMPACT, BLOCK)
        share = 1.0 if COUNTED else tl.exp((z - peak) * inverse)
        total += tl.where(real & (_ordered(z, IDLE).to(tl.int64) >= key), share, 0.0)
        base += BLOCK
    return tl.sum(total, 0)


@triton.jit
def _bisected(values, ids, count, low, high, wanted, peak, inverse, COUNTED: tl.constexpr, COMPACT: tl.constexpr,
              IDLE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The largest key from `low` to `high` that entries of weight `wanted` reach."""
    while low < high:
        middle = (low + high + 1) >> 1
        weight = _weight(values, ids, count, middle, peak, inverse, COUNTED, COMPACT, IDLE, BLOCK)
        enough = weight >= wanted
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle - 1)
    return low


@triton.jit
def _settle(
    logits, stride, chosen, wholes, reals, count, threads, out, kept, kept_ids, counts, sums,
    WIDTH: tl.constexpr, FAMILY: tl.constexpr, WRAPPED: tl.constexpr, APPROX: tl.constexpr, COMPACT: tl.constexpr,
    IDLE: tl.constexpr, BLOCK: tl.constexpr, CAPACITY: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """The cut of one filtered row, and the race among what it leaves."""
    row = tl.load(chosen + tl.program_id(0))
    filled = tl.load(counts + row)
    elsewhere = (filled > CAPACITY) if COMPACT else (filled <= CAPACITY)
    if elsewhere:
        return
    claimed = tl.load(wholes + row).to(tl.int32)
    temperature = tl.load(reals + row)
    inverse = 1.0 / temperature
    z_row = logits + row.to(tl.int64) * stride
    own_z = tl.load(z_row + claimed).to(tl.float32)
    top_k = tl.load(wholes + 3 * count + row)
    top_p = tl.load(reals + count + row)
    drop = tl.load(reals + 2 * count + row)
    peak = tl.load(sums + 3 * row)
    total = tl.load(sums + 3 * row + 1)
    bound = tl.load(sums + 3 * row + 2)
    if COMPACT:
        values, ids, n = kept + row * CAPACITY, kept_ids + row * CAPACITY, filled
    else:
        values, ids, n = z_row, kept_ids, WIDTH

    lowest = _ordered(bound, IDLE).to(tl.int64)
    highest = _ordered(peak, IDLE).to(tl.int64)
    cut = peak + drop
    if top_k > 0:
        wanted = top_k.to(tl.float32)
        key = _bisected(values, ids, n, lowest, highest, wanted, peak, inverse, True, COMPACT, IDLE, BLOCK)
        cut = tl.maximum(cut, _value(key, IDLE))
    if top_p < 1.0:
        floor = lowest
        if cut > float("-inf"):
            # The least key whose value is not under the cut.
            floor = _ordered(cut, IDLE).to(tl.int64)
            floor += (_value(floor, IDLE) < cut).to(tl.int64)
            total = _weight(values, ids, n, floor, peak, inverse, False, COMPACT, IDLE, BLOCK)
        key = _bisected(values, ids, n, floor, highest, top_p * total, peak, inverse, False, COMPACT, IDLE, BLOCK)
        cut = tl.maximum(cut, _value(key, IDLE))

    soft = tl.where(own_z >= cut - EDGE, tl.minimum(own_z, cut), cut)
    inside = own_z >= soft
    k0, k1, k2, k3 = row_key(tl.load(wholes + count + row), tl.load(wholes + 2 * count + row), FAMILY)
    own = own_z * inverse + _own_noise(k0, k1, k2, k3, claimed, threads, FAMILY, WRAPPED, APPROX)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    winners = tl.zeros([BLOCK], tl.int32)
    ahead = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    base = 0
    while base < n:
        z, v, real = _piece(values, ids, base, n, COMPACT, BLOCK)
        mass += tl.where(real & (z >= cut), tl.exp((z - peak) * inverse), 0.0)
        g = gumbel(k0, k1, k2, k3, v.to(tl.uint32), threads, FAMILY, WRAPPED, APPROX)
        score = tl.where(real & (z >= soft) & (v != claimed), z * inverse + g, float("-inf"))
        ahead += (score > own).to(tl.int32)
        winners = tl.where(score > best, v, winners)
        best = tl.maximum(best, score)
        base += BLOCK
    out_row = out + row * 8
    wins, rival = _finish(out_row, best, winners, own, claimed, temperature, inside)
    probability = tl.exp((own_z - peak) * inverse - tl.log(tl.sum(mass, 0)))
    tl.store(out_row + 2, tl.where(inside, probability, 0.0))
    tl.store(out_row + 6, tl.where(inside, tl.sum(ahead, 0).to(tl.float32), float("inf")))
    won = tl.load(z_row + rival).to(tl.float32)
    near = (own_z < cut) & (own_z >= cut - EDGE)
    doubtful = (wins == 0) & (won <= cut + EDGE) & (won < peak) & (cut > float("-inf"))
    tl.store(out_row + 7, (near | doubtful).to(tl.float32))


def score_rows(logits: torch.Tensor, rows: KernelRows) -> torch.Tensor:
    """Scores [R, 8] (kernels_rows.COLUMNS, float32) of logits [R, V] in bfloat16, float16 or float32.

    Rows must be contiguous. Scratch memory is 32 KiB a filtered row and under 100 bytes any other.
    """
    count, width = logits.shape
    device = logits.device
    out = torch.empty((count, len(COLUMNS)), dtype=torch.float32, device=device)
    filtered = rows.filtered(width)
    wholes, reals = rows.wholes(width, device), rows.reals(device)
    shared = {
        "WIDTH": width, "FAMILY": int(rows.noise), "WRAPPED": rows.noise == Noise.CUDA_RACE and width > rows.threads,
        "APPROX": device.type == "cuda", "IDLE": _IDLE_BITS[logits.dtype], "CAPACITY": CAPACITY, "EDGE": rows.edge,
    }  # fmt: skip
    for some in (False, True):
        numbers = np.flatnonzero(filtered == some).astype(np.int32)
        if len(numbers):
            chosen = sent(numbers, device)
            scratch = _scratch(count if some else 0, device)
            given = (logits, logits.stride(0), chosen, wholes, reals, count, rows.threads, out, *scratch)
            _launch(len(numbers), given, some, shared)
    return out


def _launch(count: int, given: tuple[object, ...], filtered: bool, shared: Mapping[str, object]) -> None:
    _sweep[(count,)](*given, **shared, FILTERED=filtered, BLOCK=BLOCK, num_warps=_WARPS)
    if filtered:
        for compact, block in ((True, 512), (False, BLOCK)):
            _settle[(count,)](*given, **shared, COMPACT=compact, BLOCK=block, num_warps=_WARPS)


def _scratch(count: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Candidates' logits and ids, how many there are, and each row's peak, mass and bound."""
    return (
        torch.empty((count, CAPACITY), dtype=torch.float32, device=device),
        torch.empty((count, CAPACITY), dtype=torch.int32, device=device),
        torch.empty(count, dtype=torch.int32, device=device),
        torch.empty((count, 3), dtype=torch.float32, device=device),
    )
