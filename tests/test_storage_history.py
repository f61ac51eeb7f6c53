"""A stream's past: every audit is counted once in each span, fine rows go, and a change of verdict leaves a row."""

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import select
from watched import NOW, TOKENS, fill, one

from storage import history
from storage.database import open_database
from storage.models_history import Span, StreamHistory
from storage.streams import StreamKey

HONEST = StreamKey("honest", "smollm2", "smollm2-bf16", "vllm@0.26.0/v2")
CHEAP = StreamKey("cheap", "smollm2", "smollm2-bf16", "vllm@0.26.0/v2")


async def test_every_audit_is_counted_once_in_each_span(database_url):
    async with open_database(database_url) as database:
        await fill(database)
        for span in Span:
            await assert_all_counted(database, span)


async def assert_all_counted(database, span):
    async with database.reading() as session:
        rows = await history.of_stream(session, HONEST, span=span, since=NOW - timedelta(days=1), effects=True)
        assert [row.at for row in rows] == sorted({row.at for row in rows})
        assert sum(row.audits for row in rows) == 8
        assert sum(row.tokens for row in rows) == sum(row.exact_matches for row in rows) == 8 * TOKENS
        assert sum(row.match_rates[-1] for row in rows) == sum(sum(row.match_rates) for row in rows) == 8
        assert (rows[-1].total_requests, rows[-1].total_tokens) == (8, 8 * TOKENS)
        mismatch = next(effect for effect in rows[-1].effects if effect["detector"] == "mismatch")
        assert mismatch["mean"] == 0.0
        assert 0 < mismatch["high"] < 0.2


async def test_a_change_of_verdict_is_noted_once(database_url):
    async with open_database(database_url) as database:
        await fill(database)
        async with database.reading() as session:
            (change,) = await history.verdict_changes(session, CHEAP)
            assert (change.previous, change.verdict) == ("inconclusive", "deviates")
            assert 0 < change.tokens < 8 * TOKENS
            assert change.id in [one.id for one in await history.verdict_changes(session)]


async def test_fine_rows_go_and_coarse_ones_stay(database_url):
    old = NOW - timedelta(days=40)
    async with open_database(database_url) as database:
        await one(database, 1, "honest", 1.0, old)
        await one(database, 2, "honest", 1.0, NOW)
        async with database.reading() as session:
            kept = (await session.execute(select(StreamHistory.span, StreamHistory.at))).all()
    assert sorted(span for span, at in kept if at < NOW - timedelta(days=30)) == ["day", "hour"]
    assert sorted(span for span, at in kept if at > NOW - timedelta(days=2)) == ["day", "hour", "minute", "ten_seconds"]


async def test_a_young_database_is_known_as_such(database_url):
    async with open_database(database_url) as database:
        async with database.reading() as session:
            assert await history.is_younger_than(session, NOW - timedelta(hours=1))
        await one(database, 1, "honest", 1.0, NOW - timedelta(hours=5))
        async with database.reading() as session:
            assert not await history.is_younger_than(session, NOW - timedelta(hours=1))
            assert await history.is_younger_than(session, NOW - timedelta(hours=6))


def test_spans_begin_on_their_round_times():
    moment = datetime(2026, 11, 24, 23, 59, 58, 7, tzinfo=timezone.utc)
    begins = {span: history.start_of(span, moment) for span in Span}
    assert begins[Span.TEN_SECONDS] == moment.replace(second=50, microsecond=0)
    assert begins[Span.MINUTE] == moment.replace(second=0, microsecond=0)
    assert begins[Span.HOUR] == moment.replace(minute=0, second=0, microsecond=0)
    assert begins[Span.DAY] == moment.replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.mark.parametrize("hours", [1, 6, 24, 168, 24 * 30, 24 * 90, 24 * 366])
def test_a_period_has_a_span_that_fits_a_chart(hours):
    span = history.span_for(timedelta(hours=hours))
    assert hours * 3600 / history.SECONDS[span] <= history.MOST_POINTS


@pytest.mark.parametrize("streams", [0, 1, 27, 30, 1000])
def test_many_streams_are_drawn_by_coarser_spans(streams):
    hours, days = (history.span_for(timedelta(hours=count), streams=streams) for count in (1, 24 * 90))
    assert hours is (Span.TEN_SECONDS if streams <= 27 else Span.MINUTE if streams <= 166 else Span.HOUR)
    assert days is Span.DAY
