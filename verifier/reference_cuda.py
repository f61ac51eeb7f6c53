"""The trusted model by transformers on a GPU: trunk, head and scoring stay there; eight numbers a token come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verifier.errors import ReferenceTooSmall, ReferenceUnreadable
from verifier.kernels_rows import COLUMNS, sent
from verifier.reference import TransformersReference, packed
from verifier.reference_scoring import Piece, score_pieces, token_scores
from verifier.replay import Claim
from verifier.scoring import TokenScores

BATCH_TOKENS = 16384
CHUNK_BYTES = 512 * 2**20  # of logits alive at a time, in the model's own dtype


class CudaReference(TransformersReference):
    """A causal language model from a local directory, on one GPU.

    Args:
        path, device, batch_tokens, chunk_bytes, dtype, model: as for TransformersReference.
        compiled: compile the trunk; it takes a minute at the first batch of each length, and pays after many.

    Raises:
        ReferenceUnreadable: the directory holds no model, or torch finds no such GPU.
    """

    def __init__(
        self, path: str | Path, *, device: str = "cuda", batch_tokens: int = BATCH_TOKENS,
        chunk_bytes: int = CHUNK_BYTES, dtype: torch.dtype = torch.bfloat16, model: Any = None, compiled: bool = False,
    ) -> None:  # fmt: skip
        if not torch.cuda.is_available():
            raise ReferenceUnreadable(
                f"device {device!r} needs a GPU that torch {torch.__version__} can use, and it finds none: "
                "check the driver and that torch is a CUDA build, or take device='cpu'"
            )
        super().__init__(
            path, device=device, batch_tokens=batch_tokens, chunk_bytes=chunk_bytes, dtype=dtype, model=model
        )
        if compiled:
            self._trunk = torch.compile(self._trunk)

    @torch.inference_mode()
    def scores(
        self, claims: Sequence[Claim], on_tokens: Callable[[int], None] | None = None
    ) -> list[TokenScores]:
        """Scores of each claim's output tokens, as `verifier.replay.replay` promises."""
        results = [TokenScores.empty() for _ in claims]
        for batch in packed([claim.sequence for claim in claims], self._batch_tokens):
            for number, scores in self._batch_scores(claims, batch):
                results[number] = scores
                if on_tokens:
                    on_tokens(len(scores))
        return results

    def _batch_scores(self, claims: Sequence[Claim], batch: list[int]) -> Iterator[tuple[int, TokenScores]]:
        """Of one batch; where it does not fit into memory, of its halves."""
        try:
            columns = self._columns(claims, batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ReferenceTooSmall(
                    f"{self.path.name} ran out of memory on {self.device} over one sequence; use a larger device"
                ) from error
            columns = None
        if columns is None:
            torch.cuda.empty_cache()
            middle = len(batch) // 2
            yield from self._batch_scores(claims, batch[:middle])
            yield from self._batch_scores(claims, batch[middle:])
            return
        ends = np.cumsum([len(claims[number].sequence.output_token_ids) for number in batch])
        for number, part in zip(batch, np.split(columns, ends[:-1]), strict=True):
            yield number, token_scores(part, claims[number].sequence.output_token_ids)

    def _columns(self, claims: Sequence[Claim], batch: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The kernel's columns [R, 8] of all output tokens of a batch, claim by claim."""
        sequences = [claims[number].sequence for number in batch]
        hidden = self._hidden(sequences)
        starts = [len(s.prompt_token_ids) - 1 for s in sequences]
        rows = np.concatenate([
            row * hidden.shape[1] + np.arange(start, start + len(s.output_token_ids))
            for row, (start, s) in enumerate(zip(starts, sequences, strict=True))
        ])  # fmt: skip
        flat = hidden.flatten(0, 1)
        index = sent(rows, self.device)
        out = torch.empty((len(rows), len(COLUMNS)), dtype=torch.float32, device=self.device)
        undrawn: dict[int, int] = {}
        step = max(1, self._chunk_bytes // (self.width * self._head.weight.element_size()))
        for first in range(0, len(rows), step):
            taken = flat[index[first : first + step]]
            logits = self._head(taken) if self._shares_head else taken
            pieces = pieces_between(claims, batch, first, first + len(taken))
            out[first : first + len(taken)] = score_pieces(logits, pieces, self.end_token_ids, undrawn)
        return out.cpu().numpy()


def pieces_between(claims: Sequence[Claim], batch: Sequence[int], first: int, last: int) -> list[Piece]:
    """What rows `first` … `last` − 1 of a batch's output tokens, laid end to end, belong to."""
    pieces, start = [], 0
    for number in batch:
        count = len(claims[number].sequence.output_token_ids)
        low, high = max(first, start), min(last, start + count)
        if low < high:
            pieces.append(Piece(number, claims[number], low - start, high - low))
        start += count
    return pieces
