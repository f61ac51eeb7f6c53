"""What is taken away: when its days are over, when it is audited, when a person asks; and never before its audit."""

import asyncio
from datetime import timedelta

from databases import someone_waits
from sqlalchemy import select, text
from storage_rows import NOON, audit, exchange, unaudited

from storage import audits, exchanges, jobs, partitions, retention
from storage.audits import pack_scores, unpack_scores
from storage.database import open_database
from storage.models import Audit, Exchange, Job
from storage.pieces import pack_pieces
from storage.retention_rule import Rule

DAY = timedelta(days=1)
SCORES = {"token_ids": [5, 6, 7], "predicted_ids": [5, 9, 7], "margin": [0.0, 1.5, 0.0]}


async def filled(database, *rules):
    """Exchange 1 is audited, 2 waits for its audit, 3 had none; 4 is another upstream's."""
    said = {"scores": pack_scores(SCORES), "pieces": pack_pieces([b"a", b"b", b"c"], [b"a", b"x", b"c"])}
    async with database.writing() as session:
        await retention.set_rules(session, ["honest", "other"], rules)
        rows = [exchange(1, user_hash="ann"), exchange(2, user_hash="ann"), unaudited(3), exchange(4, upstream="other")]
        await exchanges.record(session, rows)
        claims = await jobs.claim(session, worker="w", limit=9, lease=DAY, now=NOON + DAY)
        for claim in claims:
            if claim.exchange_id != "0193-0002":
                assert await jobs.complete(session, claim)
        await audits.add(session, [audit(1, **said), audit(4, upstream="other", **said)])


async def left(database):
    async with database.reading() as session:
        columns = (Exchange.id, Job.exchange_id)
        ids = [list(await session.scalars(select(column).order_by(column))) for column in columns]
        said = {row.exchange_id: row for row in await session.scalars(select(Audit))}
        rows = {row.id: row for row in await session.scalars(select(Exchange))}
    return ids[0], ids[1], said, rows


async def test_payloads_go_after_their_days_but_never_before_their_audit(database_url):
    async with open_database(database_url) as database:
        await filled(database, Rule(upstream="honest", payload_days=7))
        assert (await retention.purge(database, now=NOON + 6 * DAY)).exchanges == 0
        assert (await retention.purge(database, now=NOON + 8 * DAY)).exchanges == 2
        kept, queued, said, _ = await left(database)
        assert kept == ["0193-0002", "0193-0004"]
        assert queued == ["0193-0002", "0193-0004"]
        assert (said["0193-0001"].pieces, said["0193-0001"].exact_matches) == (None, 98)
        assert said["0193-0004"].pieces is not None
        scores = unpack_scores(said["0193-0001"].scores)
        assert list(scores["token_ids"]) == [0, 1, 0]
        assert list(scores["predicted_ids"]) == [0, 0, 0]
        assert list(scores["margin"]) == [0.0, 1.5, 0.0]


async def test_audited_exchanges_are_emptied_at_once_where_the_rule_says_so(database_url):
    async with open_database(database_url) as database:
        await filled(database, Rule(upstream="honest", redact_verified=True))
        assert (await retention.purge(database, now=NOON + DAY)).redacted == 2
        assert (await retention.purge(database, now=NOON + DAY)).redacted == 0
        *_, said, rows = await left(database)
        assert (rows["0193-0001"].request, rows["0193-0001"].response) == ({}, {})
        assert rows["0193-0001"].redacted_at == NOON + DAY
        assert rows["0193-0001"].forced == {"seed": 7, "temperature": 1.0}
        assert rows["0193-0002"].request != {}
        assert rows["0193-0004"].request != {}
        assert said["0193-0001"].pieces is None


async def test_verdicts_outlive_payloads_and_go_in_their_turn(database_url):
    async with open_database(database_url) as database:
        await filled(database, Rule(upstream="honest", payload_days=1, verdict_days=30))
        assert (await retention.purge(database, now=NOON + 29 * DAY)).audits == 0
        assert (await retention.purge(database, now=NOON + 31 * DAY)).audits == 1
        *_, said, _ = await left(database)
        assert set(said) == {"0193-0004"}


