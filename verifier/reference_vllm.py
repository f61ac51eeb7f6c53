"""The trusted model by vLLM: claims go in as prefills, and reference_vllm_worker.py scores them on the GPU.

Batching, chunked prefill, prefix caching and parallelism stay vLLM's own business. A cached prefix can hide output
tokens (the same answer twice): what comes back without scores is run once more without the cache.
`VLLMLogprobsReference` needs nothing of vLLM but its public API: it reads every logit as a prompt logprob, slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from multiprocessing import active_children
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from weakref import finalize

import numpy as np
import torch

from verifier.errors import BadSequence, InputError, ReferenceLost, ReferenceModelError, ReferenceUnreadable
from verifier.kernels_rows import COLUMNS
from verifier.reference import LogitRows
from verifier.reference_scoring import token_scores
from verifier.reference_vllm_worker import KEY, packed_claim, unpacked_logits
from verifier.replay import Claim
from verifier.samplers.greedy import GREEDY
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores
from verifier.sequences import TokenSequence

EXTENSION = "verifier.reference_vllm_worker.ScoringExtension"
KNOWN = "0.26 to 0.33"
LOOK_SECONDS = 1.0
LEAVE_SECONDS = 5.0
_LOGPROBS = 2**25  # prompt logprobs of one sequence: some 150 bytes of Python objects each

T = TypeVar("T")


class VLLMEngine:
    """A vLLM engine with a causal language model, kept warm.

    Args:
        path: directory of the model, with tokenizer.
        dtype: of the weights.
        max_model_len: longest prompt + output; by default the model's own.
        gpu_memory_utilization: the share of the GPU's memory that vLLM may take.
        vllm_kwargs: further arguments of `vllm.LLM`: quantization, kv_cache_dtype, tensor_parallel_size, …
        own: arguments that the reference itself needs.

    Raises:
        InputError: vLLM is not installed.
        ReferenceUnreadable: vLLM cannot load the model, or it does not fit.
    """

    def __init__(
        self, path: str | Path, *, dtype: torch.dtype = torch.bfloat16, max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.7, vllm_kwargs: Mapping[str, Any] | None = None, **own: Any,
    ) -> None:  # fmt: skip
        try:
            import vllm
        except ImportError as error:
            raise InputError("backend 'vllm' needs vLLM: pip install 'seedproof[vllm]'") from error
        self.path = Path(path)
        self.version: str = vllm.__version__
        self._params = vllm.SamplingParams
        options = {
            "max_model_len": max_model_len, "gpu_memory_utilization": gpu_memory_utilization,
            "dtype": str(dtype).removeprefix("torch."), "enforce_eager": True, **own, **(vllm_kwargs or {}),
        }  # fmt: skip
        others = {process.pid for process in active_children()}
        try:
            self.engine = vllm.LLM(model=str(path), **options)
        except torch.OutOfMemoryError as error:
            raise ReferenceUnreadable(f"{self.path.name} does not fit: raise gpu_memory_utilization") from error
        except Exception as error:
            raise ReferenceUnreadable(f"vLLM {self.version} cannot serve {path}: {_cause(error)}") from error
        self._processes = [process for process in active_children() if process.pid not in others]
        # with the reference or with this process, whichever ends first
        self.close = finalize(self, _shut_down, self.engine.llm_engine.engine_core)
        config = self.engine.llm_engine.model_config
        self.max_length: int = config.max_model_len
        self.width: int = config.get_vocab_size()
        self.end_token_ids = _end_token_ids(config)

    def check(self, number: int, sequence: TokenSequence, limit: int | None = None) -> None:
        """Raise BadSequence, naming the sequence, if it cannot be scored in a context of `limit` tokens."""
        tokens = [*sequence.prompt_token_ids, *sequence.output_token_ids]
        limit = min(limit or self.max_length, self.max_length)
        if not sequence.prompt_token_ids:
            raise BadSequence(f"sequence {number}: the prompt is empty; give at least one token (BOS) to score from")
        if len(tokens) > limit:
            raise BadSequence(f"sequence {number}: {len(tokens)} tokens exceed the context of {limit}; shorten it")
        if max(tokens) >= self.width or min(tokens) < 0:
            raise BadSequence(
                f"sequence {number}: a token id lies outside the model's {self.width} logits; "
                "use the tokenizer that the provider's model has"
            )

    def _prefill(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        """vLLM's outputs of one step of each prompt. Raises ReferenceLost if the engine is gone."""
        for each in params:
            each.skip_clone = True  # vLLM would copy it, to be safe from changes that nobody makes
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return self._asked(lambda: list(self.engine.generate(inputs, list(params), use_tqdm=False)))

    def _told(self, method: str, *args: Any) -> list[Any]:
        """What each of vLLM's workers answers to a call of ScoringExtension's. Raises ReferenceLost."""
        return self._asked(lambda: list(self.engine.collective_rpc(method, args=args)))

    def _asked(self, ask: Callable[[], T]) -> T:
        """What the engine answers. Raises ReferenceLost if it is gone: vLLM would wait for a killed one forever."""
        answer: Future[T] = Future()
        Thread(target=_answer, args=(answer, ask), daemon=True).start()
        while not wait([answer], timeout=LOOK_SECONDS).done:
            if not all(process.is_alive() for process in self._processes):
                wait([answer], timeout=LOOK_SECONDS)  # its last words
                break
        error = answer.exception() if answer.done() else None
        if not answer.done() or type(error).__name__ in {"EngineDeadError", "EngineCoreError"}:
            raise ReferenceLost(f"vLLM's engine for {self.path.name} has died; its own log says why") from error
        return answer.result()


