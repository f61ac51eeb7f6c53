"""Recorded streams through the worker: who draws otherwise than configured is understood or set aside, not accused."""

from functools import cache, partial
from itertools import count

import numpy as np
from recorded import golden
from sqlalchemy import select
from storage_rows import exchange

from storage import exchanges
from storage.database import open_database
from storage.models import Audit, Stream
from verifier.auditor import Auditor
from verifier.executor import InlineExecutor
from verifier.models import load_model
from verifier.recordings import read_recordings
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.scoring import score
from verifier.sequences import TokenSequence
from verifier.worker import Worker

V1, V2 = "vllm@0.26.0/v1", "vllm@0.26.0/v2"
numbers = count(1)


load = cache(partial(load_model, directories={}))


def recorded(name, directory, *, sampler, limit=4, tokens=120, **forced):
    """Exchanges of one stream out of a golden file's answers, each cut to its first tokens."""
    rows = read_recordings(golden(name), limit=limit)
    return [_exchange(row, directory, sampler, tokens, forced) for row in rows]


def _exchange(row, directory, sampler, tokens, forced):
    ids = row.sequence.output_token_ids[:tokens]
    params = {name: getattr(row.params, name) for name in ("temperature", "top_k", "top_p")}
    complete = len(ids) == len(row.sequence.output_token_ids)
    finish = row.finish_reason if complete else "length"
    choice = {"index": 0, "text": load(str(directory)).tokenizer.decode(ids), "token_ids": ids, "finish_reason": finish}
    return exchange(
        next(numbers), upstream="engine", request={"model": "smollm2", "messages": row.messages},
        forced={"seed": row.seed, **params, **forced}, reference=str(directory), sampler=sampler,
        response={"choices": [choice], "prompt_token_ids": row.sequence.prompt_token_ids},
    )  # fmt: skip


async def worked_off(url, directory, *batches):
    """Stream and audits after a worker has seen the batches, one after the other."""
    async with open_database(url) as database:
        executor = InlineExecutor(Auditor(load))
        worker = Worker(database, executor, name="test", batch=4)
        for batch in batches:
            async with database.writing() as session:
                await exchanges.record(session, batch)
            await worker.run(until_empty=True)
        async with database.reading() as session:
            (stream,) = await session.scalars(select(Stream))
            return stream, list(await session.scalars(select(Audit).order_by(Audit.stream_position)))


async def test_a_speculating_v1_is_verified_by_its_drafter(sqlite_url, demo_directory):
    stream, audits = await worked_off(sqlite_url, demo_directory, recorded("v1_spec", demo_directory, sampler=V1))
    assert stream.identified["contract"] == f"{V1}:drafts=3,ngram=2-3"
    assert stream.verdict in ("consistent", "inconclusive")
    assert {audit.notes.get("verified_by") for audit in audits} == {stream.identified["contract"]}
    assert sum(audit.exact_matches for audit in audits) >= 0.955 * sum(audit.tokens for audit in audits)
    assert {audit.sampler for audit in audits} == {V1}


async def test_a_provider_that_starts_to_speculate_is_not_accused(sqlite_url, demo_directory):
    plain = recorded("plain_t1", demo_directory, sampler=V1)
    drafted = recorded("v1_spec", demo_directory, sampler=V1)
    stream, audits = await worked_off(sqlite_url, demo_directory, plain, drafted)
    assert stream.verdict in ("consistent", "inconclusive")
    assert ["verified_by" in audit.notes for audit in audits] == [False] * 4 + [True] * 4


async def test_answers_without_a_seed_accuse_nobody(sqlite_url, demo_directory):
    found = recorded("v1_noseed", demo_directory, sampler=V1, seed=77)
    stream, _ = await worked_off(sqlite_url, demo_directory, found)
    assert (stream.verdict, stream.reasons) == ("unsupported", ["no_contract_fits"])


async def test_a_sampler_that_changes_is_said_to_have_changed(sqlite_url, demo_directory):
    before = recorded("v2_plain", demo_directory, sampler=V2)
    after = recorded("plain_t1", demo_directory, sampler=V2)
    stream, audits = await worked_off(sqlite_url, demo_directory, before, after)
    assert (stream.verdict, stream.reasons) == ("unsupported", ["sampler_changed"])
    assert stream.identified["contract"] == V1
    assert [audit.notes.get("other_sampler") for audit in audits] == [None] * 4 + ["sampler_differs"] * 4


async def test_worse_weights_are_no_other_sampler(sqlite_url, demo_directory):
    """Also under the id of another version of the same noise."""
    older = "vllm@0.20.2/v1"
    stream, audits = await worked_off(sqlite_url, demo_directory, recorded("int4", demo_directory, sampler=older))
    assert stream.identified["contract"] == older
    assert stream.identified["reason"] is None
    assert stream.verdict == "deviates"
    assert not any("other_sampler" in audit.notes or "verified_by" in audit.notes for audit in audits)


async def test_a_version_that_nobody_has_read_is_noted_with_what_is_assumed(sqlite_url, demo_directory):
    found = recorded("v2_plain", demo_directory, sampler="vllm@0.99.0/v2", limit=1, tokens=30)
    _, (audit,) = await worked_off(sqlite_url, demo_directory, found)
    assert "0.99.0 is newer than any version read" in audit.notes["assumed"]


async def test_penalties_by_a_formula_that_is_not_the_engines_are_unsupported(sqlite_url, demo_directory):
    found = recorded("v2_plain", demo_directory, sampler="llama.cpp", limit=1, tokens=30, frequency_penalty=0.5)
    stream, (audit,) = await worked_off(sqlite_url, demo_directory, found)
    assert (stream.verdict, audit.reason) == ("unsupported", "processor_not_modelled")
    assert "llama.cpp's frequency_penalty" in audit.notes["detail"]


def answer_with_a_lost_draw(reference, prompt, *, seed, length, lost_at):
    """Tokens of V1 on the reference whose generator lost one draw."""
    rules, output = contract(V1), []
    for number in range(length):
        (rows,) = reference.logits([TokenSequence(prompt + output, [0])])
        drawn = score(
            rows.logits.numpy(), np.array([0]), seed=seed, positions=np.array([number + (number >= lost_at)]),
            params=SamplingParams(), contract=rules,
        )  # fmt: skip
        output.append(int(drawn.predicted_ids[0]))
    return output


async def test_a_lost_draw_is_followed_and_noted(sqlite_url, tiny_directory):
    model, messages = load(str(tiny_directory)), [{"role": "user", "content": "Hi"}]
    prompt = model.tokenizer.prompt_token_ids(messages)
    ids = answer_with_a_lost_draw(model.reference, prompt, seed=9, length=110, lost_at=40)
    choice = {"index": 0, "text": model.tokenizer.decode(ids), "token_ids": ids, "finish_reason": "length"}
    one = exchange(
        next(numbers), request={"model": "smollm2", "messages": messages}, forced={"seed": 9, "temperature": 1.0},
        response={"choices": [choice]}, reference=str(tiny_directory), sampler=V1,
    )  # fmt: skip
    stream, (audit,) = await worked_off(sqlite_url, tiny_directory, [one])
    assert [shift["shift"] for shift in audit.notes["resync"]] == [1]
    assert audit.exact_match_rate > 0.97
    assert stream.verdict == "inconclusive"
