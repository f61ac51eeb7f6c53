"""The list of exchanges: filters, pages without gaps, ids, and plans that never look at a whole table."""

from datetime import timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql
from storage_rows import exchange, unaudited
from watched import NOW, fill

from storage import exchanges, search
from storage.database import open_database
from storage.models import Exchange
from storage.search import Auditing, Filters
from storage.streams import StreamKey

CHEAP = StreamKey("cheap", "smollm2", "smollm2-bf16", "vllm@0.26.0/v2")


FOUND = [
    (Filters(), 18),
    (Filters(upstream="cheap"), 8),
    (Filters(upstream="no such"), 0),
    (Filters(model="smollm2"), 18),
    (Filters(outcome="complete"), 18),
    (Filters(outcome="malformed"), 0),
    (Filters(auditing=Auditing.VERIFIED), 16),
    (Filters(auditing=Auditing.WAITING), 1),
    (Filters(auditing=Auditing.UNAUDITED), 1),
    (Filters(auditing=Auditing.GIVEN_UP), 0),
    (Filters(match_below=0.9), 8),
    (Filters(match_below=0.9, upstream="honest"), 0),
    (Filters(since=NOW - timedelta(minutes=3)), 2),
    (Filters(until=NOW - timedelta(minutes=3)), 16),
]


async def test_filters_find_what_they_ask_for(database_url):
    async with open_database(database_url) as database:
        await fill(database)
        async with database.reading() as session:
            for filters, count in FOUND:
                page = await search.page(session, filters)
                assert (filters, len(page.rows)) == (filters, count)
                assert page.seen_back_to is None
                moments = [row.created_at for row in page.rows]
                assert moments == sorted(moments, reverse=True)


@pytest.mark.parametrize("filters", [Filters(), Filters(model="smollm2"), Filters(upstream="honest")])
async def test_pages_join_without_gap_or_repetition(database_url, monkeypatch, filters):
    monkeypatch.setattr(search, "MOST_SEEN", 4)
    async with open_database(database_url) as database:
        # two of each moment: the id decides among them
        made = [exchange(n, created_at=NOW + timedelta(seconds=n // 2)) for n in range(20)]
        async with database.writing() as session:
            await exchanges.record(session, made)
        found, before = [], None
        async with database.reading() as session:
            while True:
                page = await search.page(session, filters, before=before, limit=3)
                found += [row.id for row in page.rows]
                before = page.seen_back_to
                if before is None:
                    break
    assert found == sorted((one.id for one in made), reverse=True)


async def test_a_narrow_filter_stops_after_what_it_may_see_and_says_where(database_url, monkeypatch):
    monkeypatch.setattr(search, "MOST_SEEN", 5)
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [unaudited(n, created_at=NOW + timedelta(seconds=n)) for n in range(12)])
        async with database.reading() as session:
            page = await search.page(session, Filters(upstream="elsewhere"))
    assert (list(page.rows), page.seen_back_to.id) == ([], "0193-0007")


async def test_what_went_wrong_is_found_at_once_however_long_ago(database_url, monkeypatch):
    monkeypatch.setattr(search, "MOST_SEEN", 5)
    async with open_database(database_url) as database:
        async with database.writing() as session:
            made = [exchange(n, created_at=NOW + timedelta(seconds=n)) for n in range(1, 30)]
            await exchanges.record(session, [exchange(0, created_at=NOW, outcome="malformed"), *made])
        async with database.reading() as session:
            page = await search.page(session, Filters(outcome="malformed"))
    assert ([row.id for row in page.rows], page.seen_back_to) == (["0193-0000"], None)


async def test_an_id_is_found_by_its_beginning_or_a_part(database_url):
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [unaudited(n) for n in (11, 12, 199)])
        async with database.reading() as session:
            async def ids(text: str) -> list[str]:
                return [row.id for row in await search.find(session, text)]

            assert await ids("0193-0011") == ["0193-0011"]
            assert await ids("0193-001") == ["0193-0012", "0193-0011"]
            assert await ids("-0199") == ["0193-0199"]
            assert await ids("199") == []
            assert await ids("%_%_") == []


async def test_the_worst_and_the_latest_are_a_streams_own(database_url):
    async with open_database(database_url) as database:
        await fill(database)
        async with database.reading() as session:
            latest = await search.latest(session, CHEAP, limit=3)
            worst = await search.worst(session, CHEAP)
            found, audits, job = await search.exchange(session, latest[0].exchange_id)
    assert [row.exchange_id for row in latest] == ["0193-0015", "0193-0013", "0193-0011"]
    assert len(worst) == 8
    assert (found.id, len(audits), job.state.value) == ("0193-0015", 1, "done")


async def test_the_list_reads_the_index_of_its_order(sqlite_url):
    async with open_database(sqlite_url) as database, database.reading() as session:
        statement = search._window(Filters(upstream="x"), search.Cursor(NOW, "id"), 50)
        compiled = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        plan = (await session.execute(text(f"EXPLAIN QUERY PLAN {compiled}"))).all()
    assert any("ix_exchanges_created_at" in row.detail for row in plan), plan


UUIDS = [
    f"{int(NOW.timestamp() * 1e3) >> 16:08x}-0000-7000-8000-000000000001",
    "ffffffff-ffff-7fff-bfff-ffffffffffff", "00000000-0000-7000-8000-000000000000",
]  # fmt: skip


async def test_what_went_wrong_is_read_by_its_own_index(sqlite_url):
    async with open_database(sqlite_url) as database, database.reading() as session:
        statement = search._window(Filters(outcome="malformed"), search.Cursor(NOW, "id"), 50)
        options = {"literal_binds": True, "render_postcompile": True}
        compiled = statement.compile(session.get_bind(), compile_kwargs=options)
        plan = (await session.execute(text(f"EXPLAIN QUERY PLAN {compiled}"))).all()
    assert any("ix_exchanges_incomplete (outcome=? AND created_at<?)" in row.detail for row in plan), plan


@pytest.mark.parametrize("identifier", UUIDS)
async def test_an_exchange_is_found_whatever_time_its_id_names(database_url, identifier):
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [unaudited(1, id=identifier, created_at=NOW)])
        async with database.reading() as session:
            found, *_ = await search.exchange(session, identifier)
            listed = await search.find(session, identifier)
            assert (await search.exchange(session, identifier[:-1] + "2"))[0] is None
    assert (found.id, [row.id for row in listed]) == (identifier, [identifier])


async def test_an_exchange_is_looked_for_in_the_tables_of_its_days(postgres_url):
    async with open_database(postgres_url) as database:
        async with database.writing() as session:
            days = [NOW - timedelta(days=day) for day in range(0, 40, 4)]
            await exchanges.record(session, [unaudited(n, created_at=day) for n, day in enumerate(days)])
        (near,) = search._days_of(UUIDS[0])
        query = select(Exchange.id).where(Exchange.id == "x", near)
        compiled = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
        async with database.reading() as session:
            plan = (await session.execute(text(f"EXPLAIN {compiled}"))).scalars().all()
    assert 1 <= sum("on exchanges_" in line for line in plan) <= 3
