"""The table of re-audits: what another reference or contract says of exchanges that were audited before."""

from datetime import datetime

from sqlalchemy import CheckConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import Base, VerdictStatus, _choice


class Reaudit(Base):
    """One choice of one exchange in one run of `seedproof reverify`: sums alone, nothing of what the answer says."""

    __tablename__ = "reaudits"

    run: Mapped[str] = mapped_column(primary_key=True)
    """The user's name for it."""
    exchange_id: Mapped[str] = mapped_column(primary_key=True)
    choice_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[datetime]
    """When this was found."""
    reference: Mapped[str]
    """As used in this run; so is `sampler`."""
    sampler: Mapped[str | None]
    verdict_status: Mapped[VerdictStatus] = mapped_column(_choice(VerdictStatus, "reaudit_status"))
    reason: Mapped[str | None]
    tokens: Mapped[int]
    exact_matches: Mapped[int]
    outside_support: Mapped[int]
    ambiguous_tokens: Mapped[int]
    mean_margin: Mapped[float | None]
    cross_entropy: Mapped[float | None]

    __table_args__ = (
        CheckConstraint("verdict_status = 'verified' OR reason IS NOT NULL", name="unverified_has_reason"),
        Index("ix_reaudits_exchange_id", "exchange_id"),
    )
