"""Turns in the queue, day partitions on Postgres, dead letters, retention, views for dashboards."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        rebuild_jobs_on_postgres()
        partition_exchanges()
    else:
        rebuild_jobs_on_sqlite()
        op.execute("ALTER TABLE exchanges ADD COLUMN user_hash TEXT")
        op.execute("ALTER TABLE exchanges ADD COLUMN redacted_at DATETIME")
    partial_index("ix_exchanges_user_hash", "exchanges", ["user_hash"], "user_hash IS NOT NULL")
    create_job_indices()
    create_audit_indices()
    create_dead_letters()
    create_retention()
    create_views()


COPIED = "exchange_id, reference, state, created_at, run_at, attempts, lease_token, lease_until, worker, reason"
UPSTREAM = "(SELECT upstream FROM exchanges WHERE exchanges.id = jobs.exchange_id)"


def rebuild_jobs_on_sqlite() -> None:
    """SQLite drops no foreign key: the rows go into a new table."""
    for name in ("ix_jobs_due", "ix_jobs_due_by_reference", "ix_jobs_leased"):
        op.drop_index(name, "jobs")
    op.execute("ALTER TABLE jobs RENAME TO jobs_0001")
    op.execute("""
        CREATE TABLE jobs (
            id INTEGER NOT NULL,
            exchange_id TEXT NOT NULL,
            upstream TEXT NOT NULL,
            reference TEXT NOT NULL,
            state VARCHAR(32) NOT NULL,
            created_at DATETIME NOT NULL,
            turn BIGINT NOT NULL,
            run_at DATETIME NOT NULL,
            attempts INTEGER NOT NULL,
            lease_token INTEGER NOT NULL,
            lease_until DATETIME,
            worker TEXT,
            reason TEXT,
            CONSTRAINT ck_jobs_state CHECK (state IN ('todo', 'leased', 'done', 'failed')),
            CONSTRAINT ck_jobs_lease_has_end CHECK ((state = 'leased') = (lease_until IS NOT NULL)),
            CONSTRAINT ck_jobs_lease_has_worker CHECK ((state = 'leased') = (worker IS NOT NULL)),
            CONSTRAINT ck_jobs_failure_has_reason CHECK (state <> 'failed' OR reason IS NOT NULL),
            CONSTRAINT pk_jobs PRIMARY KEY (id),
            CONSTRAINT uq_jobs_exchange_id UNIQUE (exchange_id)
        )""")
    op.execute(f"INSERT INTO jobs (id, upstream, turn, {COPIED}) SELECT id, {UPSTREAM}, id, {COPIED} "
               "FROM jobs_0001 AS jobs")  # fmt: skip
    op.execute("DROP TABLE jobs_0001")


def rebuild_jobs_on_postgres() -> None:
    op.drop_constraint("fk_jobs_exchange_id", "jobs")
    for name in ("ix_jobs_due", "ix_jobs_due_by_reference"):
        op.drop_index(name, "jobs")
    op.drop_index("ix_jobs_leased", "jobs")
    op.execute("ALTER TABLE jobs ADD COLUMN upstream text, ADD COLUMN turn bigint")
    op.execute(f"UPDATE jobs SET turn = id, upstream = {UPSTREAM}")
    op.execute("ALTER TABLE jobs ALTER COLUMN upstream SET NOT NULL, ALTER COLUMN turn SET NOT NULL")
    # its rows change state all day: vacuum often, in small bites, so that the queue's head stays short
    op.execute("ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0)")


def create_job_indices() -> None:
    partial_index("ix_jobs_due", "jobs", ["turn", "id"], "state = 'todo'")
    partial_index("ix_jobs_due_by_reference", "jobs", ["reference", "turn", "id"], "state = 'todo'")
    partial_index("ix_jobs_due_by_upstream", "jobs", ["upstream", "turn"], "state = 'todo'")
    partial_index("ix_jobs_leased", "jobs", ["lease_until"], "state = 'leased'")


def partition_exchanges() -> None:
    """A table cannot become partitioned: the rows go into a new one, a partition for each of their days."""
    op.drop_index("ix_exchanges_created_at", "exchanges")
    op.execute("ALTER TABLE exchanges RENAME CONSTRAINT pk_exchanges TO pk_exchanges_0001")
    op.execute("ALTER TABLE exchanges RENAME TO exchanges_0001")
    op.execute("""
        CREATE TABLE exchanges (
            id text NOT NULL,
            created_at timestamptz NOT NULL,
            upstream text NOT NULL,
            endpoint text NOT NULL,
            model text NOT NULL,
            streamed boolean NOT NULL,
            status integer NOT NULL,
            outcome varchar(32) NOT NULL,
            first_byte_seconds double precision,
            total_seconds double precision NOT NULL,
            audit boolean NOT NULL,
            unaudited_reason text,
            reference text,
            sampler text,
            user_hash text,
            redacted_at timestamptz,
            request json NOT NULL,
            forced json NOT NULL,
            overridden json NOT NULL,
            response json NOT NULL,
            CONSTRAINT ck_exchanges_audited_or_reason CHECK (audit = (unaudited_reason IS NULL)),
            CONSTRAINT ck_exchanges_audited_against_reference CHECK (reference IS NOT NULL OR NOT audit),
            CONSTRAINT pk_exchanges PRIMARY KEY (id, created_at)
        ) PARTITION BY RANGE (created_at)""")
    op.execute("CREATE INDEX ix_exchanges_created_at ON exchanges (created_at)")
    connection = op.get_bind()
    days = connection.execute(
        sa.text("SELECT DISTINCT CAST(created_at AT TIME ZONE 'UTC' AS date) FROM exchanges_0001 ORDER BY 1")
    )
    for (day,) in days.all():
        op.execute(
            f"CREATE TABLE exchanges_{day:%Y%m%d} PARTITION OF exchanges FOR VALUES "
            f"FROM ('{day} 00:00+00') TO (timestamptz '{day} 00:00+00' + interval '24 hours')"
        )
    columns = (
        "id, created_at, upstream, endpoint, model, streamed, status, outcome, first_byte_seconds, total_seconds, "
        "audit, unaudited_reason, reference, sampler, request, forced, overridden, response"
    )
    op.execute(f"INSERT INTO exchanges ({columns}) SELECT {columns} FROM exchanges_0001")
    op.execute("DROP TABLE exchanges_0001")


def create_audit_indices() -> None:
    # holds all that a match rate is made of, so that one is read off the index alone
    columns = ["upstream", "created_at", "model", "reference", "sampler", "tokens", "exact_matches", "outside_support"]
    partial_index("ix_audits_verified", "audits", columns, "verdict_status = 'verified'")
    partial_index("ix_audits_worst", "audits", ["exact_match_rate"], "verdict_status = 'verified' AND tokens >= 20")


def create_dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        moment("created_at"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dead_letters"),
    )


def create_retention() -> None:
    op.create_table(
        "retention",
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("payload_days", sa.Integer(), nullable=True),
        sa.Column("verdict_days", sa.Integer(), nullable=True),
        sa.Column("redact_verified", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("upstream", name="pk_retention"),
    )
    op.create_table(
        "erasures",
        sa.Column("user_hash", sa.Text(), nullable=False),
        moment("erased_at"),
        sa.PrimaryKeyConstraint("user_hash", name="pk_erasures"),
    )


def create_views() -> None:
    """Documented in docs/database.md; hours are UTC."""
    if op.get_bind().dialect.name == "postgresql":
        hour = "date_trunc('hour', created_at AT TIME ZONE 'UTC')"
        age = "CAST(EXTRACT(EPOCH FROM now() - min(jobs.created_at)) AS double precision)"
    else:
        hour = "substr(created_at, 1, 13) || ':00:00'"
        age = "(julianday('now') - julianday(min(jobs.created_at))) * 86400.0"
    op.execute(f"""
        CREATE VIEW match_rate_hourly AS
        SELECT upstream, model, reference, sampler, {hour} AS hour, count(*) AS audits, sum(tokens) AS tokens,
               sum(exact_matches) AS exact_matches, sum(outside_support) AS outside_support,
               CAST(sum(exact_matches) AS double precision) / nullif(sum(tokens), 0) AS match_rate
        FROM audits WHERE verdict_status = 'verified'
        GROUP BY upstream, model, reference, sampler, {hour}""")
    op.execute("""
        CREATE VIEW worst_exchanges AS
        SELECT exchange_id, choice_index, created_at, upstream, model, reference, sampler, tokens, exact_match_rate,
               outside_support, clipped_margin
        FROM audits WHERE verdict_status = 'verified' AND tokens >= 20""")
    op.execute(f"""
        CREATE VIEW audit_lag AS
        SELECT upstream, reference, state, count(*) AS jobs, min(jobs.created_at) AS oldest, {age} AS lag_seconds
        FROM jobs WHERE state IN ('todo', 'leased') GROUP BY upstream, reference, state""")


def moment(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)


def partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
