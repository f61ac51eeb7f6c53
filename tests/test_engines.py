"""Real engines behind the proxy: SDK → proxy → vLLM or llama.cpp, then worker → audits. Run by `make test-engines`."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from engines import llama_cpp, vllm_cpu, vllm_scores
from gguf_files import export_float32
from openai import AsyncOpenAI
from recorded import golden
from test_end_to_end import rows, work_off

from proxy.app import DATABASE, RECORDER, make_app, serving
from proxy.config import parse_config
from storage.models import Audit, Exchange, Stream
from verifier.demo_model import fetch_gguf
from verifier.recordings import read_recordings
from verifier.reference import TransformersReference
from verifier.replay import replay
from verifier.samplers import contract
from verifier.verify import claims_of

pytestmark = pytest.mark.engine

NAME = "smollm2"
QUESTIONS = (
    "Tell me a story about the sea.", "Write a poem on autumn.", "Explain how rain forms.", "Name ten animals.",
    "How do I bake bread?", "What is a prime number?", "Give travel tips for Rome.", "Say hello in one word.",
)  # fmt: skip
ENOUGH = 0.97


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published Q4_1 file, of which the reference was made."""
    return fetch_gguf(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def llama_cpp_url(demo_directory: Path, quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A llama.cpp server with the reference's weights in float32; their half a gigabyte does not stay."""
    directory = tmp_path_factory.mktemp("llama-cpp")
    file = export_float32(demo_directory, quantized, directory / "F32.gguf")
    try:
        with llama_cpp(file, directory / "log") as base_url:
            yield base_url
    finally:
        file.unlink()


@asynccontextmanager
async def audited(
    directory: Path, base_url: str, reference: Path, *, kind: str, sampler: str, **sampling: float
) -> AsyncIterator[tuple[str, str]]:
    """A proxy before the engine; yields its address and the store's URL."""
    store = f"sqlite:///{directory / 'audit.db'}"
    model = {"reference": str(reference), "sampler": sampler, "sampling": sampling}
    upstream = {"name": "engine", "base_url": base_url, "kind": kind, "models": {NAME: model}}
    seed = {"secret_env": "SECRET"}
    document = {"listen": "127.0.0.1:0", "store": store, "seed": seed, "upstreams": [upstream]}
    config = parse_config(document, {"SECRET": "s" * 32}, directory=directory)
    app = make_app(config)
    async with serving(app, config) as address:
        yield address, store
        await app[RECORDER].drained()
        assert app[DATABASE]


async def chats(address: str, *, max_tokens: int) -> None:
    """All questions at once, every second one streamed."""

    async def ask(number: int, question: str) -> None:
        answer = await sdk.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": question}], max_tokens=max_tokens, stream=number % 2 > 0
        )
        if number % 2:
            async for _ in answer:
                pass

    async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300) as sdk:
        await asyncio.gather(*(ask(number, question) for number, question in enumerate(QUESTIONS)))


async def match_rate(store: str, *, source: str) -> float:
    """Audit what was recorded; the share of all answers' tokens that match. Every answer must have been verified."""
    await work_off(store)
    audits = await rows(store, Audit)
    told = [(audit.verdict_status.value, audit.reason) for audit in audits]
    assert told == [("verified", None)] * len(QUESTIONS)
    texts = {exchange.id: exchange.response["choices"][0]["text"] or "" for exchange in await rows(store, Exchange)}
    # where llama.cpp held back several bytes of a character, its text is read instead
    plain = [audit for audit in audits if source != "logprobs" or texts[audit.exchange_id].isascii()]
    assert {audit.token_source.value for audit in plain} == {source}
    return sum(audit.exact_matches for audit in audits) / sum(audit.tokens for audit in audits)


async def judged(directory: Path, base_url: str, reference: Path, *, source: str, **upstream) -> tuple[float, str]:
    """The match rate of one round of chats through the proxy, and the verdict that is stored."""
    async with audited(directory, base_url, reference, **upstream) as (address, store):
        await chats(address, max_tokens=80)
    rate = await match_rate(store, source=source)
    (stream,) = await rows(store, Stream)
    return rate, stream.verdict


