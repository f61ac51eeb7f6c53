"""Upgrades from every released schema with rows in it: nothing is lost, and what was due is still due."""

from datetime import timedelta

import pytest
from alembic import command
from sqlalchemy import Connection, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from storage_rows import NOON, audit, exchange

from storage import audits, exchanges, jobs
from storage.columns import dump_json
from storage.database import open_database
from storage.engines import parse_url
from storage.models import Audit, Exchange, Job, JobState
from storage.schema import alembic_config, known_revisions

RELEASED = known_revisions()[:0:-1]
DAYS = [NOON, NOON + timedelta(hours=11, minutes=59), NOON + timedelta(days=1), NOON - timedelta(days=400)]


def upgrade_to(connection: Connection, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def fill_0001(connection: Connection) -> None:
    """Rows as the first release wrote them."""
    for number, moment in enumerate(DAYS):
        values = {**vars(exchange(number, created_at=moment)), "moment": moment}
        values.pop("user_hash")
        for name in ("request", "forced", "overridden", "response"):
            values[name] = dump_json(values[name])
        if connection.dialect.name == "sqlite":
            values["moment"] = moment.strftime("%Y-%m-%d %H:%M:%S.%f")
        columns = [name for name in values if name not in ("moment", "created_at")]
        connection.execute(
            text(f"INSERT INTO exchanges (created_at, {', '.join(columns)}) "
                 f"VALUES (:moment, {', '.join(':' + name for name in columns)})"),
            values,
        )
        leased = number == 1
        connection.execute(
            text("INSERT INTO jobs (exchange_id, reference, state, created_at, run_at, attempts, lease_token, "
                 "lease_until, worker) VALUES (:id, :reference, :state, :moment, :moment, :attempts, :attempts, "
                 ":until, :worker)"),
            {**values, "state": "leased" if leased else "todo", "attempts": int(leased),
             "until": values["moment"] if leased else None, "worker": "w" if leased else None},
        )  # fmt: skip


async def filled(url: str, revision: str) -> None:
    engine = create_async_engine(parse_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade_to, "0001")
        await connection.run_sync(fill_0001)
        await connection.run_sync(upgrade_to, revision)
    await engine.dispose()


@pytest.mark.parametrize("revision", RELEASED)
async def test_an_upgrade_keeps_rows_and_the_queue(database_url, revision):
    await filled(database_url, revision)
    async with open_database(database_url) as database:
        async with database.reading() as session:
            rows = list(await session.scalars(select(Exchange).order_by(Exchange.id)))
            queue = list(await session.scalars(select(Job).order_by(Job.id)))
        assert [row.created_at for row in rows] == DAYS
        assert {name: getattr(rows[0], name) for name in vars(exchange(0))} == vars(exchange(0, created_at=NOON))
        assert [job.state for job in queue] == [JobState.TODO, JobState.LEASED, JobState.TODO, JobState.TODO]
        assert {job.upstream for job in queue} == {"honest"}
        async with database.writing() as session:
            later = NOON + timedelta(days=9)
            assert await jobs.release_stalled(session, now=later, max_attempts=9) == 1
            claims = await jobs.claim(session, worker="w", limit=9, lease=timedelta(1), now=later)
            assert sorted(claim.exchange_id for claim in claims) == [row.id for row in rows]
            assert await exchanges.record(session, [exchange(0), exchange(0, created_at=NOON), exchange(50)]) == 1
            await audits.add(session, [audit(0)])
        async with database.reading() as session:
            assert len(list(await session.scalars(select(Audit)))) == 1


def test_the_first_release_is_tested():
    assert "0001" in RELEASED