class VLLMReference(VLLMEngine):
    """Scores where the logits are, inside vLLM's worker; arguments and errors are those of VLLMEngine.

    Raises:
        ReferenceUnreadable: also where vLLM's internals are not those we know.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(path, worker_extension_cls=EXTENSION, **options)
        complaints = self._told("start_scoring", list(self.end_token_ids), self.width)
        complaint = next(filter(None, complaints), "") or self._trial()
        if complaint:
            raise ReferenceUnreadable(
                f"vLLM {self.version} is not built as the versions we know, {KNOWN} ({complaint}): install one of "
                "them, or take backend 'vllm-logprobs', which is slow, or 'transformers'"
            )

    def _trial(self) -> str:
        """What goes wrong with a first answer; empty if nothing does."""
        claim = Claim(TokenSequence([0, 0], [0, 0]), 0, SamplingParams(temperature=0.0), GREEDY)
        try:
            self.scores([claim])
        except ReferenceLost:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def logits(self, sequences: Sequence[TokenSequence]) -> Iterator[LogitRows]:
        """Logits of every output token of `sequences`, each of which has passed `check`.

        They leave the GPU for this: what only needs scores should ask for `scores`.
        """
        for number, sequence in enumerate(sequences):
            if not sequence.output_token_ids:
                continue
            claim = Claim(sequence, 0, SamplingParams(temperature=0.0), GREEDY)
            self._run([claim], [0], read_cache=False, raw=True)
            found = max(self._told("take_logits"), key=len)
            for _number, first, dtype, data in sorted(found):
                yield LogitRows(number, first, unpacked_logits(dtype, data, self.width))

    def scores(
        self, claims: Sequence[Claim], on_tokens: Callable[[int], None] | None = None
    ) -> list[TokenScores]:
        """Scores of each claim's output tokens, as `verifier.replay.replay` promises."""
        outputs = [claim.sequence.output_token_ids for claim in claims]
        columns = [np.full((len(output), len(COLUMNS)), np.nan, np.float32) for output in outputs]
        todo = [number for number, output in enumerate(outputs) if output]
        for cached in (True, False):
            if todo:
                self._run(claims, todo, read_cache=cached)
                self._take(columns)
            todo = [number for number in todo if np.isnan(columns[number][:, 0]).any()]
        if todo:
            raise ReferenceModelError(f"vLLM gave no scores for {len(todo)} sequences: use the transformers backend")
        if on_tokens:
            on_tokens(sum(map(len, outputs)))
        return [token_scores(part, output) for part, output in zip(columns, outputs, strict=True)]

    def _run(
        self, claims: Sequence[Claim], numbers: Sequence[int], *, read_cache: bool, raw: bool = False
    ) -> None:
        prompts = [claims[n].sequence.prompt_token_ids + claims[n].sequence.output_token_ids[:-1] for n in numbers]
        params = [
            self._params(
                max_tokens=1, temperature=0.0, detokenize=False, skip_reading_prefix_cache=not read_cache,
                extra_args={KEY: packed_claim(n, claims[n], raw=raw)},
            )
            for n in numbers
        ]  # fmt: skip
        self._prefill(prompts, params)

    def _take(self, columns: list[np.ndarray[Any, Any]]) -> None:
        """Put all scores that the worker has into their places."""
        # Every tensor-parallel rank has the same scores, and earlier pipeline ranks have none.
        found: list[tuple[int, int, bytes]] = max(self._told("take_scores"), key=len)
        for number, first, data in found:
            part = np.frombuffer(data, np.float32).reshape(-1, len(COLUMNS))
            columns[number][first : first + len(part)] = part


