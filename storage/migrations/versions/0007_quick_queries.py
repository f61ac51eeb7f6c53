"""Indices and a view for what is asked of large databases; payloads compressed by lz4 on Postgres."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

VERIFIED = sa.text("verdict_status = 'verified'")
UNFINISHED = sa.text("state IN ('todo', 'leased')")


def upgrade() -> None:
    partial_index("ix_jobs_unfinished", "jobs", ["state", "upstream", "reference", "created_at"], UNFINISHED)
    # begins with the time, as queries do, and holds all that a match rate is made of
    op.drop_index("ix_audits_verified", "audits")
    columns = ["created_at", "upstream", "tokens", "exact_matches", "outside_support"]
    partial_index("ix_audits_verified", "audits", columns, VERIFIED)
    read_hours_from_history()
    if op.get_bind().dialect.name == "postgresql":
        compress_by_lz4()


def read_hours_from_history() -> None:
    """The hours are counted as audits are weighed: nobody has to count millions of audits again."""
    op.execute("DROP VIEW match_rate_hourly")
    op.execute("""
        CREATE VIEW match_rate_hourly AS
        SELECT upstream, model, reference, sampler, at AS hour, audits - unsupported - failed AS audits, tokens,
               exact_matches, outside_support,
               CAST(exact_matches AS double precision) / nullif(tokens, 0) AS match_rate
        FROM stream_history WHERE span = 'hour'""")


def partial_index(name: str, table: str, columns: list[str], where: "sa.TextClause") -> None:
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def compress_by_lz4() -> None:
    """Takes a third of the time of Postgres' own; where the server was built without it, things stay as they are."""
    known = "SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
    if op.get_bind().scalar(sa.text(known)):
        for column in ("request", "response"):
            op.execute(f"ALTER TABLE exchanges ALTER COLUMN {column} SET COMPRESSION lz4")
