"""Inside vLLM's worker: score claimed tokens next to `compute_logits`, and keep eight numbers a token.

vLLM mixes `ScoringExtension` into its worker class (`worker_extension_cls`), on every rank. `start_scoring` then hooks
into the one object whose step sees the hidden states of prompt tokens:
    V2 runner   model_runner.prompt_logprobs_worker, replaced by `ScoringPromptLogprobs`, which wraps it
    V1 runner   model_runner._get_prompt_logprobs_dict, which every step calls
Claims travel in SamplingParams.extra_args, as bytes: vLLM copies what is in there deeply, which costs a list of tokens
more than its scores. vLLM's internals are nobody's promise: what does not look as it did when this was written
(vLLM 0.26 to 0.33) is refused before any request.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import torch

from verifier.kernels_rows import sent
from verifier.reference_scoring import Piece, chunk_rows, score_pieces
from verifier.replay import Claim
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.sequences import TokenSequence

KEY = "seedproof"
CHUNK_BYTES = 512 * 2**20  # of logits alive at a time

_V2_HOOK = ("logits_fn", "hidden_states", "input_batch", "all_token_ids", "num_computed_tokens", "prompt_lens")
_V1_HOOK = ("hidden_states", "num_scheduled_tokens")

Logits = Callable[[torch.Tensor], "torch.Tensor | None"]
Span = tuple[str, int, int, int]
"""A request's id, its first row in the step's hidden states, the prompt position of that row, and its rows."""


def packed_claim(number: int, claim: Claim, *, raw: bool = False) -> bytes:
    """What a worker needs to know of a claim, as JSON; `raw` asks for logits instead of scores."""
    sequence = claim.sequence
    return orjson.dumps({
        "number": number, "raw": raw, "prompt": sequence.prompt_token_ids, "output": sequence.output_token_ids,
        "seed": (claim.seed + 2**63) % 2**64 - 2**63, "contract": claim.contract.id, "params": _plain(claim.params),
    })  # fmt: skip


def _plain(params: SamplingParams) -> dict[str, Any]:
    defaults = vars(SamplingParams())
    changed = {name: value for name, value in vars(params).items() if value != defaults[name]}
    if "logit_bias" in changed:
        changed["logit_bias"] = {str(token_id): bias for token_id, bias in params.logit_bias.items()}
    return changed


def unpacked_claim(packed: bytes) -> tuple[int, Claim, bool]:
    """The number, claim and `raw` that `packed_claim` packed."""
    values = orjson.loads(packed)
    params = {name: tuple(map(tuple, value)) if name == "bad_words_token_ids" else value
              for name, value in values["params"].items()}  # fmt: skip
    sequence = TokenSequence(values["prompt"], values["output"])
    rules = contract(values["contract"])
    claim = Claim(sequence, values["seed"], SamplingParams.from_fields(params), rules)
    return values["number"], claim, values["raw"]


@dataclass
class StepScorer:
    """Scores the output tokens of each step's rows; results stay on the GPU until taken."""

    end_token_ids: Sequence[int]
    width: int
    claims: dict[str, tuple[int, Claim, bool]] = field(default_factory=dict)
    results: list[tuple[list[Piece], torch.Tensor]] = field(default_factory=list)
    logits: list[tuple[Piece, torch.Tensor]] = field(default_factory=list)
    undrawn: dict[int, int] = field(default_factory=dict)

    def admit(self, request_id: str, extra_args: Mapping[str, Any] | None) -> None:
        """Remember a request's claim, if it has one."""
        if extra_args and KEY in extra_args:
            self.claims[request_id] = unpacked_claim(extra_args[KEY])
            self.undrawn.pop(self.claims[request_id][0], None)

    def forget(self, request_id: str) -> None:
        """A request has left the worker."""
        self.claims.pop(request_id, None)

    def step(self, logits_of: Logits, hidden: torch.Tensor, spans: Iterable[Span]) -> None:
        """Score what of this step's rows [R, H] precedes a claimed token, or keep its logits."""
        pieces: dict[bool, list[Piece]] = {False: [], True: []}
        rows: dict[bool, list[np.ndarray[Any, Any]]] = {False: [], True: []}
        for request_id, start, position, count in spans:
            if request_id not in self.claims:
                continue
            number, claim, raw = self.claims[request_id]
            before = len(claim.sequence.prompt_token_ids) - 1
            low = max(position, before)
            high = min(position + count, before + len(claim.sequence.output_token_ids))
            if low < high:
                pieces[raw].append(Piece(number, claim, low - before, high - low))
                rows[raw].append(np.arange(start + low - position, start + high - position))
        for raw, keep in ((False, self._score), (True, self._keep)):
            if pieces[raw]:
                for parts, logits in self._chunks(logits_of, hidden, pieces[raw], np.concatenate(rows[raw])):
                    keep(parts, logits)

    def _chunks(
        self, logits_of: Logits, hidden: torch.Tensor, pieces: list[Piece], rows: np.ndarray[Any, Any]
    ) -> Iterator[tuple[list[Piece], torch.Tensor]]:
        index = sent(rows, hidden.device)
        step = chunk_rows(CHUNK_BYTES, self.width, hidden.element_size())
        for first in range(0, len(rows), step):
            logits = logits_of(hidden[index[first : first + step]])
            if logits is not None:  # None: another tensor-parallel rank has them
                yield cut(pieces, first, min(first + step, len(rows))), logits.contiguous()

    def _score(self, pieces: list[Piece], logits: torch.Tensor) -> None:
        self.results.append((pieces, score_pieces(logits, pieces, self.end_token_ids, self.undrawn)))

    def _keep(self, pieces: list[Piece], logits: torch.Tensor) -> None:
        parts = torch.split(logits.cpu(), [piece.count for piece in pieces])
        self.logits.extend(zip(pieces, parts, strict=True))

    def take(self) -> list[tuple[int, int, bytes]]:
        """Claim number, first output token and float32 columns of all results since the last call."""
        if not self.results:
            return []
        columns = torch.cat([scores for _, scores in self.results]).cpu().numpy()
        pieces = [piece for parts, _ in self.results for piece in parts]
        ends = np.cumsum([piece.count for piece in pieces])
        self.results.clear()
        parts = np.split(columns, ends[:-1])
        return [(p.number, p.first, part.tobytes()) for p, part in zip(pieces, parts, strict=True)]