async def test_vllm_on_the_cpu_is_replayed(tmp_path, demo_directory, capsys):
    with vllm_cpu(demo_directory, tmp_path / "log", name=NAME) as base_url:
        rate, verdict = await judged(
            tmp_path, base_url, demo_directory, source="given", kind="vllm", sampler="vllm@0.32.0/cpu", top_p=0.95
        )
    tell(capsys, "vllm-cpu 0.32, float32", rate, verdict)
    assert rate >= ENOUGH
    assert verdict == "consistent"


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.95, "top_k": 40}], ids=["vocabulary-order", "sorted"])
async def test_llama_cpp_is_replayed(tmp_path, demo_directory, llama_cpp_url, capsys, sampling):
    served = {"source": "logprobs", "kind": "llama.cpp", "sampler": "llama.cpp", **sampling}
    rate, verdict = await judged(tmp_path, llama_cpp_url, demo_directory, **served)
    tell(capsys, f"llama.cpp, F32 GGUF, {sampling or 'no filter'}", rate, verdict)
    assert rate >= ENOUGH
    assert verdict == "consistent"


async def test_the_end_that_llama_cpp_does_not_list_is_scored_too(tmp_path, demo_directory, llama_cpp_url):
    sampling = {"kind": "llama.cpp", "sampler": "llama.cpp", "temperature": 0.0}
    async with audited(tmp_path, llama_cpp_url, demo_directory, **sampling) as (address, store):
        await chats(address, max_tokens=40)
    assert await match_rate(store, source="logprobs") >= ENOUGH
    exchanges = {exchange.id: exchange for exchange in await rows(store, Exchange)}
    listed = {key: exchange.response["choices"][0] for key, exchange in exchanges.items()}
    ended = {key: choice["finish_reason"] == "stop" for key, choice in listed.items()}
    assert any(ended.values())
    for audit in await rows(store, Audit):
        key = audit.exchange_id
        assert audit.tokens == len(listed[key]["logprobs"]) + ended[key]


async def test_llama_cpps_quantized_file_is_not_the_reference(tmp_path, demo_directory, quantized, capsys):
    """llama.cpp quantizes activations too where weights are in four bits."""
    served = {"source": "logprobs", "kind": "llama.cpp", "sampler": "llama.cpp", "top_k": 40}
    with llama_cpp(quantized, tmp_path / "log") as base_url:
        rate, verdict = await judged(tmp_path, base_url, demo_directory, **served)
    tell(capsys, "llama.cpp, Q4_1 GGUF", rate, verdict)
    assert rate < ENOUGH - 0.05
    assert verdict == "deviates"


@pytest.mark.parametrize("backend", ["vllm", "vllm-logprobs"])
def test_vllm_is_a_reference_too(tmp_path, demo_directory, backend):
    """Scores made inside vLLM's worker (its V1 runner, in chunks of 128 tokens) and from its prompt logprobs."""
    file, sampler = golden("v2_plain"), "vllm@0.26.0/v2"
    found = vllm_scores(demo_directory, backend, [f"{file}@{sampler}"], tmp_path / "log")
    claims = claims_of(read_recordings(file, limit=2), contract(sampler), "v2_plain")
    reference = TransformersReference(demo_directory)
    wanted = replay(reference, [*claims, claims[0]])
    scores = found[f"{file}@{sampler}"]
    assert len(scores) == len(wanted)
    for one, other in zip(scores, wanted, strict=True):
        np.testing.assert_allclose(one["logprob"], other.logprob, atol=2e-3)
        same = np.asarray(one["predicted"]) == other.predicted_ids
        # Two engines' float32 sums differ in the last bits, which decides near-ties.
        assert same.mean() >= ENOUGH
        np.testing.assert_allclose(np.asarray(one["margin"])[same], other.margin[same], atol=5e-3)
    (rows,) = reference.logits([claims[1].sequence])
    np.testing.assert_allclose(found[f"{file}@{sampler} logits"], rows.logits[[0, -1]], atol=5e-3)
    # a thread of vLLM's that outlives the interpreter aborts the process
    assert "EngineCoreOutputQueueThread" not in found["threads"]


def tell(capsys: pytest.CaptureFixture[str], what: str, rate: float, verdict: str) -> None:
    """Print one rate and verdict among the test's own output."""
    with capsys.disabled():
        print(f"\n{what}: exact match {rate:.3f}, {verdict}")
