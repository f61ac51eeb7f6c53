"""Audited exchanges, audited once more: which ones a run still has to do, what it found, and how both compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, case, exists, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from storage.audits import NewAudit
from storage.database import insert_new
from storage.models import Audit, Exchange, VerdictStatus
from storage.models_reaudits import Reaudit

_COLUMNS = (
    "exchange_id", "choice_index", "created_at", "reference", "sampler", "verdict_status", "reason", "tokens",
    "exact_matches", "outside_support", "ambiguous_tokens", "mean_margin", "cross_entropy",
)  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """Which exchanges a run is about: audited ones of this time, upstream and model whose contents are still kept."""

    run: str
    since: datetime
    until: datetime
    """Not included."""
    upstream: str | None = None
    model: str | None = None


class Key(NamedTuple):
    """An exchange's id and when it came, which tells its partition."""

    created_at: datetime
    exchange_id: str


@dataclass(frozen=True)
class Comparison:
    """Verified choices of one stream, before and in the run; tokens are those that the text leaves no doubt about."""

    upstream: str
    model: str
    old_reference: str
    old_sampler: str | None
    new_reference: str
    new_sampler: str | None
    choices: int
    old_tokens: int
    old_matches: int
    new_tokens: int
    new_matches: int
    unverified: int
    """Choices that could be verified only before or only in the run, or in neither."""


async def left(session: AsyncSession, selection: Selection, *, limit: int, after: Key | None = None) -> list[Key]:
    """The next exchanges that the run has not done, oldest first."""
    query = select(Exchange.created_at, Exchange.id).where(*_selected(selection))
    if after is not None:
        query = query.where(tuple_(Exchange.created_at, Exchange.id) > after)
    rows = await session.execute(query.order_by(Exchange.created_at, Exchange.id).limit(limit))
    return [Key(*row) for row in rows]


async def count_left(session: AsyncSession, selection: Selection) -> int:
    """How many exchanges the run has not done."""
    return await session.scalar(select(func.count()).select_from(Exchange).where(*_selected(selection))) or 0


async def add(session: AsyncSession, run: str, audits: Sequence[NewAudit]) -> int:
    """Keep what the run found; returns how many were new. A choice that the run has already done keeps its row."""
    rows = [{"run": run, **{name: getattr(audit, name) for name in _COLUMNS}} for audit in audits]
    return len(await insert_new(session, Reaudit, rows))


async def compare(session: AsyncSession, run: str) -> list[Comparison]:
    """One row for each stream and what it was audited by in the run, in the order of names."""
    kept = and_(Audit.verdict_status == VerdictStatus.VERIFIED, Reaudit.verdict_status == VerdictStatus.VERIFIED)
    names = (
        Audit.upstream, Audit.model, Audit.reference, Audit.sampler, Reaudit.reference, Reaudit.sampler,
    )  # fmt: skip
    query = (
        select(
            *names, _total(kept, 1),
            _total(kept, Audit.tokens - Audit.ambiguous_tokens), _total(kept, Audit.exact_matches),
            _total(kept, Reaudit.tokens - Reaudit.ambiguous_tokens), _total(kept, Reaudit.exact_matches),
            func.sum(case((kept, 0), else_=1)),
        )
        .join(Audit, and_(Audit.exchange_id == Reaudit.exchange_id, Audit.choice_index == Reaudit.choice_index))
        .where(Reaudit.run == run)
        .group_by(*names)
        .order_by(*names)
    )  # fmt: skip
    found: list[Any] = list(await session.execute(query))
    return [Comparison(*row) for row in found]


def _selected(selection: Selection) -> list[ColumnElement[bool]]:
    done = exists().where(Reaudit.run == selection.run, Reaudit.exchange_id == Exchange.id)
    found = [
        Exchange.created_at >= selection.since, Exchange.created_at < selection.until, Exchange.redacted_at.is_(None),
        exists().where(Audit.exchange_id == Exchange.id), ~done,
    ]  # fmt: skip
    if selection.upstream is not None:
        found.append(Exchange.upstream == selection.upstream)
    if selection.model is not None:
        found.append(Exchange.model == selection.model)
    return found


def _total(condition: ColumnElement[bool], value: Any) -> ColumnElement[int]:
    return func.sum(case((condition, value), else_=0))
