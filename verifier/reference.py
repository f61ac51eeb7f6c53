"""The trusted model, by transformers: slow next to vLLM, and obviously right.

Only output positions get logits, in chunks of rows, so memory grows with neither the sequence nor the vocabulary.
Sequences of a batch are padded on the right under a purely causal mask: nothing real ever attends to padding, so a
row's logits are those of the sequence alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verifier.errors import BadSequence, ReferenceTooSmall, ReferenceUnreadable
from verifier.kernels_rows import sent
from verifier.sequences import TokenSequence

BATCH_TOKENS = 2048  # of one forward pass, padding included
CHUNK_BYTES = 64 * 2**20  # of float32 logits alive at a time


@dataclass(frozen=True)
class LogitRows:
    """Raw float32 logits [R, V] of the output tokens `first` … `first` + R − 1 of sequence number `sequence`."""

    sequence: int
    first: int
    logits: torch.Tensor


class TransformersReference:
    """A causal language model from a local directory.

    Args:
        path: directory with config, weights and tokenizer, as `save_pretrained` writes it.
        device: "cpu", "cuda", "cuda:1", …
        batch_tokens: of one forward pass, padding included.
        chunk_bytes: of float32 logits alive at a time.
        dtype: of the weights and the trunk; float32 is both the fastest and the most exact on CPUs without AMX.
        model: taken instead of the directory's weights.

    Raises:
        ReferenceUnreadable: the directory holds no model.
    """

    def __init__(
        self, path: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32,
        batch_tokens: int = BATCH_TOKENS, chunk_bytes: int = CHUNK_BYTES, model: Any = None,
    ) -> None:  # fmt: skip
        self._batch_tokens, self._chunk_bytes = batch_tokens, chunk_bytes
        self.path, self.device, self.dtype = Path(path), torch.device(device), dtype
        self._model = (model or _load(self.path, dtype)).to(self.device)
        self._head = self._model.get_output_embeddings()
        self._trunk = self._model.base_model
        config = self._model.config.get_text_config()
        self.max_length: int = getattr(config, "max_position_embeddings", None) or 2**31
        self.width: int = self._head.weight.shape[0]
        self.end_token_ids: tuple[int, ...] = _end_token_ids(self._model)
        self._shares_head = self._head_is_last_step()

    def check(self, number: int, sequence: TokenSequence, limit: int | None = None) -> None:
        """Raise BadSequence, naming the sequence, if it cannot be scored in a context of `limit` tokens."""
        limit = limit or self.max_length
        prompt, output = sequence.prompt_token_ids, sequence.output_token_ids
        if not prompt:
            raise BadSequence(f"sequence {number}: the prompt is empty; give at least one token (BOS) to score from")
        if len(prompt) + len(output) > limit:
            raise BadSequence(
                f"sequence {number}: {len(prompt) + len(output)} tokens exceed the context of {limit}; shorten it"
            )
        worst = max((*prompt, *output), default=0)
        if worst >= self.width or min((*prompt, *output), default=0) < 0:
            raise BadSequence(
                f"sequence {number}: a token id lies outside the model's {self.width} logits; "
                "use the tokenizer that the provider's model has"
            )

    @torch.inference_mode()
    def logits(self, sequences: Sequence[TokenSequence]) -> Iterator[LogitRows]:
        """Logits of every output token of `sequences`, each of which has passed `check`.

        Pieces of one sequence come in order, and one sequence is complete before the next of its batch begins.
        """
        for batch in packed(sequences, self._batch_tokens):
            yield from self._batch_logits(sequences, batch)

    def _batch_logits(self, sequences: Sequence[TokenSequence], batch: list[int]) -> Iterator[LogitRows]:
        try:
            hidden = self._hidden([sequences[i] for i in batch])
            for row, number in enumerate(batch):
                start = len(sequences[number].prompt_token_ids) - 1
                count = len(sequences[number].output_token_ids)
                yield from self._head_rows(number, hidden[row, start : start + count])
        except torch.OutOfMemoryError as error:
            raise ReferenceTooSmall(
                f"{self.path.name} ran out of memory on {self.device}; use a smaller batch or a larger device"
            ) from error

    def _hidden(self, sequences: list[TokenSequence]) -> torch.Tensor:
        """Last hidden states [B, L, H] (or, where the head cannot be split off, logits [B, L, V])."""
        inputs = [s.prompt_token_ids + s.output_token_ids[:-1] for s in sequences]
        ids = np.zeros((len(inputs), self._padded(max(map(len, inputs)))), np.int64)
        for row, tokens in enumerate(inputs):
            ids[row, : len(tokens)] = tokens
        return self._forward(sent(ids, self.device))

    def _padded(self, length: int) -> int:
        """The length that a batch is padded to."""
        return length

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self._shares_head:
            hidden: torch.Tensor = self._trunk(input_ids=ids, use_cache=False).last_hidden_state
            return hidden
        logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits

    def _head_rows(self, number: int, hidden: torch.Tensor) -> Iterator[LogitRows]:
        step = max(1, self._chunk_bytes // (4 * self.width))
        for first in range(0, len(hidden), step):
            rows = hidden[first : first + step]
            logits = self._head(rows) if self._shares_head else rows
            yield LogitRows(number, first, logits.float().cpu())

    @torch.inference_mode()
    def _head_is_last_step(self) -> bool:
        """Whether logits = head(trunk(x)): not for models that scale or cap their logits."""
        ids = torch.arange(min(self.width, 16), device=self.device)[None]
        whole = self._model(input_ids=ids, use_cache=False).logits
        split = self._head(self._trunk(input_ids=ids, use_cache=False).last_hidden_state)
        # To the bit: a cap on the logits changes small ones only a little.
        return torch.equal(whole, split)


def _load(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not (path / "config.json").is_file():
        raise ReferenceUnreadable(f"{path} holds no model (config.json is missing): give a save_pretrained directory")
    try:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ReferenceUnreadable(f"{path} cannot be loaded as a causal language model: {first}") from error
    return model.eval()


def _end_token_ids(model: Any) -> tuple[int, ...]:
    """The EOS ids of the generation configuration, or else of the model's own."""
    configured = model.generation_config.eos_token_id if model.generation_config else model.config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return tuple(int(token_id) for token_id in listed if token_id is not None)


def packed(sequences: Sequence[TokenSequence], batch_tokens: int) -> list[list[int]]:
    """Numbers of the non-empty sequences in batches of like length and size, at most `batch_tokens` padded tokens each.

    A sequence that is longer has a batch of its own.
    """
    lengths = [len(s.prompt_token_ids) + len(s.output_token_ids) - 1 for s in sequences]
    todo = [i for i, s in enumerate(sequences) if s.output_token_ids]
    order = sorted(todo, key=lambda i: -lengths[i])
    batches = _filled(order, lengths, batch_tokens)
    if not batches:
        return []
    share = -(-sum(lengths[batch[0]] * len(batch) for batch in batches) // len(batches))
    even = _filled(order, lengths, min(share, batch_tokens))
    return even if len(even) == len(batches) else batches


def _filled(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Numbers, by falling length, cut before every one that its batch has no room for."""
    batches: list[list[int]] = []
    for number in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
