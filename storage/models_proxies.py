"""The table of proxy processes: what each tells of itself, since nobody else can know what it lost."""

from datetime import datetime

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import Base, Sum


class ProxyProcess(Base):
    """One process of a proxy, renewed every few seconds while it lives."""

    __tablename__ = "proxy_processes"

    id: Mapped[str] = mapped_column(primary_key=True)
    """Made when it starts."""
    host: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    recorded: Mapped[Sum]
    """Exchanges written down since the start."""
    lost: Mapped[Sum]
    """Exchanges that are nowhere; must stay 0."""
    waiting: Mapped[Sum]
    """Exchanges that wait for the database; in bytes where they wait in a journal."""
    problem: Mapped[str | None]
    """One sentence when somebody should look."""

    __table_args__ = (Index("ix_proxy_processes_seen_at", "seen_at"),)