async def test_an_erased_users_exchanges_go_and_late_records_of_them_stay_out(database_url):
    async with open_database(database_url) as database:
        await filled(database)
        assert await retention.erase(database, "ann", now=NOON + DAY) == 2
        kept, queued, said, _ = await left(database)
        assert kept == ["0193-0003", "0193-0004"]
        assert queued == ["0193-0004"]
        assert said["0193-0001"].pieces is None
        later = exchange(6, user_hash="ann", created_at=NOON + 2 * DAY)
        async with database.writing() as session:
            assert await exchanges.record(session, [exchange(5, user_hash="ann"), later]) == 1
        kept, *_ = await left(database)
        assert kept == ["0193-0003", "0193-0004", "0193-0006"]


async def test_postgres_drops_the_days_that_are_empty(postgres_url):
    async with open_database(postgres_url) as database:
        await filled(database, Rule(upstream="honest", payload_days=1), Rule(upstream="other", payload_days=1))
        async with database.writing() as session:
            claim = (await jobs.claim(session, worker="w", limit=9, lease=DAY, now=NOON + 5 * DAY)) or []
            assert claim == []
            await jobs.release_stalled(session, now=NOON + 5 * DAY, max_attempts=5)
            (claim,) = await jobs.claim(session, worker="w", limit=9, lease=DAY, now=NOON + 5 * DAY)
            assert await jobs.complete(session, claim)
        purged = await retention.purge(database, now=NOON + 9 * DAY)
        assert (purged.exchanges, purged.partitions) == (4, 2)


async def test_days_that_are_wholly_past_are_dropped_without_deleting_a_row(postgres_url):
    """A trigger refuses every DELETE. Days 0 and 1 go as partitions; day 2 is another's, in day 3 something waits."""
    said = {"scores": pack_scores(SCORES), "pieces": pack_pieces([b"a", b"b", b"c"], [b"a", b"x", b"c"])}
    rule = Rule(upstream="honest", payload_days=7)
    async with open_database(postgres_url) as database:
        async with database.writing() as session:
            await retention.set_rules(session, ["honest"], [rule])
            rows = [exchange(1), unaudited(2, created_at=NOON + DAY), exchange(4, created_at=NOON + 3 * DAY)]
            rows.append(unaudited(3, created_at=NOON + 2 * DAY, upstream="other"))
            await exchanges.record(session, rows)
            (claim,) = await jobs.claim(session, worker="w", limit=1, lease=DAY, now=NOON + DAY)
            assert await jobs.complete(session, claim)
            await audits.add(session, [audit(1, **said)])
            await session.execute(text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'deleted'; END $$"
            ))  # fmt: skip
            await session.execute(text(
                "CREATE TRIGGER no_delete BEFORE DELETE ON exchanges FOR EACH ROW EXECUTE FUNCTION refuse()"
            ))  # fmt: skip
        done = await retention.purge(database, now=NOON + 30 * DAY)
        assert (done.exchanges, done.partitions) == (2, 3), "day 4 was made in advance and is empty"
        kept, queued, said, _ = await left(database)
        assert (kept, queued) == (["0193-0003", "0193-0004"], ["0193-0004"])
        assert (said["0193-0001"].pieces, said["0193-0001"].exact_matches) == (None, 98)


async def test_a_record_of_a_day_that_is_being_dropped_is_not_lost(postgres_url):
    async with open_database(postgres_url) as database:
        old = NOON - 400 * DAY
        async with database.writing() as session:
            await exchanges.record(session, [unaudited(1, created_at=old)])
        async with database.writing() as session:
            await partitions.may_drop(session)
            await partitions.drop(session, old.date())
            late = asyncio.create_task(record(database, unaudited(2, created_at=old)))
            await someone_waits(database)
        assert await late == 1
        assert (await left(database))[0] == ["0193-0002"]


async def record(database, row):
    async with database.writing() as session:
        return await exchanges.record(session, [row])
