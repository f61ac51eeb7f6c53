"""Exchanges, jobs, audits, streams, calibrations.

A migration states its tables in full: importing the models would change history whenever they change.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_exchanges()
    create_jobs()
    create_audits()
    create_streams()
    create_calibrations()


def create_exchanges() -> None:
    op.create_table(
        "exchanges",
        sa.Column("id", sa.Text(), nullable=False),
        moment("created_at"),
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("streamed", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("first_byte_seconds", sa.Double(), nullable=True),
        sa.Column("total_seconds", sa.Double(), nullable=False),
        sa.Column("audit", sa.Boolean(), nullable=False),
        sa.Column("unaudited_reason", sa.Text(), nullable=True),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("sampler", sa.Text(), nullable=True),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("forced", sa.JSON(), nullable=False),
        sa.Column("overridden", sa.JSON(), nullable=False),
        sa.Column("response", sa.JSON(), nullable=False),
        check("exchanges", "audited_or_reason", "audit = (unaudited_reason IS NULL)"),
        check("exchanges", "audited_against_reference", "reference IS NOT NULL OR NOT audit"),
        sa.PrimaryKeyConstraint("id", name="pk_exchanges"),
    )
    op.create_index("ix_exchanges_created_at", "exchanges", ["created_at"])


def create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("exchange_id", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        moment("created_at"),
        moment("run_at"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_token", sa.Integer(), nullable=False),
        moment("lease_until", nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        check("jobs", "state", "state IN ('todo', 'leased', 'done', 'failed')"),
        check("jobs", "lease_has_end", "(state = 'leased') = (lease_until IS NOT NULL)"),
        check("jobs", "lease_has_worker", "(state = 'leased') = (worker IS NOT NULL)"),
        check("jobs", "failure_has_reason", "state <> 'failed' OR reason IS NOT NULL"),
        sa.ForeignKeyConstraint(
            ["exchange_id"], ["exchanges.id"], name="fk_jobs_exchange_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("exchange_id", name="uq_jobs_exchange_id"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # every row is rewritten a few times: room on its page keeps vacuum's work small
        op.execute("ALTER TABLE jobs SET (fillfactor = 75)")
    partial_index("ix_jobs_due", ["run_at", "id"], "state = 'todo'")
    partial_index("ix_jobs_due_by_reference", ["reference", "run_at", "id"], "state = 'todo'")
    partial_index("ix_jobs_leased", ["lease_until"], "state = 'leased'")


def create_audits() -> None:
    op.create_table(
        "audits",
        sa.Column("exchange_id", sa.Text(), nullable=False),
        sa.Column("choice_index", sa.Integer(), autoincrement=False, nullable=False),
        moment("created_at"),
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("sampler", sa.Text(), nullable=True),
        sa.Column("verdict_status", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("token_source", sa.String(32), nullable=True),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("exact_matches", sa.Integer(), nullable=False),
        sa.Column("outside_support", sa.Integer(), nullable=False),
        sa.Column("ambiguous_tokens", sa.Integer(), nullable=False),
        sa.Column("exact_match_rate", sa.Double(), nullable=True),
        sa.Column("mean_margin", sa.Double(), nullable=True),
        sa.Column("clipped_margin", sa.Double(), nullable=True),
        sa.Column("cross_entropy", sa.Double(), nullable=True),
        sa.Column("mean_logit_rank", sa.Double(), nullable=True),
        sa.Column("mean_gumbel_rank", sa.Double(), nullable=True),
        sa.Column("sampling", sa.JSON(), nullable=True),
        sa.Column("stream_position", sa.Integer(), nullable=True),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("scores", sa.LargeBinary(), nullable=True),
        check("audits", "verdict_status", "verdict_status IN ('verified', 'unsupported', 'failed')"),
        check("audits", "token_source", "token_source IN ('given', 'logprobs', 'retokenized')"),
        check("audits", "choice_index_counts", "choice_index >= 0"),
        check("audits", "exact_matches_within_tokens", "exact_matches BETWEEN 0 AND tokens"),
        check("audits", "outside_support_within_tokens", "outside_support BETWEEN 0 AND tokens"),
        check("audits", "ambiguous_within_tokens", "ambiguous_tokens BETWEEN 0 AND tokens"),
        check("audits", "unverified_has_reason", "verdict_status = 'verified' OR reason IS NOT NULL"),
        sa.PrimaryKeyConstraint("exchange_id", "choice_index", name="pk_audits"),
    )
    op.create_index("ix_audits_upstream_created_at", "audits", ["upstream", "created_at"])
    op.create_index("ix_audits_created_at", "audits", ["created_at"])
    stream = ["upstream", "model", "reference", "sampler", "stream_position"]
    op.create_index("ix_audits_stream", "audits", stream, unique=True)


def create_streams() -> None:
    op.create_table(
        "streams",
        sa.Column("upstream", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("sampler", sa.Text(), nullable=False),
        moment("updated_at"),
        sa.Column("audits", sa.Integer(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("log_e", sa.Double(), nullable=False),
        sa.Column("drift_alarm_at", sa.Integer(), nullable=True),
        sa.Column("calibration_id", sa.Integer(), nullable=True),
        sa.Column("identified", sa.JSON(), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("upstream", "model", "reference", "sampler", name="pk_streams"),
    )


def create_calibrations() -> None:
    op.create_table(
        "calibrations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        moment("created_at"),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("sampler", sa.Text(), nullable=False),
        sa.Column("token_source", sa.Text(), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("band", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_calibrations"),
    )
    op.create_index("ix_calibrations_scope", "calibrations", ["reference", "sampler", "id"])


def moment(name: str, *, nullable: bool = False) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def partial_index(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)
