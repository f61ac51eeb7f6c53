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
from verifier.reference_scoring import Piece, chunk_rows, score_pieces, token_scores
from verifier.replay import Claim
from verifier.scoring import TokenScores

BATCH_TOKENS = 16384
GRAIN = 128  # tokens that a compiled batch's length is a multiple of
CHUNK_BYTES = 512 * 2**20  # of logits alive at a time, in the model's own dtype


class CudaReference(TransformersReference):
    """A causal language model from a local directory, on one GPU.

    Args:
        path, device, batch_tokens, chunk_bytes, dtype, model: as for TransformersReference.
        compiled: compile the model's layers, all of them at once since they are alike. The first batch takes some
            seconds longer, as does the first one of another shape; lengths are padded so that few shapes occur.

    Raises:
        ReferenceUnreadable: the directory holds no model, or torch finds no such GPU.
    """

    def __init__(
        self, path: str | Path, *, device: str = "cuda", batch_tokens: int = BATCH_TOKENS,
        chunk_bytes: int = CHUNK_BYTES, dtype: torch.dtype = torch.bfloat16, model: Any = None, compiled: bool = False,
    ) -> None:  # fmt: skip
        try:
            super().__init__(
                path, device=device, batch_tokens=batch_tokens, chunk_bytes=chunk_bytes, dtype=dtype, model=model
            )
        except torch.OutOfMemoryError as error:
            raise ReferenceUnreadable(f"{Path(path).name} does not fit on {device}: use a larger GPU") from error
        except RuntimeError as error:
            # No kernel image for this GPU, a driver that is too old, a GPU that fell off the bus.
            first = str(error).strip().splitlines()[0]
            raise ReferenceUnreadable(f"{Path(path).name} does not run on {device}: {first}") from error
        self._compiled = compiled
        if compiled:
            for layer in getattr(self._trunk, "layers", [self._trunk]):
                layer.compile()

    @torch.inference_mode()
    def scores(
        self, claims: Sequence[Claim], on_tokens: Callable[[int], None] | None = None
    ) -> list[TokenScores]:
        """Scores of each claim's output tokens, as `verifier.replay.replay` promises."""
        results = [TokenScores.empty() for _ in claims]
        running: tuple[list[int], torch.Tensor] | None = None
        for batch in packed([claim.sequence for claim in claims], self._batch_tokens):
            for started in self._started(claims, batch):
                # What was started before is read while the GPU works on this.
                if running:
                    self._read(claims, *running, results, on_tokens)
                running = started
        if running:
            self._read(claims, *running, results, on_tokens)
        return results

    def _read(
        self, claims: Sequence[Claim], batch: list[int], columns: torch.Tensor, results: list[TokenScores],
        on_tokens: Callable[[int], None] | None,
    ) -> None:  # fmt: skip
        """Wait for a batch's columns and put its claims' scores into `results`."""
        ends = np.cumsum([len(claims[number].sequence.output_token_ids) for number in batch])
        for number, part in zip(batch, np.split(columns.cpu().numpy(), ends[:-1]), strict=True):
            results[number] = token_scores(part, claims[number].sequence.output_token_ids)
            if on_tokens:
                on_tokens(len(part))

    def _started(self, claims: Sequence[Claim], batch: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """A batch with its columns on the GPU; where it does not fit into memory, its halves."""
        try:
            columns = self._columns(claims, batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ReferenceTooSmall(
                    f"{self.path.name} ran out of memory on {self.device} over one sequence; use a larger device"
                ) from error
            columns = None
        if columns is not None:
            yield batch, columns
            return
        torch.cuda.empty_cache()
        middle = len(batch) // 2
        yield from self._started(claims, batch[:middle])
        yield from self._started(claims, batch[middle:])

    def _padded(self, length: int) -> int:
        return min(-(-length // GRAIN) * GRAIN, self.max_length) if self._compiled else length

    def _columns(self, claims: Sequence[Claim], batch: list[int]) -> torch.Tensor:
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
        step = chunk_rows(self._chunk_bytes, self.width, self._head.weight.element_size())
        for first in range(0, len(rows), step):
            taken = flat[index[first : first + step]]
            logits = self._head(taken) if self._shares_head else taken
            pieces = pieces_between(claims, batch, first, first + len(taken))
            out[first : first + len(taken)] = score_pieces(logits, pieces, self.end_token_ids, undrawn)
        return out


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
