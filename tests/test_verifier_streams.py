"""Stored audits into verdicts: once each, in order, and the same number again from the audits alone."""

from datetime import timedelta

import numpy as np
import pytest
from simulated import SAMPLING, faulty, fitted, honest
from sqlalchemy import select, text, update
from storage_rows import NOON, audit
from test_verifier_stream_state import unlinked

from storage import audits, calibrations, streams
from storage.audits import pack_scores
from storage.database import open_database
from storage.models_history import StreamHistory
from storage.streams import StreamKey
from verifier.band import SHIPPED
from verifier.detectors import SequenceScores
from verifier.report import as_json, as_markdown
from verifier.stream_state import StreamState
from verifier.streams import band_of, replayed, reports, weigh

KEY = StreamKey("honest", "smollm2", "smollm2-bf16", "vllm@0.26.0/v2")


@pytest.fixture
async def database(database_url):
    async with open_database(database_url) as database:
        yield database


def stored(number: int, scores: SequenceScores, *, prob: float = 0.3, unclear: int = 0, **changes):
    count = len(scores.entropy)
    arrays = {
        "token_ids": np.arange(count, dtype=np.int32),
        "predicted_ids": np.where(scores.exact_match, np.arange(count), -1).astype(np.int32),
        "prob": np.full(count, prob, np.float32),
        "ambiguous": (np.arange(count) < unclear).astype(np.uint8),
    } | {name: getattr(scores, name) for name in ("logprob", "entropy", "margin", "logit_rank")}
    return audit(number, tokens=count, exact_matches=int(scores.exact_match.sum()), scores=pack_scores(arrays),
                 sampling=SAMPLING, **changes)  # fmt: skip


async def added(database, *found):
    """As the worker: each exchange's audits and their weight in one transaction."""
    for one in found:
        async with database.writing() as session:
            await audits.add(session, [one])
            stream = await weigh(session, one.exchange_id, KEY, now=NOON)
    return stream


async def test_replaying_the_audits_gives_the_same_number(database):
    rows = [stored(n, scores) for n, scores in enumerate(honest(1, 6, 60))]
    stream = await added(database, *rows, audit(90, verdict_status="unsupported", reason="no_seed"))
    async with database.reading() as session:
        again = await replayed(session, KEY, SHIPPED)
    assert again == StreamState.from_dict(stream.state)
    assert again.verdict(SHIPPED).log_e == stream.log_e
    assert (stream.audits, stream.requests, stream.tokens) == (7, 6, 360)
    assert stream.detail["skipped"] == {"no_seed": 1}


async def test_counts_go_on_beyond_32_bits(database):
    first, second = (stored(n, scores) for n, scores in enumerate(honest(1, 2, 60)))
    await added(database, first)
    async with database.writing() as session:
        stream = await streams.locked(session, KEY, now=NOON)
        stream.state = {**stream.state, "evidence": {**stream.state["evidence"], "tokens": 2**31}}
        await session.execute(update(StreamHistory).values(tokens=2**31 - 1, exact_matches=2**31 - 1))
    assert (await added(database, second)).tokens == 2**31 + 60
    async with database.reading() as session:
        day = (await session.scalars(select(StreamHistory).where(StreamHistory.span == "day"))).one()
        (hour,) = await session.scalars(text("SELECT tokens FROM match_rate_hourly"))
    assert (day.tokens, day.total_tokens, hour) == (2**31 + 59, 2**31 + 60, 2**31 + 59)


async def test_an_audit_is_weighed_once_however_often_it_is_offered(database):
    row = stored(1, honest(2, 1)[0])
    assert (await added(database, row, row)).requests == 1
    async with database.writing() as session:
        assert (await weigh(session, row.exchange_id, KEY, now=NOON)).tokens == 200


async def test_what_is_rolled_back_is_not_weighed(database):
    row = stored(1, honest(3, 1)[0])

    async def lose_the_lease() -> None:
        async with database.writing() as session:
            await audits.add(session, [row])
            await weigh(session, row.exchange_id, KEY, now=NOON)
            raise RuntimeError("the lease was lost")

    with pytest.raises(RuntimeError, match="lost"):
        await lose_the_lease()
    async with database.reading() as session:
        assert await streams.every(session) == []


