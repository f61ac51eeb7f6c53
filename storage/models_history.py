"""The tables of the past: what streams looked like over time, and when their verdicts changed."""

import enum
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import Base, Sum


class Span(str, enum.Enum):
    """How much time one row of `stream_history` covers."""

    TEN_SECONDS = "ten_seconds"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class StreamHistory(Base):
    """One stream in one span of time, by the time of audit; kept up in the transaction that weighs the audits.

    A chart of any period reads a few hundred of these rows, however many audits there are.
    """

    __tablename__ = "stream_history"

    upstream: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(primary_key=True)
    sampler: Mapped[str] = mapped_column(primary_key=True)
    """As `streams` has it: empty for none."""
    span: Mapped[str] = mapped_column(String(32), primary_key=True)
    """A value of `Span`."""
    at: Mapped[datetime] = mapped_column(primary_key=True)
    """Where the span begins, UTC."""
    audits: Mapped[int]
    """Weighed in this span; so are all counts down to `match_rates`."""
    unsupported: Mapped[int]
    failed: Mapped[int]
    tokens: Mapped[Sum]
    exact_matches: Mapped[Sum]
    outside_support: Mapped[Sum]
    ambiguous_tokens: Mapped[Sum]
    match_rates: Mapped[list[int]] = mapped_column(JSON)
    """Verified audits by match rate: up to each of `storage.history.RATE_BOUNDS`, none counted twice."""
    verdict: Mapped[str] = mapped_column(String(32))
    """At the span's last audit; so is all that follows, over the stream's whole life."""
    log_e: Mapped[float]
    total_requests: Mapped[Sum]
    total_tokens: Mapped[Sum]
    match_mean: Mapped[float | None]
    """1 − the mean of the detector `mismatch`; null where it was not used."""
    match_low: Mapped[float | None]
    """Ends of its confidence sequence."""
    match_high: Mapped[float | None]
    match_tolerated: Mapped[float | None]
    """The lowest match rate that an honest provider may have."""
    effects: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """Per detector its mean, confidence sequence and bounds, as in `streams.detail`."""

    __table_args__ = (
        CheckConstraint("span IN ('ten_seconds', 'minute', 'hour', 'day')", name="span"),
        Index("ix_stream_history_span_at", "span", "at"),
    )


class VerdictChange(Base):
    """A stream's verdict became another one."""

    __tablename__ = "verdict_changes"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    at: Mapped[datetime]
    upstream: Mapped[str]
    model: Mapped[str]
    reference: Mapped[str]
    sampler: Mapped[str]
    previous: Mapped[str] = mapped_column(String(32))
    verdict: Mapped[str] = mapped_column(String(32))
    reasons: Mapped[list[str]] = mapped_column(JSON)
    log_e: Mapped[float]
    requests: Mapped[Sum]
    tokens: Mapped[Sum]

    __table_args__ = (
        Index("ix_verdict_changes_stream", "upstream", "model", "reference", "sampler", "id"),
        Index("ix_verdict_changes_at", "at"),
    )
