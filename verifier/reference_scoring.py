"""Scoring where the logits are: claims to rows of the kernel, and the kernel's columns back to scores.

What the kernel does not know (penalties, biases, samplers that sort or invert a distribution function) is scored on
the CPU from the same logits, so every claim can be scored next to a GPU model; only its speed differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from verifier import kernels_twin
from verifier.filters import EDGE
from verifier.kernels_rows import COLUMNS, KernelRows, Noise, sent
from verifier.processors import changes_logits
from verifier.reference import LogitRows
from verifier.replay import Claim, score_rows
from verifier.samplers.contract import GumbelContract
from verifier.samplers.greedy import Greedy
from verifier.samplers.ordering import is_filtered
from verifier.samplers.sglang import ERAS as SGLANG_ERAS
from verifier.samplers.sglang import SGLang
from verifier.samplers.torch_cuda import CudaRace
from verifier.samplers.vllm_v2 import ERAS as VLLM_ERAS
from verifier.scoring import TokenScores, clamp_temperature

# A request of a few tokens is not worth a launch of its own: all requests that share a family share one.
Family = tuple[Noise, int]
_FAMILIES = {
    **{id(noise): Noise[f"VLLM_{era}"] for era, noise in VLLM_ERAS.items()},
    id(SGLANG_ERAS["0.5.9"][0]): Noise.SGLANG_059,
    id(SGLANG_ERAS["0.5.18"][0]): Noise.SGLANG_0518,
}


@dataclass(frozen=True)
class Piece:
    """Output tokens `first` … `first` + `count` − 1 of a claim; `number` is the caller's name for the claim."""

    number: int
    claim: Claim
    first: int
    count: int


