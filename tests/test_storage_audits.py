"""Audits: one per choice, whatever is written twice; sums per stream; the queries that people run by hand."""

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from storage_rows import NOON, audit, exchange

from storage import audits, exchanges, jobs
from storage.database import open_database
from storage.models import Audit


@pytest.fixture
async def database(database_url):
    async with open_database(database_url) as database:
        yield database


async def test_an_audit_is_written_once_per_choice(database):
    scores = audits.pack_scores({"margin": [0.0, 0.5]})
    async with database.writing() as session:
        assert await audits.add(session, [audit(1, scores=scores), audit(1, choice_index=1)]) == 2
        assert await audits.add(session, [audit(1, tokens=5, exact_matches=5), audit(2)]) == 1
        assert await audits.add(session, []) == 0
    async with database.reading() as session:
        stored = (await session.scalars(select(Audit).order_by(Audit.exchange_id, Audit.choice_index))).all()
    assert [(row.exchange_id, row.choice_index, row.tokens) for row in stored] == [
        ("0193-0001", 0, 100), ("0193-0001", 1, 100), ("0193-0002", 0, 100)
    ]
    assert audits.unpack_scores(stored[0].scores)["margin"].tolist() == [0.0, 0.5]
    assert {name: getattr(stored[0], name) for name in vars(audit(1))} == vars(audit(1, scores=scores))


async def test_audits_and_job_end_together_or_not_at_all(database):
    async with database.writing() as session:
        await exchanges.record(session, [exchange(1)])
        (held,) = await jobs.claim(session, worker="w", limit=1, lease=NOON - NOON, now=NOON.replace(hour=13))
        await jobs.release_stalled(session, now=NOON.replace(hour=14), max_attempts=9)

    async def finish() -> None:
        async with database.writing() as session:
            await audits.add(session, [audit(1)])
            if not await jobs.complete(session, held):
                raise LookupError("lease lost")

    with pytest.raises(LookupError):
        await finish()
    async with database.reading() as session:
        assert await session.scalar(select(func.count()).select_from(Audit)) == 0


async def test_the_summary_sums_verified_audits_per_stream(database):
    rows = [
        audit(1),
        audit(1, choice_index=1, exact_matches=90),
        audit(2, verdict_status="unsupported", reason="logprobs missing", exact_matches=0),
        audit(3, verdict_status="failed", reason="out of memory", tokens=0, exact_matches=0),
        audit(4, upstream="cheap", exact_matches=60, outside_support=3, sampler=None),
    ]
    async with database.writing() as session:
        await audits.add(session, rows)
    async with database.reading() as session:
        cheap, honest = await audits.summary(session)
        assert await audits.summary(session, upstream="cheap") == [cheap]
        assert await audits.summary(session, since=rows[4].created_at) == [cheap]
    assert (cheap.upstream, cheap.sampler, cheap.tokens, cheap.exact_matches) == ("cheap", None, 100, 60)
    assert cheap.outside_support == 3
    assert (honest.requests, honest.audits, honest.tokens, honest.exact_matches) == (3, 4, 200, 188)
    assert (honest.unsupported, honest.failed) == (1, 1)


async def test_queries_by_hand_read_plainly(database):
    """The README's three, word for word the same on both databases."""
    async with database.writing() as session:
        await exchanges.record(session, [exchange(1), exchange(2)])
        await audits.add(session, [audit(1), audit(2, exact_matches=50)])
    by_day = """
        SELECT upstream, date(created_at) AS day, sum(exact_matches) * 1.0 / sum(tokens) AS match_rate
        FROM audits WHERE verdict_status = 'verified' GROUP BY upstream, day ORDER BY day, upstream"""
    worst = """
        SELECT exchange_id, audits.upstream, tokens, exact_matches, request
        FROM audits JOIN exchanges ON exchanges.id = audits.exchange_id
        WHERE verdict_status = 'verified' AND tokens >= 20
        ORDER BY exact_matches * 1.0 / tokens LIMIT 10"""
    lag = "SELECT state, count(*) AS jobs, min(created_at) AS oldest FROM jobs GROUP BY state"
    async with database.reading() as session:
        ((upstream, day, rate),) = (await session.execute(text(by_day))).all()
        assert (upstream, str(day), float(rate)) == ("honest", "2026-11-23", 0.74)
        assert [row.exchange_id for row in await session.execute(text(worst))] == ["0193-0002", "0193-0001"]
        assert [(row.state, row.jobs) for row in await session.execute(text(lag))] == [("todo", 2)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"verdict_status": "guilty"}, "'guilty' is not a valid VerdictStatus"),
        ({"token_source": "guessed"}, "'guessed' is not a valid TokenSource"),
        ({"verdict_status": "unsupported"}, "has no reason"),
    ],
)
def test_an_audit_says_what_it_is(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        audit(1, **changes)


@pytest.mark.parametrize(
    "changes",
    [{"exact_matches": 101}, {"outside_support": -1}, {"ambiguous_tokens": 101}, {"choice_index": -1}],
)
async def test_the_database_refuses_impossible_counts(database, changes):
    with pytest.raises(IntegrityError):
        async with database.writing() as session:
            await audits.add(session, [audit(1, **changes)])
