"""Alerts, their outbox and silences."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_alerts()
    create_notices()
    op.create_table(
        "alert_silences",
        number("id"),
        *(moment(name) for name in ("created_at", "starts_at", "ends_at")),
        sa.Column("matchers", sa.JSON(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alert_silences"),
    )
    op.create_table(
        "alert_evaluation",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        moment("evaluated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_alert_evaluation"),
    )


def create_alerts() -> None:
    op.create_table(
        "alerts",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("fingerprint", "rule", "severity")),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        moment("started_at"),
        moment("seen_at"),
        moment("fired_at", nullable=True),
        moment("resolved_at", nullable=True),
        sa.Column("told", sa.String(32), nullable=True),
        moment("told_at", nullable=True),
        sa.Column("silenced", sa.Boolean(), nullable=False),
        sa.CheckConstraint("state IN ('pending', 'firing', 'resolved')", name=op.f("ck_alerts_state")),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_alerts"),
    )


def create_notices() -> None:
    op.create_table(
        "alert_notices",
        number("id"),
        moment("created_at"),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        moment("run_at"),
        moment("sent_at", nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("state IN ('todo', 'sent', 'failed')", name=op.f("ck_alert_notices_state")),
        sa.PrimaryKeyConstraint("id", name="pk_alert_notices"),
    )
    where = sa.text("state = 'todo'")
    op.create_index(
        "ix_alert_notices_due", "alert_notices", ["receiver", "topic", "id"], sqlite_where=where,
        postgresql_where=where,
    )  # fmt: skip


def number(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False)


def moment(name: str, *, nullable: bool = False) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)
