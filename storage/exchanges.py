"""Requests and their answers, as the proxy recorded them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.database import insert_new
from storage.jobs import new_job
from storage.models import Exchange, Job, Outcome


@dataclass(frozen=True, kw_only=True)
class NewExchange:
    """One request and its answer. Either it is audited, against a reference, or it has one reason why not.

    Raises ValueError when neither or both hold, or `outcome` is unknown.
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

    def __post_init__(self) -> None:
        Outcome(self.outcome)
        if self.audit == (self.unaudited_reason is not None):
            raise ValueError(f"exchange {self.id} must be audited or have one reason why not")
        if self.audit and self.reference is None:
            raise ValueError(f"exchange {self.id} is to be audited but names no reference")


async def record(session: AsyncSession, exchanges: Sequence[NewExchange]) -> int:
    """Inserts the exchanges and, for those to be audited, their jobs; returns how many were new.

    An id that is already there is left as it is, with its job: after a crash a batch may be written again.
    """
    inserted = set(await insert_new(session, Exchange, [vars(exchange) for exchange in exchanges]))
    jobs = [
        new_job(exchange.id, exchange.reference, exchange.created_at)
        for exchange in exchanges
        if exchange.id in inserted and exchange.audit and exchange.reference is not None
    ]
    await insert_new(session, Job, jobs)
    return len(inserted)


async def get(session: AsyncSession, ids: Sequence[str]) -> dict[str, Exchange]:
    """The exchanges with these ids; an id that is not there is not in the result."""
    rows = await session.scalars(select(Exchange).where(Exchange.id.in_(ids)))
    return {row.id: row for row in rows}