def packed_logits(logits: torch.Tensor) -> tuple[str, bytes]:
    """Name of the dtype, and the bytes."""
    return str(logits.dtype).removeprefix("torch."), logits.contiguous().view(torch.uint8).numpy().tobytes()


def unpacked_logits(dtype: str, data: bytes, width: int) -> torch.Tensor:
    """What `packed_logits` packed, as float32 [R, width]."""
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).view(-1, width).float()


def cut(pieces: Sequence[Piece], first: int, last: int) -> list[Piece]:
    """Rows `first` … `last` − 1 of pieces laid end to end."""
    found, start = [], 0
    for piece in pieces:
        low, high = max(first, start), min(last, start + piece.count)
        if low < high:
            found.append(Piece(piece.number, piece.claim, piece.first + low - start, high - low))
        start += piece.count
    return found


class ScoringPromptLogprobs:
    """vLLM V2's PromptLogprobsWorker with a scorer beside it."""

    def __init__(self, wrapped: Any, scorer: StepScorer) -> None:
        self._wrapped, self._scorer = wrapped, scorer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def add_request(self, req_id: str, req_idx: int, sampling_params: Any) -> None:
        """As vLLM's; a claim of ours is remembered."""
        self._wrapped.add_request(req_id, req_idx, sampling_params)
        self._scorer.admit(req_id, sampling_params.extra_args)

    def remove_request(self, req_id: str) -> None:
        """As vLLM's."""
        self._wrapped.remove_request(req_id)
        self._scorer.forget(req_id)

    def compute_prompt_logprobs(
        self, logits_fn: Logits, hidden_states: torch.Tensor, input_batch: Any, *rest: Any
    ) -> Any:
        """As vLLM's, after scoring."""
        starts, computed = input_batch.query_start_loc_np, input_batch.num_computed_prefill_tokens_np
        spans = [
            (request_id, int(starts[i]), int(computed[i]), int(starts[i + 1] - starts[i]))
            for i, request_id in enumerate(input_batch.req_ids)
        ]
        self._scorer.step(logits_fn, hidden_states, spans)
        return self._wrapped.compute_prompt_logprobs(logits_fn, hidden_states, input_batch, *rest)


class ScoringExtension:
    """Methods that vLLM adds to its worker; `collective_rpc` calls them by name."""

    model_runner: Any

    def start_scoring(self, end_token_ids: list[int], width: int) -> str:
        """Hook in; returns an empty text, or what of this vLLM looks different from the ones we know."""
        scorer = StepScorer(end_token_ids, width)
        self._seedproof_scorer = scorer
        runner = self.model_runner
        if hasattr(runner, "prompt_logprobs_worker"):
            return _hook_v2(runner, scorer)
        if hasattr(runner, "_get_prompt_logprobs_dict"):
            return _hook_v1(runner, scorer)
        return f"{type(runner).__name__} has neither prompt_logprobs_worker nor _get_prompt_logprobs_dict"

    def take_scores(self) -> list[tuple[int, int, bytes]]:
        """Results since the last call (StepScorer.take)."""
        return self._seedproof_scorer.take()

    def take_logits(self) -> list[tuple[int, int, str, bytes]]:
        """Claim number, first output token, dtype and logits of all that were asked for raw since the last call."""
        kept, self._seedproof_scorer.logits = self._seedproof_scorer.logits, []
        return [(piece.number, piece.first, *packed_logits(logits)) for piece, logits in kept]


def _hook_v2(runner: Any, scorer: StepScorer) -> str:
    worker = runner.prompt_logprobs_worker
    if worker is None:  # not the last pipeline rank
        return ""
    if isinstance(worker, ScoringPromptLogprobs):
        worker = worker._wrapped
    found = tuple(inspect.signature(worker.compute_prompt_logprobs).parameters)
    if found != _V2_HOOK:
        return f"compute_prompt_logprobs takes {', '.join(found)}"
    runner.prompt_logprobs_worker = ScoringPromptLogprobs(worker, scorer)
    return ""


def _hook_v1(runner: Any, scorer: StepScorer) -> str:
    wrapped = runner._get_prompt_logprobs_dict
    found = tuple(inspect.signature(wrapped).parameters)
    missing = [name for name in ("requests", "input_batch", "query_start_loc") if not hasattr(runner, name)]
    if found != _V1_HOOK or missing:
        return f"_get_prompt_logprobs_dict takes {', '.join(found)}; missing: {', '.join(missing) or 'nothing'}"

    def scoring(hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        spans = []
        for request_id, count in num_scheduled_tokens.items():
            request = runner.requests[request_id]
            if request_id not in scorer.claims:
                scorer.admit(request_id, request.sampling_params and request.sampling_params.extra_args)
            start = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request_id]])
            spans.append((request_id, start, int(request.num_computed_tokens), int(count)))
        scorer.step(runner.model.compute_logits, hidden_states, spans)
        for request_id in scorer.claims.keys() - runner.requests.keys():
            scorer.forget(request_id)
        return wrapped(hidden_states, num_scheduled_tokens)

    runner._get_prompt_logprobs_dict = scoring
    return ""
