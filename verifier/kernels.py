"""Scores of claimed tokens in one sweep over the logits, as Triton kernels; kernels_twin.py is the same in plain torch.

A row of logits is read once; neither noise nor a float32 copy of it is written. The sweep takes the softmax sums,
rescaled to a running maximum. In a row without filters it also runs the race: the claimed token's score is known
beforehand, so noise is finished only where a bound on the random word says that a token may beat it, about once a row,
and blocks whose best logit cannot win take no random word either. Rows with filters go to kernels_filters.py.
Sums run in a fixed order, so results are the same to the bit from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import triton
import triton.language as tl

from verifier.kernels_filters import filter_rows, filter_whole_rows, keep_largest
from verifier.kernels_rows import COLUMNS, REACH, KernelRows, Noise, sent
from verifier.kernels_sums import LEAST, claim, finished, near, raced, stored_sums, summed, taken

# Lanes that a row is cut into, and warps that run them: the fastest of a few on an H100 (bench/NOTES.md). More lanes in
# KEEP find wider supports in one sweep; a row that goes through WHOLE is mostly alone and should not take long.
RACE, KEEP, WHOLE = (512, 4), (2048, 8), (2048, 16)
# Low bits that are zero in every float32 that came from this type.
_IDLE_BITS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}


@triton.jit
def _race_rows(
    logits, stride, chosen, wholes, reals, count, threads, out,
    WIDTH: tl.constexpr, FAMILY: tl.constexpr, REACH: tl.constexpr, WRAPPED: tl.constexpr, APPROX: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores of one row without filters; REACH is more than its noise can be."""
    row, z_row, claimed, own_z, own, inverse, k0, k1, k2, k3 = claim(
        logits, stride, chosen, wholes, reals, count, threads, FAMILY, WRAPPED, APPROX
    )
    lanes = tl.arange(0, BLOCK)
    tops = tl.full([BLOCK], LEAST, tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    above = tl.zeros([BLOCK], tl.int32)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    ids = tl.zeros([BLOCK], tl.int32)
    ahead = tl.zeros([BLOCK], tl.int32)
    for base in range(0, WIDTH, 4 * BLOCK):
        at = base + lanes
        z0, z1 = taken(z_row, at, WIDTH), taken(z_row, at + BLOCK, WIDTH)
        z2, z3 = taken(z_row, at + 2 * BLOCK, WIDTH), taken(z_row, at + 3 * BLOCK, WIDTH)
        largest = tl.maximum(tl.maximum(z0, z1), tl.maximum(z2, z3))
        tops, mass, moment, above = summed(z0, z1, z2, z3, largest, own_z, inverse, tops, mass, moment, above)
        if tl.max(largest, 0) * inverse > own - REACH:
            for v0 in range(base, base + 4 * BLOCK, BLOCK):
                v = v0 + lanes
                z = taken(z_row, v, WIDTH)
                runs = (v != claimed) & (v < WIDTH)
                may = runs & near(z, v, inverse, own, k0, k1, k2, k3, threads, FAMILY, WRAPPED)
                if tl.max(may.to(tl.int32), 0) > 0:
                    best, ids, ahead = raced(z, v, runs, inverse, own, k0, k1, k2, k3, threads, best, ids, ahead,
                                             FAMILY, WRAPPED, APPROX)  # fmt: skip
    out_row = out + row * 8
    peak, total = stored_sums(out_row, own_z, inverse, tops, mass, moment, above)
    wins, _rival = finished(out_row, best, ids, own, claimed, inverse, own_z > float("-inf"))
    probability = tl.exp((own_z - peak) * inverse - tl.log(total))
    if FAMILY == 0:
        probability = wins.to(tl.float32)
    tl.store(out_row + 2, probability)
    tl.store(out_row + 6, tl.sum(ahead, 0).to(tl.float32))
    tl.store(out_row + 7, 0.0)


def score_rows(logits: torch.Tensor, rows: KernelRows) -> torch.Tensor:
    """Scores [R, 8] (kernels_rows.COLUMNS, float32) of logits [R, V] in bfloat16, float16 or float32.

    Rows must be contiguous. Memory beside the logits is 32 KiB a filtered row (64 KiB of float32 logits), and under
    100 bytes any other.
    """
    count, width = logits.shape
    device = logits.device
    out = torch.empty((count, len(COLUMNS)), dtype=torch.float32, device=device)
    filtered = rows.filtered(width)
    wholes, reals = rows.wholes(width, device), rows.reals(device)
    shared = {
        "FAMILY": int(rows.noise), "WRAPPED": rows.noise == Noise.CUDA_RACE and width > rows.threads,
        "APPROX": device.type == "cuda",
    }  # fmt: skip
    for some in (False, True):
        numbers = np.flatnonzero(filtered == some).astype(np.int32)
        if not len(numbers):
            continue
        grid, chosen = (len(numbers),), sent(numbers, device)
        given = (logits, logits.stride(0), chosen, wholes, reals, count, rows.threads, out)
        if some:
            _filter(grid, given, width, {**shared, "IDLE": _IDLE_BITS[logits.dtype]}, rows.edge)
        else:
            block, warps = RACE
            reach = REACH[rows.noise]
            _race_rows[grid](*given, **shared, WIDTH=width, REACH=reach, BLOCK=block, num_warps=warps)
    return out


def _filter(
    grid: tuple[int], given: tuple[object, ...], width: int, shared: Mapping[str, object], edge: float
) -> None:
    out = given[-1]
    assert isinstance(out, torch.Tensor)
    block, warps = KEEP
    sums = torch.empty((len(out), 2), dtype=torch.float32, device=out.device)
    kept = torch.empty((len(out), 4 * block), dtype=torch.int32 if shared["IDLE"] else torch.int64, device=out.device)
    keep_largest[grid](*given, sums, kept, **shared, WIDTH=width, BLOCK=block, num_warps=warps)
    filter_rows[grid](*given, sums, kept, **shared, BLOCK=block, EDGE=edge, num_warps=2 * warps)
    block, warps = WHOLE
    filter_whole_rows[grid](*given, sums, **shared, WIDTH=width, BLOCK=block, EDGE=edge, num_warps=warps)
