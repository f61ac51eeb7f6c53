"""Requests and their answers, as the proxy recorded them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.exchange_codec import row_of
from storage.exchange_rows import insert_rows
from storage.models import Exchange, Outcome


@dataclass(frozen=True, kw_only=True)
class NewExchange:
    """One request and its answer. Either it is audited, against a reference, or it has one reason why not.

    Raises ValueError when neither or both hold, `outcome` is unknown, or `created_at` names no time zone.
    """

    id: str
    """UUID version 7, made when the request came: writing the same exchange twice writes it once."""
    created_at: datetime
    """When the request came; aware."""
    upstream: str
    endpoint: str
    """Path, as in `/v1/chat/completions`."""
    model: str
    """As the client named it."""
    streamed: bool
    request: dict[str, Any]
    """The JSON body that the client sent."""
    forced: dict[str, Any]
    """The effective sampling: all that the verifier needs."""
    overridden: dict[str, Any]
    """What the client had asked for and did not get."""
    response: dict[str, Any]
    """The folded answer: `{"id", "model", "prompt_token_ids", "usage", "choices": [...], "error", ...}`."""
    status: int
    """The HTTP status sent to the client."""
    outcome: str
    """A value of `storage.models.Outcome`."""
    first_byte_seconds: float | None
    total_seconds: float
    audit: bool
    unaudited_reason: str | None = None
    reference: str | None = None
    """Name of the trusted model."""
    sampler: str | None = None
    """Id of the sampler contract."""
    user_hash: str | None = None
    """Keyed hash of the request's `user`, None where it names none."""

    def __post_init__(self) -> None:
        Outcome(self.outcome)
        if self.created_at.tzinfo is None:
            raise ValueError(f"{self.created_at.isoformat()} has no time zone; give an aware datetime")
        if self.audit == (self.unaudited_reason is not None):
            raise ValueError(f"exchange {self.id} must be audited or have one reason why not")
        if self.audit and self.reference is None:
            raise ValueError(f"exchange {self.id} is to be audited but names no reference")


async def record(session: AsyncSession, exchanges: Sequence[NewExchange]) -> int:
    """Inserts the exchanges and, for those to be audited, their jobs; returns how many were new.

    An id that is already there is left as it is, with its job: after a crash a batch may be written again.
    """
    return await insert_rows(session, [row_of(exchange) for exchange in exchanges])


async def get(
    session: AsyncSession, ids: Sequence[str], *, since: datetime | None = None, until: datetime | None = None
) -> dict[str, Exchange]:
    """The exchanges with these ids; an id that is not there is not in the result.

    `since` and `until`, both included, bound their `created_at`: on Postgres only those days are looked at.
    """
    query = select(Exchange).where(Exchange.id.in_(ids))
    if since is not None:
        query = query.where(Exchange.created_at >= since)
    if until is not None:
        query = query.where(Exchange.created_at <= until)
    return {row.id: row for row in await session.scalars(query)}
