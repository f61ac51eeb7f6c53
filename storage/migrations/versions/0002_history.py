"""The past of streams, and the texts of audited tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_stream_history()
    create_verdict_changes()
    op.add_column("audits", sa.Column("pieces", sa.LargeBinary(), nullable=True))


def create_stream_history() -> None:
    counts = ["audits", "unsupported", "failed", "tokens", "exact_matches", "outside_support", "ambiguous_tokens"]
    op.create_table(
        "stream_history",
        *stream_names(),
        sa.Column("span", sa.String(32), nullable=False),
        moment("at"),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in counts),
        sa.Column("match_rates", sa.JSON(), nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("log_e", sa.Double(), nullable=False),
        sa.Column("total_requests", sa.Integer(), nullable=False),
        sa.Column("total_tokens", sa.Integer(), nullable=False),
        sa.Column("effects", sa.JSON(), nullable=False),
        sa.CheckConstraint(
            "span IN ('ten_seconds', 'minute', 'hour', 'day')", name=op.f("ck_stream_history_span")
        ),
        sa.PrimaryKeyConstraint(
            "upstream", "model", "reference", "sampler", "span", "at", name="pk_stream_history"
        ),
    )
    op.create_index("ix_stream_history_span_at", "stream_history", ["span", "at"])


def create_verdict_changes() -> None:
    op.create_table(
        "verdict_changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        moment("at"),
        *stream_names(),
        sa.Column("previous", sa.String(32), nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("log_e", sa.Double(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_verdict_changes"),
    )
    stream = ["upstream", "model", "reference", "sampler", "id"]
    op.create_index("ix_verdict_changes_stream", "verdict_changes", stream)
    op.create_index("ix_verdict_changes_at", "verdict_changes", ["at"])


def stream_names() -> "list[sa.Column[str]]":
    return [sa.Column(name, sa.Text(), nullable=False) for name in ("upstream", "model", "reference", "sampler")]


def moment(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)