async def test_ambiguous_tokens_are_left_out(database):
    stream = await added(database, stored(1, honest(4, 1)[0], unclear=50))
    assert stream.tokens == 150
    assert (await added(database, stored(2, honest(4, 1)[0], unclear=200))).detail["skipped"] == {
        "every_token_ambiguous": 1
    }


async def test_a_new_calibration_weighs_the_stored_audits_again(database):
    rows = [stored(n, scores) for n, scores in enumerate(faulty(5, 12, "fp8 weights", 60))]
    assert (await added(database, *rows[:-1])).calibration_id is None
    band = fitted()
    async with database.writing() as session:
        number = await calibrations.add(
            session, reference=KEY.reference, sampler=KEY.sampler, token_source="given", hardware="", now=NOON,
            band=band.to_dict(),
        )  # fmt: skip
    stream = await added(database, rows[-1])
    assert (stream.calibration_id, stream.requests) == (number, 12)
    async with database.reading() as session:
        assert await replayed(session, KEY, band) == StreamState.from_dict(stream.state)
    assert stream.verdict == "deviates"


async def test_a_stream_is_judged_by_the_calibration_that_fits_it_best(database):
    band = fitted().to_dict()
    general, texts, own, others, newer = ("general", "texts", "own", "others", "newer")
    made = {
        general: ("given", {}), texts: ("retokenized", {}), own: ("given", {"upstream": KEY.upstream}),
        others: ("given", {"upstream": "another"}), newer: ("given", {}),
    }  # fmt: skip
    numbers = {}

    async def chosen(*, retokenized: bool = False) -> str:
        async with database.reading() as session:
            _, number = await band_of(session, KEY, retokenized=retokenized)
        return next((name for name, known in numbers.items() if known == number), "shipped")

    assert await chosen() == "shipped"
    expected = [(general, general), (general, texts), (own, own), (own, own), (own, own)]
    for (name, (source, scope)), (given, retokenized) in zip(made.items(), expected, strict=True):
        async with database.writing() as session:
            numbers[name] = await calibrations.add(
                session, reference=KEY.reference, sampler=KEY.sampler, token_source=source, hardware="", now=NOON,
                band={**band, "scope": scope},
            )  # fmt: skip
        assert (await chosen(), await chosen(retokenized=True)) == (given, retokenized)
    async with database.reading() as session:
        elsewhere = StreamKey("third", *list(vars(KEY).values())[1:])
        assert (await band_of(session, elsewhere, retokenized=False))[1] == numbers[newer]


async def test_reports_are_of_all_audits_or_of_those_made_since(database):
    bad, good = faulty(6, 4, "4-bit weights"), honest(7, 8)
    await added(database, *(stored(n, scores) for n, scores in enumerate([*bad, *good])))
    async with database.reading() as session:
        (whole,) = await reports(session)
        (recent,) = await reports(session, since=NOON + timedelta(seconds=64))
        assert await reports(session, upstream="nobody") == []
    assert (whole.verdict.word, recent.verdict.word) == ("deviates", "consistent")
    assert recent.verdict.requests == 8
    (entry,) = as_json([whole])["streams"]
    assert (entry["upstream"], entry["verdict"], entry["requests"]) == ("honest", "deviates", 12)
    assert "nearest named fault" in as_markdown([whole])


async def test_a_strangers_name_cannot_write_into_the_markdown(database):
    key = StreamKey("honest", "a|b\n# <script>", "r", "")
    async with database.writing() as session:
        await streams.locked(session, key, now=NOON)
    async with database.reading() as session:
        text = as_markdown(await reports(session))
    assert "a\\|b \\# \\<script\\>" in text


async def test_other_noise_is_unsupported_in_the_database_too(database):
    rows = [stored(n, one.scores) for n, one in enumerate(unlinked(8, 6))]
    stream = await added(database, *rows)
    assert (stream.verdict, stream.reasons) == ("unsupported", ["sampler_unknown"])
