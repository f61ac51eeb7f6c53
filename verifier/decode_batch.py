"""Sequences decoded together with a KV cache: rows join and leave between steps (continuous batching)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

LayerStates = tuple[torch.Tensor, torch.Tensor]


class DecodeBatch:
    """The rows in flight: one KV cache, padded on the left to the longest row.

    ``logits`` holds each row's raw next-token logits, float32 ``[rows, vocabulary]``, in the order in which
    the rows joined. One step costs nearly the same for one row as for eight: weights are read once for all.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = model.device
        self.clear()

    def clear(self) -> None:
        """Drop every row."""
        self._states: list[LayerStates] = []
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._device)
        self.logits = torch.empty(0, 0, device=self._device)

    def __len__(self) -> int:
        return len(self._mask)

    def join(self, prompt_token_ids: Sequence[int]) -> None:
        """Prefill one prompt and add it as the last row."""
        ids = torch.tensor([list(prompt_token_ids)], device=self._device)
        states, logits = self._forward(ids, torch.ones_like(ids), [])
        mask = torch.ones_like(ids)
        if len(self):
            states = [_stack(*pair) for pair in zip(self._states, states, strict=True)]
            logits = torch.cat([self.logits, logits])
            length = max(self._mask.shape[1], mask.shape[1])
            mask = torch.cat([_pad_mask(self._mask, length), _pad_mask(mask, length)])
        self._states, self.logits, self._mask = states, logits, mask

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row that is not listed, and the padding that no remaining row needs."""
        chosen = torch.tensor(list(rows), dtype=torch.long, device=self._device)
        self._mask, self.logits = self._mask[chosen], self.logits[chosen]
        longest = int(self._mask.sum(1).max()) if rows else 0
        start = self._mask.shape[1] - longest
        self._mask = self._mask[:, start:]
        self._states = [(k[chosen, :, start:], v[chosen, :, start:]) for k, v in self._states]

    def advance(self, token_ids: Sequence[int]) -> None:
        """Append one token to every row and compute the logits that follow it."""
        ids = torch.tensor(list(token_ids), device=self._device).unsqueeze(1)
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        self._states, self.logits = self._forward(ids, self._mask, self._states)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, states: Iterable[LayerStates]
    ) -> tuple[list[LayerStates], torch.Tensor]:
        from transformers import DynamicCache

        cache: Any = DynamicCache(states)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        with torch.inference_mode():
            out = self._model(**arguments, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return [(layer.keys, layer.values) for layer in cache.layers], out.logits[:, -1].float()


def _stack(above: LayerStates, below: LayerStates) -> LayerStates:
    """Join keys and values ``[rows, heads, length, width]`` along the rows, padded on the left."""
    length = max(above[0].shape[2], below[0].shape[2])
    keys, values = (torch.cat([_pad(a, length), _pad(b, length)]) for a, b in zip(above, below, strict=True))
    return keys, values


def _pad(states: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))


def _pad_mask(mask: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask, (length - mask.shape[1], 0))
