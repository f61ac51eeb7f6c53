"""What another reference or contract says of exchanges that were audited before."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATUSES = "'verified', 'unsupported', 'failed'"


def upgrade() -> None:
    op.create_table(
        "reaudits",
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("exchange_id", sa.Text(), nullable=False),
        sa.Column("choice_index", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("sampler", sa.Text(), nullable=True),
        sa.Column("verdict_status", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        *(
            sa.Column(name, sa.Integer(), nullable=False)
            for name in ("tokens", "exact_matches", "outside_support", "ambiguous_tokens")
        ),
        *(sa.Column(name, sa.Double(), nullable=True) for name in ("mean_margin", "cross_entropy")),
        sa.CheckConstraint(f"verdict_status IN ({STATUSES})", name="reaudit_status"),
        sa.CheckConstraint(
            "verdict_status = 'verified' OR reason IS NOT NULL", name="unverified_has_reason"
        ),
        sa.PrimaryKeyConstraint("run", "exchange_id", "choice_index", name="pk_reaudits"),
    )
    op.create_index("ix_reaudits_exchange_id", "reaudits", ["exchange_id"])
