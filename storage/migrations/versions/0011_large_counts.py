"""Sums over a stream's life, and over a day, in 64 bits: one GPU audits 2**31 tokens in less than a day."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SUMS = {
    "streams": ("audits", "requests", "tokens", "drift_alarm_at"),
    "stream_history": (
        "tokens", "exact_matches", "outside_support", "ambiguous_tokens", "total_requests", "total_tokens",
    ),
    "verdict_changes": ("requests", "tokens"),
    "proxy_processes": ("recorded", "lost", "waiting"),
}  # fmt: skip


def upgrade() -> None:
    # SQLite's integers have 64 bits, whatever their column's type is called
    if op.get_bind().dialect.name != "postgresql":
        return
    # Postgres changes no column that a view reads: the view goes, and comes back as it was
    view = op.get_bind().scalar(sa.text("SELECT pg_get_viewdef('match_rate_hourly'::regclass)"))
    op.execute("DROP VIEW match_rate_hourly")
    for table, columns in SUMS.items():
        for column in columns:
            op.alter_column(table, column, type_=sa.BigInteger())
    op.execute(f"CREATE VIEW match_rate_hourly AS {view}")
