"""Scores and verdicts of choices, and their sums per stream."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.database import insert_new
from storage.models import Audit, TokenSource, VerdictStatus
from storage.scores import pack_scores, unpack_scores

__all__ = ["NewAudit", "StreamSummary", "add", "pack_scores", "summary", "unpack_scores"]


@dataclass(frozen=True, kw_only=True)
class NewAudit:
    """What the audit of one choice found. Raises ValueError for an unknown `verdict_status` or
    `token_source`, and for a status other than verified without its reason."""

    exchange_id: str
    choice_index: int
    created_at: datetime
    """When the audit was made; aware. The exchange has its own."""
    upstream: str
    model: str
    """As the client named it."""
    reference: str
    sampler: str | None
    """Id of the sampler contract."""
    verdict_status: str
    """A value of `storage.models.VerdictStatus`."""
    reason: str | None = None
    token_source: str | None = None
    """A value of `storage.models.TokenSource`; None where there were no tokens."""
    tokens: int = 0
    """Output tokens that were scored."""
    exact_matches: int = 0
    """Tokens that the sampler contract drew too."""
    outside_support: int = 0
    """Tokens that the sampling filters forbid."""
    ambiguous_tokens: int = 0
    """Tokens whose ids the text leaves open."""
    exact_match_rate: float | None = None
    mean_margin: float | None = None
    """Logit units."""
    clipped_margin: float | None = None
    """Mean of the margins, each cut at the scorer's bound; logit units."""
    cross_entropy: float | None = None
    """Nats per token."""
    mean_logit_rank: float | None = None
    mean_gumbel_rank: float | None = None
    sampling: dict[str, Any] | None = None
    """`storage.models.Audit.sampling`."""
    notes: dict[str, Any] = field(default_factory=dict)
    scores: bytes | None = None
    """Per-token arrays from `pack_scores`."""
    pieces: bytes | None = None
    """Texts of the tokens from `storage.pieces.pack_pieces`."""

    def __post_init__(self) -> None:
        status = VerdictStatus(self.verdict_status)
        if self.token_source is not None:
            TokenSource(self.token_source)
        if status is not VerdictStatus.VERIFIED and self.reason is None:
            raise ValueError(f"audit of {self.exchange_id} is {status.value} but has no reason")


@dataclass(frozen=True)
class StreamSummary:
    """Sums over one stream. `tokens` and `exact_matches` are of verified audits only."""

    upstream: str
    model: str
    reference: str
    sampler: str | None
    requests: int
    audits: int
    tokens: int
    exact_matches: int
    outside_support: int
    unsupported: int
    failed: int


async def add(session: AsyncSession, audits: Sequence[NewAudit]) -> int:
    """Inserts the audits; returns how many were new. A choice that already has its audit keeps it."""
    return len(await insert_new(session, Audit, [vars(audit) for audit in audits]))


async def summary(
    session: AsyncSession, *, since: datetime | None = None, upstream: str | None = None
) -> list[StreamSummary]:
    """One row per (upstream, model, reference, sampler), in that order; of audits made at or after
    `since`."""
    stream = (Audit.upstream, Audit.model, Audit.reference, Audit.sampler)
    verified = Audit.verdict_status == VerdictStatus.VERIFIED
    query = select(
        *stream,
        func.count(Audit.exchange_id.distinct()),
        func.count(),
        _total(verified, Audit.tokens),
        _total(verified, Audit.exact_matches),
        _total(verified, Audit.outside_support),
        _total(Audit.verdict_status == VerdictStatus.UNSUPPORTED, 1),
        _total(Audit.verdict_status == VerdictStatus.FAILED, 1),
    )
    if since is not None:
        query = query.where(Audit.created_at >= since)
    if upstream is not None:
        query = query.where(Audit.upstream == upstream)
    rows = await session.execute(query.group_by(*stream).order_by(*stream))
    return [StreamSummary(*row) for row in rows]


def _total(condition: ColumnElement[bool], value: Any) -> ColumnElement[int]:
    return func.sum(case((condition, value), else_=0))
