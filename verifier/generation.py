"""The demo provider's engine: a transformers model that samples by a contract from each request's seed.

One thread decodes all requests in flight together (`DecodeBatch`); answers reach asyncio token by token. What
comes out is what vLLM with that contract would return, so the verifier meets a provider that generates.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from verifier.answer_text import AnswerText
from verifier.cheats import Cheats, round_to_int4, with_hidden_prompt
from verifier.decode_batch import DecodeBatch
from verifier.errors import InputError, ReferenceUnreadable
from verifier.references import torch_device
from verifier.samplers import SamplerContract, contract
from verifier.sampling_params import SamplingParams
from verifier.scoring import clamp_temperature
from verifier.speculation import is_servable, is_speculating, speculated


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A rendered conversation: the ids that the provider reports, and the ids its model really reads."""

    token_ids: list[int]
    served: list[int]


@dataclass(frozen=True, kw_only=True)
class Token:
    """One sampled token of one choice.

    ``text`` is the text that became certain with it (maybe empty, maybe of earlier tokens too). ``logprob``
    and ``top_logprobs`` (id, logprob; best first) are of the raw logits. Only a choice's last token has a
    ``finish_reason``.
    """

    choice: int
    token_id: int
    text: str
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None


Event = Token | Exception


@dataclass(kw_only=True, eq=False)
class Row:
    """One choice being generated. Only the engine's thread touches it, but for ``cancelled``."""

    choice: int
    served: list[int]
    seed: int
    params: SamplingParams
    max_tokens: int
    stop_ids: frozenset[int]
    end_ids: frozenset[int]
    top: int
    text: AnswerText
    deliver: Callable[[Event], None]
    generated: int = 0
    undrawn: int = 0
    output: list[int] = field(default_factory=list)
    last_id: int = field(default=-1)
    finished: bool = False
    cancelled: bool = False