def chunk_rows(budget: int, width: int, item: int) -> int:
    """Rows of logits [R, width] that fit into `budget` bytes; whole tiles of matrix products, if there is room."""
    rows = max(1, budget // (width * item))
    return rows - rows % 256 if rows > 256 else rows


def family(claim: Claim) -> Family | None:
    """The kernel's noise family of a claim with its grid's threads, or None where only the CPU can score it."""
    contract, params = claim.contract, claim.params
    if changes_logits(params):
        return None
    if params.is_greedy or isinstance(contract, Greedy):
        return Noise.GREEDY, 0
    if type(contract) is CudaRace:
        plain = contract.dtype == "float32" and contract.row == 0 and contract.batch == 1
        return (Noise.CUDA_RACE, contract.grid_threads) if plain else None
    by_id = isinstance(contract, SGLang) and contract.index == "id" and not is_filtered(params)
    if by_id or type(contract) is GumbelContract:
        assert isinstance(contract, GumbelContract | SGLang)
        noise = _FAMILIES.get(id(contract.noise))
        return None if noise is None else (noise, 0)
    return None


def score_pieces(
    logits: torch.Tensor, pieces: Sequence[Piece], end_token_ids: Sequence[int], undrawn: dict[int, int]
) -> torch.Tensor:
    """Scores [R, 8] (kernels_rows.COLUMNS) on the logits' device; rows of logits [R, V] follow the pieces' order.

    Args:
        undrawn: per claim number, for how many earlier tokens its engine drew nothing; brought up to date.
    """
    ends = np.cumsum([piece.count for piece in pieces])
    groups: dict[Family | None, list[int]] = {}
    for place, piece in enumerate(pieces):
        groups.setdefault(family(piece.claim), []).append(place)
    if len(groups) == 1 and None not in groups:
        return _by_kernel(logits, pieces, next(iter(groups)))
    out = torch.empty((len(logits), len(COLUMNS)), dtype=torch.float32, device=logits.device)
    for shared, places in groups.items():
        if shared is None:
            for place in places:
                rows = slice(int(ends[place]) - pieces[place].count, int(ends[place]))
                out[rows] = _by_cpu(logits[rows], pieces[place], end_token_ids, undrawn).to(logits.device)
        else:
            chosen = [pieces[place] for place in places]
            spans = [np.arange(ends[place] - pieces[place].count, ends[place]) for place in places]
            index = sent(np.concatenate(spans), logits.device)
            out[index] = _by_kernel(logits[index], chosen, shared)
    return out


def _by_kernel(logits: torch.Tensor, pieces: Sequence[Piece], shared: Family | None) -> torch.Tensor:
    assert shared is not None
    rows = kernel_rows(pieces, *shared, width=logits.shape[1])
    if not logits.is_cuda:
        return kernels_twin.score_rows(logits, rows)
    from verifier.kernels import score_rows as score_on_device

    return score_on_device(logits, rows)


def kernel_rows(pieces: Sequence[Piece], noise: Noise, threads: int, *, width: int) -> KernelRows:
    """The kernel's rows of claims that share a family."""
    counts = [piece.count for piece in pieces]
    params = [clamp_temperature(p.claim.params, p.claim.contract.lowest_temperature) for p in pieces]
    # One fill of V values takes this many of the generator's blocks (torch_cuda.CudaRace).
    blocks = (width - 1) // (4 * threads) + 1 if threads else 1

    def whole(values: Sequence[int]) -> NDArray[np.int64]:
        return np.repeat(np.array([_int64(value) for value in values], np.int64), counts)

    def real(values: Sequence[float]) -> NDArray[np.float32]:
        return np.repeat(np.array(values, np.float32), counts)

    return KernelRows(
        noise=noise, threads=threads,
        claimed=np.concatenate([_claimed(piece) for piece in pieces]),
        seeds=whole([piece.claim.seed for piece in pieces]),
        positions=np.concatenate([_positions(piece) for piece in pieces]) * blocks,
        top_k=whole([max(p.top_k, 0) for p in params]),
        temperature=real([1.0 if p.is_greedy else p.temperature for p in params]),
        top_p=real([p.top_p for p in params]), min_p=real([p.min_p for p in params]),
        edge=EDGE,
    )  # fmt: skip


def _int64(value: int) -> int:
    """The signed value of the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def _claimed(piece: Piece) -> NDArray[np.int64]:
    return np.asarray(piece.claim.sequence.output_token_ids[piece.first : piece.first + piece.count], np.int64)


def _positions(piece: Piece) -> NDArray[np.int64]:
    sequence = piece.claim.sequence
    all_of_them = piece.claim.contract.positions(len(sequence.prompt_token_ids), piece.first + piece.count)
    return np.asarray(all_of_them[piece.first :], np.int64)


def _by_cpu(
    logits: torch.Tensor, piece: Piece, end_token_ids: Sequence[int], undrawn: dict[int, int]
) -> torch.Tensor:
    rows = LogitRows(piece.number, piece.first, logits.float().cpu())
    scores = score_rows(rows, piece.claim, end_token_ids, undrawn.get(piece.number, 0))
    undrawn[piece.number] = undrawn.get(piece.number, 0) + int(scores.undrawn.sum())
    columns = [
        scores.predicted_ids, scores.margin, scores.prob, scores.logprob, scores.entropy, scores.logit_rank,
        scores.gumbel_rank, scores.edge + 2.0 * scores.undrawn,
    ]  # fmt: skip
    return torch.from_numpy(np.stack([np.asarray(column, np.float32) for column in columns], 1))


def token_scores(columns: NDArray[np.float32], token_ids: Sequence[int]) -> TokenScores:
    """Scores of the claimed `token_ids` [R] from the kernel's columns [R, 8]."""
    winner, margin, prob, logprob, entropy, logit_rank, gumbel_rank, flags = np.ascontiguousarray(columns.T)
    return TokenScores(
        token_ids=np.asarray(token_ids, np.int64), predicted_ids=winner.astype(np.int64), prob=prob, logprob=logprob,
        entropy=entropy, margin=margin, logit_rank=logit_rank.astype(np.int32), gumbel_rank=gumbel_rank,
        edge=flags.astype(np.int64) % 2 == 1, undrawn=flags >= 2,
    )  # fmt: skip
