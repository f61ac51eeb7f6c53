"""What GPU references do beside the kernels, on a CPU: batches, memory running out, the part inside vLLM's worker."""

import signal
import sys
from dataclasses import replace
from importlib import import_module
from multiprocessing import get_context
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from verifier.errors import InputError, ReferenceLost, ReferenceTooSmall, ReferenceUnreadable
from verifier.reference import TransformersReference
from verifier.reference_cuda import CudaReference
from verifier.reference_scoring import chunk_rows, token_scores
from verifier.reference_vllm_worker import (
    KEY,
    ScoringExtension,
    StepScorer,
    packed_claim,
    packed_logits,
    unpacked_claim,
    unpacked_logits,
)
from verifier.references import memory, open_reference
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.sequences import TokenSequence

FILTERED = SamplingParams(temperature=0.8, top_k=40, top_p=0.9)
BIASED = SamplingParams(logit_bias={7: 2.0}, bad_words_token_ids=((5, 6),), repetition_penalty=1.2)


def claims():
    rng = np.random.default_rng(3)

    def tokens(count):
        return rng.integers(3, 40_000, count).tolist()

    cases = [("vllm@0.26.0/v1", FILTERED), ("vllm@0.26.0/v2", SamplingParams()), ("greedy", SamplingParams()),
             ("vllm@0.26.0/v1", BIASED), ("vllm@0.26.0/v2", FILTERED)]  # fmt: skip
    lengths = [(3, 9), (20, 30), (1, 1), (5, 12), (4, 0)]
    return [
        Claim(TokenSequence(tokens(p), tokens(n)), 11, params, contract(sampler))
        for (sampler, params), (p, n) in zip(cases, lengths, strict=True)
    ]


def assert_same_scores(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.predicted_ids, other.predicted_ids)
        np.testing.assert_array_equal(one.logit_rank, other.logit_rank)
        np.testing.assert_allclose(one.margin, other.margin, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(one.logprob, other.logprob, atol=1e-4, rtol=1e-4)


def test_scores_do_not_depend_on_batches_and_chunks(tiny_directory):
    wanted = replay(TransformersReference(tiny_directory), claims())
    told = []
    reference = CudaReference(
        tiny_directory, device="cpu", dtype=torch.float32, batch_tokens=60, chunk_bytes=5 * 4 * 49152
    )
    assert_same_scores(reference.scores(claims(), told.append), wanted)
    assert sum(told) == sum(map(len, wanted))


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny_directory, monkeypatch):
    reference = CudaReference(tiny_directory, device="cpu", dtype=torch.float32)
    forward, sizes = reference._forward, []

    def small(ids):
        sizes.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(ids)

    monkeypatch.setattr(reference, "_forward", small)
    assert_same_scores(reference.scores(claims()), replay(TransformersReference(tiny_directory), claims()))
    assert max(sizes) == 4
    assert sizes.count(1) == 4


def test_one_sequence_that_does_not_fit_is_refused(tiny_directory, monkeypatch):
    reference = CudaReference(tiny_directory, device="cpu", dtype=torch.float32)

    def never(ids):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(reference, "_forward", never)
    with pytest.raises(ReferenceTooSmall, match="over one sequence"):
        reference.scores(claims())


def test_a_gpu_that_cannot_run_the_model_is_named(tiny_directory, monkeypatch):
    def broken(self):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(TransformersReference, "_head_is_last_step", broken)
    with pytest.raises(ReferenceUnreadable, match="does not run on cpu: CUDA error: no kernel image"):
        CudaReference(tiny_directory, device="cpu")


def test_unknown_places_are_refused_before_anything_is_loaded(tiny_directory):
    with pytest.raises(InputError, match="backend 'jax' is not known: use one of transformers, vllm"):
        open_reference(tiny_directory, backend="jax")
    with pytest.raises(InputError, match="device 'tpu' is not known"):
        open_reference(tiny_directory, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ReferenceUnreadable, match=r"device 'cuda:0' needs a GPU .* finds none"):
            open_reference(tiny_directory, device="cuda:0")
    assert memory("cpu") == ""


@pytest.mark.parametrize(("budget", "width", "rows"), [(512 * 2**20, 128_256, 2048), (512 * 2**20, 262_144, 1024),
                                                       (2**20, 49_152, 10), (1, 49_152, 1)])  # fmt: skip
