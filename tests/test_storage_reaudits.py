"""Re-audits beside audits: what a run still has to do, and how both compare, on both databases."""

from datetime import timedelta

import pytest
from sqlalchemy import select
from storage_rows import MINUTE, NOON, audit, exchange, unaudited

from storage import audits, exchanges, reaudits
from storage.database import open_database
from storage.models_reaudits import Reaudit
from storage.reaudits import Key, Selection
from storage.retention import purge, set_rules
from storage.retention_rule import Rule

RUN = Selection("new", NOON, NOON + timedelta(days=1))


@pytest.fixture
async def database(database_url):
    async with open_database(database_url) as database:
        async with database.writing() as session:
            await exchanges.record(session, [*(exchange(number) for number in range(6)), unaudited(6), exchange(7)])
            await audits.add(session, [audit(number, exact_matches=90) for number in range(6)])
        yield database


async def left(database, selection=RUN, **how):
    async with database.reading() as session:
        return [key.exchange_id for key in await reaudits.left(session, selection, **{"limit": 99, **how})]


async def add(database, *made, run="new"):
    async with database.writing() as session:
        return await reaudits.add(session, run, made)


async def test_a_run_is_about_audited_exchanges_and_does_none_twice(database):
    everything = [f"0193-000{number}" for number in range(6)]
    assert await left(database) == everything
    assert await add(database, audit(0), audit(2)) == 2
    assert await add(database, audit(0, exact_matches=1)) == 0
    assert await left(database) == [everything[number] for number in (1, 3, 4, 5)]
    assert await left(database, limit=2, after=Key(NOON + timedelta(seconds=1), everything[1])) == everything[3:5]
    async with database.reading() as session:
        assert await reaudits.count_left(session, RUN) == 4
        assert [one.exact_matches for one in await session.scalars(select(Reaudit).order_by(Reaudit.exchange_id))] == [
            98, 98
        ]  # fmt: skip


async def test_another_run_and_another_selection_are_apart(database):
    await add(database, audit(0), run="other")
    assert len(await left(database)) == 6
    assert await left(database, Selection("new", NOON, NOON + timedelta(seconds=2))) == ["0193-0000", "0193-0001"]
    assert await left(database, Selection("new", NOON, NOON + timedelta(days=1), upstream="else")) == []
    assert await left(database, Selection("new", NOON, NOON + timedelta(days=1), model="else")) == []


async def test_rates_of_what_was_verified_both_times_are_compared(database):
    made = [audit(number, reference="b", sampler="greedy", exact_matches=50, ambiguous_tokens=20) for number in (0, 1)]
    refused = audit(2, reference="b", sampler="greedy", verdict_status="unsupported", reason="no_seed", tokens=0,
                    exact_matches=0)  # fmt: skip
    await add(database, *made, refused)
    async with database.reading() as session:
        (found,) = await reaudits.compare(session, "new")
        assert await reaudits.compare(session, "other") == []
    assert (found.old_reference, found.new_reference, found.new_sampler) == ("smollm2-bf16", "b", "greedy")
    assert (found.choices, found.unverified) == (2, 1)
    assert (found.old_matches, found.old_tokens, found.new_matches, found.new_tokens) == (180, 200, 100, 160)


async def test_what_is_purged_of_audits_is_purged_of_re_audits(database):
    await add(database, audit(0), audit(1))
    async with database.writing() as session:
        await set_rules(session, ["honest"], [Rule(upstream="honest", verdict_days=1)])
    await purge(database, now=NOON + timedelta(days=1) + MINUTE + timedelta(seconds=1))
    async with database.reading() as session:
        assert [one.exchange_id for one in await session.scalars(select(Reaudit))] == ["0193-0001"]