class VLLMLogprobsReference(VLLMEngine):
    """Raw logits through vLLM's public API, for any version; one sequence at a time, and only short ones.

    Arguments and errors are those of VLLMEngine.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(path, max_logprobs=-1, logprobs_mode="raw_logits", **options)

    def check(self, number: int, sequence: TokenSequence, limit: int | None = None) -> None:
        """As VLLMEngine.check; longer sequences than prompt logprobs allow are refused too."""
        # vLLM draws one more token, and the last of ours is part of what it is asked.
        longest = min(self.max_length - 1, _LOGPROBS // self.width)
        super().check(number, sequence, min(limit or longest, longest))

    def logits(self, sequences: Sequence[TokenSequence]) -> Iterator[LogitRows]:
        """Logits of every output token of `sequences`, each of which has passed `check`."""
        # flat: as lists of numbers. An object for each of ten million logits keeps the garbage collector busy.
        params = self._params(
            max_tokens=1, temperature=0.0, detokenize=False, prompt_logprobs=-1, flat_logprobs=True
        )
        for number, sequence in enumerate(sequences):
            if sequence.output_token_ids:
                start = len(sequence.prompt_token_ids)
                tokens = sequence.prompt_token_ids + sequence.output_token_ids
                (output,) = self._prefill([tokens], [params])
                yield LogitRows(number, 0, self._rows(output.prompt_logprobs, start))

    def _rows(self, flat: Any, start: int) -> torch.Tensor:
        """Logits [R, V] from vLLM's FlatLogprobs, whose first `start` positions are the prompt's."""
        spans = list(zip(flat.start_indices, flat.end_indices, strict=True))[start:]
        rows = torch.full((len(spans), self.width), -torch.inf)
        for row, (first, last) in zip(rows, spans, strict=True):
            row[torch.tensor(flat.token_ids[first:last])] = torch.tensor(flat.logprobs[first:last])
        return rows


def _shut_down(core: Any) -> None:
    """End the engine's processes and the thread that reads from them.

    vLLM does not wait for that thread (0.26 to 0.33). It may hold tensors of the last answer, and where the interpreter
    ends before it, torch aborts the process while it frees them.
    """
    core.shutdown()
    reader: Thread | None = getattr(core, "output_queue_thread", None)
    if reader is not None:
        reader.join(LEAVE_SECONDS)


def _answer(answer: Future[T], ask: Callable[[], T]) -> None:
    try:
        answer.set_result(ask())
    except BaseException as error:
        answer.set_exception(error)


def _cause(error: Exception) -> str:
    """Why an engine did not start, in one line: vLLM raises what it likes, and its own log tells more."""
    said = " ".join((str(error) or type(error).__name__).split())
    if "initialization failed" not in said:
        return said[:400]
    return (
        "its engine did not start, and the log above says why; where memory is short, change gpu_memory_utilization or "
        "lower max_model_len"
    )


def _end_token_ids(config: Any) -> tuple[int, ...]:
    """The EOS ids of the generation configuration, or else of the model's own."""
    configured = config.try_get_generation_config().get("eos_token_id")
    if configured is None:
        configured = getattr(config.hf_text_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return tuple(int(token_id) for token_id in listed if token_id is not None)