class GenerationEngine:
    """Generates answers for many requests at once, each from its own seed.

    Args:
        model: the weights that are served, already on their device.
        tokenizer: its tokenizer with a chat template.
        sampler: contract whose noise decides every token.
        cheats: what the provider does dishonestly; nothing by default.
        name: the model's name as clients write it.
        max_rows: choices decoded together; more wait their turn.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        sampler: SamplerContract,
        name: str,
        cheats: Cheats | None = None,
        max_rows: int = 16,
    ) -> None:
        self.name, self.cheats = name, cheats or Cheats()
        self.fingerprint = f"seedproof-{sampler.id}"
        self.max_model_len = int(getattr(model.config, "max_position_embeddings", 0) or 4096)
        self._tokenizer, self._sampler, self._max_rows = tokenizer, sampler, max_rows
        self._end_ids = end_token_ids(model, tokenizer)
        self._batch = DecodeBatch(model)
        self._rows: list[Row] = []
        self._arrivals: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after its current step; answers in flight end with an error."""
        self._arrivals.put(None)
        self._thread.join()

    def prompt(self, messages: Sequence[dict[str, Any]], **template: Any) -> Prompt:
        """Render a conversation by the model's own chat template.

        Raises:
            ValueError: the template refuses these messages.
        """
        token_ids = self._render(messages, template)
        hidden = self.cheats.system_prompt
        served = token_ids if hidden is None else self._render(with_hidden_prompt(messages, hidden), template)
        return Prompt(token_ids=token_ids, served=served)

    def token_text(self, token_id: int) -> str:
        """One token alone as text; pieces of a character become U+FFFD."""
        return str(self._tokenizer.decode([token_id]))

    async def generate(
        self,
        prompt: Prompt,
        *,
        sampling: Mapping[str, Any],
        max_tokens: int,
        seed: int | None = None,
        n: int = 1,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        top_logprobs: int = 0,
    ) -> AsyncGenerator[Token, None]:
        """Yield the tokens of ``n`` answers as they are sampled, interleaved; each ends with a finish reason.

        Choice ``i`` draws from the contract's seed for it (vLLM: ``seed + i``). Without a seed, or when the
        provider ignores it, a random one is drawn, as engines do. Leaving the loop early cancels the rest.
        """
        if seed is None or self.cheats.ignore_seed:
            seed = secrets.randbits(62)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def deliver(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits for this any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        rows = [
            Row(
                choice=choice,
                served=prompt.served,
                seed=self._sampler.choice_seed(seed, choice),
                params=self._params(sampling),
                max_tokens=max_tokens,
                stop_ids=frozenset(stop_token_ids),
                end_ids=frozenset() if ignore_eos else self._end_ids,
                top=top_logprobs,
                text=AnswerText(self._decode, stop),
                deliver=deliver,
            )
            for choice in range(n)
        ]
        try:
            for row in rows:
                self._arrivals.put(row)
            unfinished = n
            while unfinished:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                unfinished -= event.finish_reason is not None
                yield event
        finally:
            for row in rows:
                row.cancelled = True

    def _params(self, sampling: Mapping[str, Any]) -> SamplingParams:
        forced = {} if self.cheats.temperature is None else {"temperature": self.cheats.temperature}
        params = SamplingParams.from_fields({**sampling, **forced})
        return clamp_temperature(params, self._sampler.lowest_temperature)

    def _render(self, messages: Sequence[dict[str, Any]], template: Mapping[str, Any]) -> list[int]:
        from jinja2 import TemplateError

        try:
            ids = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_dict=False, **template
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"the chat template cannot render these messages: {error}") from error
        return [int(i) for i in ids]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _run(self) -> None:
        while self._admit():
            try:
                self._step()
            except Exception as error:  # the thread must outlive any answer; whoever waits learns why
                self._abandon(error)
        self._abandon(InputError("the provider is shutting down"))

    def _admit(self) -> bool:
        """Take waiting rows while there is room, sleeping when there is nothing to do; False when closed."""
        while len(self._rows) < self._max_rows:
            try:
                row = self._arrivals.get(block=not self._rows)
            except queue.Empty:
                return True
            if row is None:
                return False
            if not row.cancelled:
                self._start(row)
        return True

    def _start(self, row: Row) -> None:
        try:
            self._batch.join(row.served)
        except Exception as error:  # one prompt that cannot be read must not end the others
            row.deliver(error)
        else:
            self._rows.append(row)

    def _step(self) -> None:
        """Sample one token for every row, then let the finished leave and the others advance."""
        logits = self._batch.logits
        chosen = self._choose(logits)
        logprobs = torch.log_softmax(logits, dim=-1)
        for row, token_id, row_logprobs in zip(self._rows, chosen, logprobs, strict=True):
            self._emit(row, token_id, row_logprobs)
        going = [i for i, row in enumerate(self._rows) if not (row.finished or row.cancelled)]
        if len(going) < len(self._rows):
            self._batch.keep(going)
            self._rows = [self._rows[i] for i in going]
        if self._rows:
            self._batch.advance([row.last_id for row in self._rows])

    def _choose(self, logits: torch.Tensor) -> list[int]:
        rows = logits.cpu().numpy()
        return [self._draw(row, rows[i : i + 1]) for i, row in enumerate(self._rows)]

    def _draw(self, row: Row, logits: NDArray[np.float32]) -> int:
        """The token that the contract draws from one row of raw logits ``[1, V]``."""
        winner = logits.argmax(1)
        if row.params.is_greedy:
            return int(winner[0])
        if is_speculating(self._sampler):
            return self._speculate(row, logits)
        tempered = logits.astype(np.float64) / row.params.temperature
        draws = self._sampler.draw(
            logits,
            np.logaddexp.reduce(tempered, axis=1),
            winner,
            seed=row.seed,
            positions=self._sampler.positions(len(row.served), row.generated + 1)[-1:] - row.undrawn,
            params=row.params,
        )
        row.undrawn += draws.skipped
        return int(draws.winners[0])

    def _speculate(self, row: Row, logits: NDArray[np.float32]) -> int:
        """The next token where a drafter proposes: what was proposed follows from the tokens so far."""
        drawn = speculated(
            logits, row.generated, row.served, [*row.output, int(logits.argmax())],
            seed=row.seed, params=row.params, contract=self._sampler,
        )  # fmt: skip
        return int(drawn.predicted_ids[0])

    def _emit(self, row: Row, token_id: int, logprobs: torch.Tensor) -> None:
        row.generated, row.last_id = row.generated + 1, token_id
        row.output.append(token_id)
        text = row.text.push(token_id)
        reason, stopped = finish(row, token_id)
        row.finished = reason is not None
        best = torch.topk(logprobs, row.top)
        row.deliver(
            Token(
                choice=row.choice,
                token_id=token_id,
                text=text + (row.text.finish() if reason else ""),
                logprob=float(logprobs[token_id]),
                top_logprobs=tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)),
                finish_reason=reason,
                stop_reason=stopped,
            )
        )

    def _abandon(self, error: Exception) -> None:
        for row in self._rows:
            row.deliver(error)
        self._rows = []
        self._batch.clear()


def finish(row: Row, token_id: int) -> tuple[str | None, str | int | None]:
    """vLLM's finish reason and stop reason after this token: ids, then stop strings, then length."""
    if token_id in row.end_ids:
        return "stop", None
    if token_id in row.stop_ids:
        return "stop", token_id
    if row.text.stopped_by is not None:
        return "stop", row.text.stopped_by
    return ("length" if row.generated >= row.max_tokens else None), None


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's and those of the model's generation configuration."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*listed, tokenizer.eos_token_id] if i is not None)


def load_engine(
    directory: Path,
    *,
    sampler_id: str,
    name: str,
    cheats: Cheats | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    max_rows: int = 16,
) -> GenerationEngine:
    """Load a model's directory (or the one a cheat substitutes) and start an engine on it.

    Raises:
        ReferenceUnreadable: the directory holds no model and tokenizer that transformers can load.
        InputError: ``sampler_id`` names no contract that can be served, or ``device`` no device of this machine.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    sampler, where = contract(sampler_id), torch_device(device)
    if not is_servable(sampler):
        raise InputError(f"{sampler_id} names no drafter to serve with: write ngram=SHORTEST-LONGEST,drafts=COUNT")
    cheats = cheats or Cheats()
    served = cheats.model or directory
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(served)
        loaded: Any = AutoModelForCausalLM.from_pretrained(served, dtype=getattr(torch, dtype))
        model = loaded.to(where).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ReferenceUnreadable(f"{served} holds no model that transformers can load: {error}") from error
    if cheats.int4:
        round_to_int4(model)
    return GenerationEngine(model, tokenizer, sampler=sampler, name=name, cheats=cheats, max_rows=max_rows)
