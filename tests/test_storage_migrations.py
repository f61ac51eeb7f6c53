"""Upgrades from every released schema with rows in it: nothing is lost, and what was due is still due."""

from datetime import timedelta

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from storage_rows import NOON, audit, exchange

from storage import audits, exchanges, jobs
from storage.columns import dump_json
from storage.database import open_database
from storage.engines import parse_url
from storage.models import Audit, Exchange, Job, JobState
from storage.models_history import StreamHistory
from storage.schema import alembic_config, known_revisions

RELEASED = known_revisions()[:0:-1]
DAYS = [NOON, NOON + timedelta(hours=11, minutes=59), NOON + timedelta(days=1), NOON - timedelta(days=400)]


def test_revisions_are_those_that_alembic_finds():
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    assert known_revisions() == [script.revision for script in scripts]


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


AUDITED = [  # position, minutes after noon, tokens, matches, status
    (1, 0, 100, 90, "verified"), (2, 59, 50, 50, "verified"), (3, 59, 0, 0, "unsupported"),
    (4, 60, 200, 100, "verified"), (5, 90, 10, 9, "verified"),
]  # fmt: skip


def fill_audits(connection: Connection, sampler: str | None) -> None:
    """Audits of a stream as they were weighed, and the stream."""
    names = {"upstream": "honest", "model": "smollm2", "reference": "smollm2-bf16"}
    for position, minutes, tokens, matches, status in AUDITED:
        moment = NOON + timedelta(minutes=minutes)
        values = {
            **names, "sampler": sampler, "exchange_id": f"{sampler}{position}", "choice_index": 0,
            "stream_position": position, "tokens": tokens, "exact_matches": matches, "verdict_status": status,
            "exact_match_rate": matches / tokens if tokens else None, "outside_support": min(1, tokens),
            "reason": "empty_answer" if status == "unsupported" else None, "ambiguous_tokens": 0, "notes": "{}",
            "created_at": moment.strftime("%Y-%m-%d %H:%M:%S.%f") if connection.dialect.name == "sqlite" else moment,
        }  # fmt: skip
        insert(connection, "audits", values)
    insert(connection, "streams", {
        **names, "sampler": sampler or "", "updated_at": values["created_at"], "audits": len(AUDITED), "requests": 4,
        "tokens": 360, "verdict": "inconclusive", "reasons": "[]", "log_e": 0.0, "detail": "{}", "state": "{}",
    })  # fmt: skip


def insert(connection: Connection, table: str, values: dict) -> None:
    columns = f"({', '.join(values)}) VALUES ({', '.join(':' + name for name in values)})"
    connection.execute(text(f"INSERT INTO {table} {columns}"), values)


def note_the_last(connection: Connection, sampler: str) -> None:
    """The history as the second release kept it: it began in the middle of an hour, with the fifth audit."""
    at = {"hour": NOON + timedelta(hours=1), "day": NOON.replace(hour=0)}
    for span, moment in at.items():
        insert(connection, "stream_history", {
            "upstream": "honest", "model": "smollm2", "reference": "smollm2-bf16", "sampler": sampler, "span": span,
            "at": moment.strftime("%Y-%m-%d %H:%M:%S.%f") if connection.dialect.name == "sqlite" else moment,
            "audits": 1, "unsupported": 0, "failed": 0, "tokens": 10, "exact_matches": 9, "outside_support": 1,
            "ambiguous_tokens": 0, "match_rates": "[0, 0, 0, 0, 0, 1, 0, 0, 0, 0]", "verdict": "consistent",
            "log_e": 1.5, "total_requests": 4, "total_tokens": 360, "effects": "[]",
        })  # fmt: skip


@pytest.mark.parametrize("sampler", ["vllm@0.26.0/v2", None])
@pytest.mark.parametrize("noted", [False, True], ids=["no history", "the last audit is in the history"])
async def test_hours_from_before_the_history_are_counted(database_url, sampler, noted):
    engine = create_async_engine(parse_url(database_url))
    async with engine.begin() as connection:
        await connection.run_sync(upgrade_to, "0001")
        await connection.run_sync(fill_audits, sampler)
        await connection.run_sync(upgrade_to, "0002" if noted else "0007")
        if noted:
            await connection.run_sync(note_the_last, sampler or "")
    await engine.dispose()
    async with open_database(database_url) as database, database.reading() as session:
        hours = await session.execute(text(
            "SELECT audits, tokens, exact_matches, outside_support, match_rate FROM match_rate_hourly ORDER BY hour"
        ))  # fmt: skip
        assert [tuple(row) for row in hours] == [(2, 150, 140, 2, 140 / 150), (2, 210, 109, 2, 109 / 210)]
        (day,) = await session.scalars(select(StreamHistory).where(StreamHistory.span == "day"))
        assert (day.audits, day.unsupported, day.tokens, day.sampler) == (5, 1, 360, sampler or "")
        assert day.match_rates == [1, 0, 0, 0, 0, 2, 0, 0, 0, 1]
        assert (day.verdict, day.log_e) == (("consistent", 1.5) if noted else ("inconclusive", 0.0))


def test_the_first_release_is_tested():
    assert "0001" in RELEASED
