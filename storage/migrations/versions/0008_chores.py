"""Chores of which one process at a time does each, how far retention has come, and the past before the history."""

import json
from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STREAM = ("upstream", "model", "reference", "sampler")
SUMS = ("tokens", "exact_matches", "outside_support", "ambiguous_tokens")
COUNTS = ("audits", "unsupported", "failed", *SUMS)
SPANS = {"hour": 3600, "day": 86400}
RATE_BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0)



def texts() -> list[Any]:
    return [sa.column(name, sa.Text()) for name in STREAM]


AUDITS = sa.table(
    "audits", *texts(), sa.column("stream_position", sa.Integer()), sa.column("created_at", sa.DateTime(timezone=True)),
    sa.column("verdict_status", sa.Text()), sa.column("exact_match_rate", sa.Double()),
    *(sa.column(name, sa.Integer()) for name in SUMS),
)  # fmt: skip
HISTORY = sa.table(
    "stream_history", *texts(), sa.column("span", sa.Text()), sa.column("at", sa.DateTime(timezone=True)),
    *(sa.column(name, sa.Integer()) for name in (*COUNTS, "total_requests", "total_tokens")),
    sa.column("match_rates", sa.JSON()), sa.column("verdict", sa.Text()), sa.column("log_e", sa.Double()),
    sa.column("effects", sa.JSON()),
)  # fmt: skip
STREAMS = sa.table("streams", *texts(), sa.column("audits", sa.Integer()))


class Place(NamedTuple):
    """A row of the history, within one stream."""

    span: str
    at: datetime


def upgrade() -> None:
    create_chores()
    for name in ("emptied_to", "deleted_to"):
        op.add_column("retention", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    fill_history()


def create_chores() -> None:
    op.create_table(
        "chores",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_chores"),
    )


def fill_history() -> None:
    """Count the audits that were weighed before the history was kept: a stream's first ones, by their number."""
    for *names, audits in op.get_bind().execute(sa.select(*STREAMS.c)).all():
        stream = dict(zip(STREAM, names, strict=True))
        of_days = [*is_of(stream, HISTORY), HISTORY.c.span == "day"]
        noted = op.get_bind().scalar(sa.select(sa.func.coalesce(sa.func.sum(HISTORY.c.audits), 0)).where(*of_days))
        for place, counted in counts(stream, audits - noted).items():
            add(stream, place, counted)


def counts(stream: dict[str, str], last: int) -> dict[Place, dict[str, Any]]:
    """What the stream's audits up to the number `last` come to, by span."""
    found: dict[Place, dict[str, Any]] = {}
    for audit in audits_of(stream, last):
        seconds = audit.created_at.replace(tzinfo=audit.created_at.tzinfo or timezone.utc).timestamp()
        for span, length in SPANS.items():
            at = datetime.fromtimestamp(seconds - seconds % length, timezone.utc)
            zeros = {**dict.fromkeys(COUNTS, 0), "match_rates": [0] * len(RATE_BOUNDS)}
            count(found.setdefault(Place(span, at), zeros), audit)
    return found


def audits_of(stream: dict[str, str], last: int) -> Iterator[Any]:
    if last <= 0:
        return
    # an audit without sampler belongs to the stream whose sampler is empty
    same = is_of({**stream, "sampler": stream["sampler"] or None}, AUDITS)
    query = sa.select(AUDITS).where(*same, AUDITS.c.stream_position <= last)
    yield from op.get_bind().execute(query, execution_options={"yield_per": 1000})


def count(row: dict[str, Any], audit: Any) -> None:
    row["audits"] += 1
    if audit.verdict_status != "verified":
        row[audit.verdict_status] += 1
        return
    for name in SUMS:
        row[name] += getattr(audit, name)
    if audit.exact_match_rate is not None:
        row["match_rates"][bisect_left(RATE_BOUNDS, audit.exact_match_rate)] += 1


def add(stream: dict[str, str], place: Place, counted: dict[str, Any]) -> None:
    """Into the hour in which the history began too, beside what it has of that hour."""
    this = [*is_of(stream, HISTORY), HISTORY.c.span == place.span, HISTORY.c.at == place.at]
    connection = op.get_bind()
    known = connection.execute(sa.select(HISTORY).where(*this)).first()
    if known is None:
        # what the verdict was then, nobody kept
        untold = {"verdict": "inconclusive", "log_e": 0.0, "total_requests": 0, "total_tokens": 0, "effects": []}
        connection.execute(sa.insert(HISTORY).values(**stream, **place._asdict(), **untold, **counted))
        return
    before = known.match_rates if isinstance(known.match_rates, list) else json.loads(known.match_rates)
    rates = [one + other for one, other in zip(before, counted["match_rates"], strict=True)]
    sums = {name: getattr(known, name) + counted[name] for name in COUNTS}
    connection.execute(sa.update(HISTORY).where(*this).values(**sums, match_rates=rates))


def is_of(stream: dict[str, Any], table: Any) -> list[Any]:
    return [table.c[name] == stream[name] for name in STREAM]