def test_chunks_are_whole_tiles_where_there_is_room(budget, width, rows):
    assert chunk_rows(budget, width, 2) == rows
    assert rows == 1 or rows * width * 2 <= budget


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("number", range(5))
def test_claims_reach_the_worker_as_they_were(number, raw):
    claim = replace(claims()[number], seed=2**64 - 5)
    found, unpacked, asked_raw = unpacked_claim(packed_claim(number, claim, raw=raw))
    assert (found, asked_raw) == (number, raw)
    assert unpacked == replace(claim, seed=-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_logits_leave_the_worker_as_they_were(dtype):
    logits = torch.randn(3, 7).to(dtype)
    assert torch.equal(unpacked_logits(*packed_logits(logits), 7), logits.float())


def scored_in_steps(tiny_directory, step):
    """Scores and logits of the claims by a StepScorer whose prompts come `step` tokens at a time, in one batch."""
    reference = TransformersReference(tiny_directory)
    scorer = StepScorer([2], reference.width)
    asked = [claim for claim in claims() if claim.sequence.output_token_ids]
    prompts = [claim.sequence.prompt_token_ids + claim.sequence.output_token_ids[:-1] for claim in asked]
    with torch.inference_mode():
        hidden = [reference._forward(torch.tensor([prompt]))[0] for prompt in prompts]
        for number, claim in enumerate(asked):
            scorer.admit(f"r{number}", {KEY: packed_claim(number, claim)})
        scorer.admit("raw", {KEY: packed_claim(9, asked[0], raw=True)})
        rows = {**{f"r{n}": part for n, part in enumerate(hidden)}, "raw": hidden[0], "other": hidden[1]}
        for first in range(0, max(map(len, prompts)), step):
            parts = {name: part[first : first + step] for name, part in rows.items() if len(part) > first}
            starts = np.cumsum([0, *map(len, parts.values())]).tolist()
            spans = [(name, start, first, len(parts[name])) for start, name in zip(starts, parts, strict=False)]
            scorer.step(reference._head, torch.cat([*parts.values()]), spans)
    columns = [np.full((len(claim.sequence.output_token_ids), 8), np.nan, np.float32) for claim in asked]
    extension = ScoringExtension()
    extension._seedproof_scorer = scorer
    for number, at, data in extension.take_scores():
        part = np.frombuffer(data, np.float32).reshape(-1, 8)
        columns[number][at : at + len(part)] = part
    kept = sorted(extension.take_logits(), key=lambda item: item[1])
    logits = torch.cat([unpacked_logits(dtype, data, reference.width) for _number, _at, dtype, data in kept])
    scores = [token_scores(part, c.sequence.output_token_ids) for part, c in zip(columns, asked, strict=True)]
    assert extension.take_scores() == [] == extension.take_logits()
    return asked, scores, logits


@pytest.mark.parametrize("step", [7, 1000])
def test_the_part_inside_vllm_scores_chunked_prefills_like_whole_ones(tiny_directory, step):
    asked, scores, logits = scored_in_steps(tiny_directory, step)
    reference = TransformersReference(tiny_directory)
    assert_same_scores(scores, replay(reference, asked))
    (rows,) = reference.logits([asked[0].sequence])
    torch.testing.assert_close(logits, rows.logits, atol=1e-4, rtol=1e-4)


class PromptLogprobs:
    """vLLM 0.26's PromptLogprobsWorker, as far as the hook looks at it."""

    def __init__(self):
        self.added, self.removed = [], []

    def add_request(self, req_id, req_idx, sampling_params):
        self.added.append(req_id)

    def remove_request(self, req_id):
        self.removed.append(req_id)

    def compute_prompt_logprobs(
        self, logits_fn, hidden_states, input_batch, all_token_ids, num_computed_tokens, prompt_lens
    ):
        return {"passed": "on"}


def started(runner):
    extension = ScoringExtension()
    extension.model_runner = runner
    return extension, extension.start_scoring([2], 11)


def test_the_v2_runners_hook_scores_and_passes_on():
    runner = SimpleNamespace(prompt_logprobs_worker=PromptLogprobs())
    wrapped = runner.prompt_logprobs_worker
    extension, complaint = started(runner)
    assert complaint == ""
    claim = Claim(TokenSequence([1, 2], [3, 4]), 5, SamplingParams(), contract("vllm@0.26.0/v2"))
    params = SimpleNamespace(extra_args={KEY: packed_claim(0, claim)})
    runner.prompt_logprobs_worker.add_request("a", 0, params)
    batch = SimpleNamespace(
        query_start_loc_np=np.array([0, 3]), num_computed_prefill_tokens_np=np.array([0]), req_ids=["a"]
    )
    hidden, head = torch.randn(3, 4), torch.randn(4, 11)
    asked = (lambda rows: rows @ head, hidden, batch, None, None, None)
    assert runner.prompt_logprobs_worker.compute_prompt_logprobs(*asked) == {"passed": "on"}
    ((number, first, data),) = extension.take_scores()
    assert (number, first, len(data)) == (0, 0, 2 * 8 * 4)
    runner.prompt_logprobs_worker.remove_request("a")
    assert (wrapped.added, wrapped.removed) == (["a"], ["a"])
    assert runner.prompt_logprobs_worker.compute_prompt_logprobs(*asked) == {"passed": "on"}
    assert extension.take_scores() == []


def test_a_runner_that_looks_different_is_refused_and_left_alone():
    class Other(PromptLogprobs):
        def compute_prompt_logprobs(self, logits_fn, hidden_states, everything):
            return {}

    runner = SimpleNamespace(prompt_logprobs_worker=Other())
    assert started(runner)[1] == "compute_prompt_logprobs takes logits_fn, hidden_states, everything"
    assert type(runner.prompt_logprobs_worker) is Other
    old = SimpleNamespace(_get_prompt_logprobs_dict=lambda hidden_states: {})
    assert started(old)[1].startswith("_get_prompt_logprobs_dict takes hidden_states; missing: requests")
    assert "has neither prompt_logprobs_worker nor" in started(SimpleNamespace())[1]


def test_other_pipeline_ranks_have_nothing_to_score():
    extension, complaint = started(SimpleNamespace(prompt_logprobs_worker=None))
    assert (complaint, extension.take_scores()) == ("", [])


def engine_of(runner=None, *, starts=True, version="0.99.0"):
    """A module `vllm` whose engine has our extension in a worker with this runner, and runs no model.

    It has a process of its own. Without a runner that process is killed in the first prefill, which then never ends.
    """

    class LLM:
        def __init__(self, model, worker_extension_cls="verifier.reference_vllm_worker.ScoringExtension", **options):
            if not starts:
                raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
            module, _, name = worker_extension_cls.rpartition(".")
            self.worker = getattr(import_module(module), name)()
            self.worker.model_runner = runner
            self.process = get_context("spawn").Process(target=signal.pause, daemon=True)
            self.process.start()
            config = SimpleNamespace(
                max_model_len=64, get_vocab_size=lambda: 11, try_get_generation_config=lambda: {"eos_token_id": 2}
            )
            core = SimpleNamespace(shutdown=lambda: None)
            self.llm_engine = SimpleNamespace(model_config=config, engine_core=core)

        def collective_rpc(self, method, args=()):
            return [getattr(self.worker, method)(*args)]

        def generate(self, prompts, params, use_tqdm):
            self.process.kill()
            return [] if runner else Event().wait()

    return SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace, __version__=version)


