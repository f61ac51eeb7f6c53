"""The tables of alerts: where each stands, what is still to be delivered, and what is to be kept quiet."""

import enum
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import Base


class AlertState(str, enum.Enum):
    """Where an alert stands.

    ::

        (no row) ──► pending ──► firing ──► resolved ──► pending …
                        └──► (no row)
    """

    PENDING = "pending"
    """The condition holds, not yet for as long as its rule asks."""
    FIRING = "firing"
    RESOLVED = "resolved"
    """It held, and no longer does."""


class Alert(Base):
    """One rule on one stream, reference or system: moved only by an evaluation, in the transaction of its notices."""

    __tablename__ = "alerts"

    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of the rule's name and the labels: the same trouble has the same one."""
    rule: Mapped[str]
    severity: Mapped[str]
    state: Mapped[str] = mapped_column(String(32))
    """A value of `AlertState`."""
    labels: Mapped[dict[str, Any]]
    summary: Mapped[str]
    value: Mapped[float | None]
    started_at: Mapped[datetime]
    """Since when the condition holds."""
    seen_at: Mapped[datetime]
    """When it last held."""
    fired_at: Mapped[datetime | None]
    resolved_at: Mapped[datetime | None]
    told: Mapped[str | None] = mapped_column(String(32))
    """The state that receivers know; null for none."""
    told_at: Mapped[datetime | None]
    silenced: Mapped[bool]

    __table_args__ = (CheckConstraint("state IN ('pending', 'firing', 'resolved')", name="state"),)


class Notice(Base):
    """One message to one receiver: the outbox. It is there before it is sent and says afterwards that it was."""

    __tablename__ = "alert_notices"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    created_at: Mapped[datetime]
    receiver: Mapped[str]
    """As the configuration names it; its address and secrets are looked up when it is sent."""
    topic: Mapped[str]
    """Messages of one topic reach a receiver in their order."""
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(32))
    """todo, sent or failed."""
    attempts: Mapped[int]
    run_at: Mapped[datetime]
    """Not to be sent before; a sender moves it on before it sends, so that a dead one's message is sent again."""
    sent_at: Mapped[datetime | None]
    error: Mapped[str | None]
    """Why the last attempt did not succeed."""

    __table_args__ = (
        CheckConstraint("state IN ('todo', 'sent', 'failed')", name="state"),
        Index(
            "ix_alert_notices_due", "receiver", "topic", "id", sqlite_where=text("state = 'todo'"),
            postgresql_where=text("state = 'todo'"),
        ),
    )  # fmt: skip


class Silence(Base):
    """No notices of matching alerts for a while."""

    __tablename__ = "alert_silences"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    created_at: Mapped[datetime]
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime]
    matchers: Mapped[dict[str, Any]]
    """Label → value, with * for any text; `rule` names a rule. All must match."""
    comment: Mapped[str]


class Evaluation(Base):
    """One row: when rules were last evaluated, and the lock that keeps two workers from doing it at once."""

    __tablename__ = "alert_evaluation"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    evaluated_at: Mapped[datetime]