@pytest.mark.parametrize(
    ("runner", "said"),
    [
        (SimpleNamespace(), "SimpleNamespace has neither prompt_logprobs_worker nor _get_prompt_logprobs_dict"),
        (SimpleNamespace(prompt_logprobs_worker=PromptLogprobs()), "ReferenceModelError: vLLM gave no scores for"),
    ],
    ids=["no-place-to-hook", "a-hook-that-is-never-called"],
)
def test_a_vllm_that_is_not_known_is_refused_with_the_way_out(tiny_directory, monkeypatch, runner, said):
    monkeypatch.setitem(sys.modules, "vllm", engine_of(runner))
    with pytest.raises(ReferenceUnreadable) as caught:
        open_reference(tiny_directory, backend="vllm")
    line = str(caught.value)
    assert line.startswith(f"vLLM 0.99.0 is not built as the versions we know, 0.26 to 0.33 ({said}")
    assert line.endswith("install one of them, or take backend 'vllm-logprobs', which is slow, or 'transformers'")
    assert "\n" not in line


def test_an_engine_that_does_not_start_says_where_to_look(tiny_directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", engine_of(starts=False))
    with pytest.raises(ReferenceUnreadable, match="did not start, and the log above says why; where memory is short"):
        open_reference(tiny_directory, backend="vllm")


def test_an_engine_that_was_killed_is_lost_instead_of_waited_for(tiny_directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", engine_of())
    monkeypatch.setattr("verifier.reference_vllm.LOOK_SECONDS", 0.05)
    reference = open_reference(tiny_directory, backend="vllm-logprobs")
    with pytest.raises(ReferenceLost, match=r"vLLM's engine for .* has died; its own log says why"):
        next(reference.logits([TokenSequence([1], [2])]))
