"""The tables. Column names are plain, since people query them by hand (README, "Queries")."""

import enum
from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    Enum,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.columns import SealedBytes, StrangersText, UtcDateTime


class Outcome(str, enum.Enum):
    """How an exchange ended, seen from the proxy."""

    COMPLETE = "complete"
    """The provider answered and the client received all of it."""
    CLIENT_LEFT = "client_left"
    """The client closed the connection before the answer's end; what had come is recorded."""
    UPSTREAM_FAILED = "upstream_failed"
    """The provider could not be reached, or its connection broke."""
    UPSTREAM_ERROR = "upstream_error"
    """The provider answered with an error status or an error event."""
    MALFORMED = "malformed"
    """The provider's answer is not what the protocol says; the client got it untouched."""
    TRUNCATED = "truncated"
    """The record stopped at its size limit; the client got everything."""


class JobState(str, enum.Enum):
    """Where a job stands. Only the functions of `storage.jobs` move it, each by one statement.

    ::

        (new) ──record──► todo ──claim──► leased ──complete──► done
                           ▲                │ │
                           └─retry──────────┘ └──fail──► failed
                             release_stalled
    """

    TODO = "todo"
    """Waits for a worker, from `run_at` on."""
    LEASED = "leased"
    """A worker has it until `lease_until`; only the holder of `lease_token` may end it."""
    DONE = "done"
    """Every choice has its audit. Final."""
    FAILED = "failed"
    """Given up; `reason` says why. Final."""


class VerdictStatus(str, enum.Enum):
    """What became of one choice's audit."""

    VERIFIED = "verified"
    """Scored: the numbers count."""
    UNSUPPORTED = "unsupported"
    """Cannot be judged, for the stated reason; says nothing against the provider."""
    FAILED = "failed"
    """The audit itself broke, for the stated reason; says nothing against the provider."""


class TokenSource(str, enum.Enum):
    """Where the audited output token ids came from."""

    GIVEN = "given"
    """The provider sent them, and they decode to the text."""
    LOGPROBS = "logprobs"
    """Read from the bytes of the answer's logprob entries."""
    RETOKENIZED = "retokenized"
    """The text, encoded again."""


def _values(members: type[enum.Enum]) -> list[str]:
    return [member.value for member in members]


def _choice(members: type[enum.Enum], name: str, *, constrained: bool = True) -> Enum:
    """Text in the database (with a CHECK where `constrained`), the enum's member in Python."""
    return Enum(
        members,
        name=name,
        native_enum=False,
        length=32,
        values_callable=_values,
        create_constraint=constrained,
    )


Sum = Annotated[int, mapped_column(BigInteger().with_variant(Integer(), "sqlite"))]
"""Counts tokens, or whatever else exceeds 2**31 in a long life."""


def _partial(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        float: Double,
        str: StrangersText,
        datetime: UtcDateTime,
        dict[str, Any]: JSON,  # not JSONB: it refuses \u0000, which a provider may send
        bytes: LargeBinary,
    }


class Exchange(Base):
    """One request and its answer, as `storage.exchanges.NewExchange` describes them.

    Never changed but by `storage.retention`, which takes contents away. On Postgres partitioned by the day of
    `created_at` (`storage.partitions`), its primary key is (id, created_at) there.
    """

    __tablename__ = "exchanges"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]
    upstream: Mapped[str]
    endpoint: Mapped[str]
    model: Mapped[str]
    streamed: Mapped[bool]
    status: Mapped[int]
    # no CHECK: adding an outcome would have to rewrite the largest table
    outcome: Mapped[Outcome] = mapped_column(_choice(Outcome, "outcome", constrained=False))
    first_byte_seconds: Mapped[float | None]
    total_seconds: Mapped[float]
    audit: Mapped[bool]
    unaudited_reason: Mapped[str | None]
    reference: Mapped[str | None]
    sampler: Mapped[str | None]
    user_hash: Mapped[str | None]
    """Keyed hash of the request's `user`: finds a person's exchanges without naming the person."""
    redacted_at: Mapped[datetime | None]
    """When request and response were emptied; null while they are as they came."""
    # the long columns come last: SQLite reads a row from its start
    request: Mapped[dict[str, Any]]
    forced: Mapped[dict[str, Any]]
    overridden: Mapped[dict[str, Any]]
    response: Mapped[dict[str, Any]]

    __table_args__ = (
        CheckConstraint("audit = (unaudited_reason IS NULL)", name="audited_or_reason"),
        CheckConstraint("reference IS NOT NULL OR NOT audit", name="audited_against_reference"),
        Index("ix_exchanges_created_at", "created_at"),
        # a few among millions: what went wrong is asked for by itself
        Index("ix_exchanges_incomplete", "outcome", "created_at", **_partial("outcome <> 'complete'")),
        Index("ix_exchanges_user_hash", "user_hash", **_partial("user_hash IS NOT NULL")),
    )


class Job(Base):
    """One exchange that has to be audited. Narrow, since its rows are rewritten at every step."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    exchange_id: Mapped[str] = mapped_column(unique=True)
    upstream: Mapped[str]
    """The exchange's: whose turn it is."""
    reference: Mapped[str]
    """The trusted model that the worker must have loaded."""
    state: Mapped[JobState] = mapped_column(_choice(JobState, "state"))
    created_at: Mapped[datetime]
    """The exchange's: how old the backlog is, and in which partition the exchange lies."""
    turn: Mapped[int] = mapped_column(BigInteger)
    """Place in the queue, as `storage.turns` gives it: upstreams alternate, new ones and retries (0) go first."""
    run_at: Mapped[datetime]
    """Not to be claimed before."""
    attempts: Mapped[int]
    """Claims so far that are charged to the job."""
    lease_token: Mapped[int]
    """Grows with every claim and is never set back: fences off a worker whose lease another one took over."""
    lease_until: Mapped[datetime | None]
    worker: Mapped[str | None]
    reason: Mapped[str | None]
    """Why the last attempt did not end the job, or why the job failed."""

    __table_args__ = (
        CheckConstraint("(state = 'leased') = (lease_until IS NOT NULL)", name="lease_has_end"),
        CheckConstraint("(state = 'leased') = (worker IS NOT NULL)", name="lease_has_worker"),
        CheckConstraint("state <> 'failed' OR reason IS NOT NULL", name="failure_has_reason"),
        # partial, so that finished jobs do not weigh on the search for the next one
        Index("ix_jobs_due", "turn", "id", **_partial("state = 'todo'")),
        Index("ix_jobs_due_by_reference", "reference", "turn", "id", **_partial("state = 'todo'")),
        Index("ix_jobs_due_by_upstream", "upstream", "turn", **_partial("state = 'todo'")),
        Index(
            "ix_jobs_unfinished", "state", "upstream", "reference", "created_at",
            **_partial("state IN ('todo', 'leased')"),
        ),
        Index("ix_jobs_leased", "lease_until", **_partial("state = 'leased'")),
    )


class Audit(Base):
    """Scores and verdict of one choice, as `storage.audits.NewAudit` describes them.

    No foreign key to exchanges: retention may delete prompts and answers and keep the numbers.
    """

    __tablename__ = "audits"

    exchange_id: Mapped[str] = mapped_column(primary_key=True)
    choice_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[datetime]
    upstream: Mapped[str]
    model: Mapped[str]
    reference: Mapped[str]
    sampler: Mapped[str | None]
    verdict_status: Mapped[VerdictStatus] = mapped_column(_choice(VerdictStatus, "verdict_status"))
    reason: Mapped[str | None]
    token_source: Mapped[TokenSource | None] = mapped_column(_choice(TokenSource, "token_source"))
    tokens: Mapped[int]
    exact_matches: Mapped[int]
    outside_support: Mapped[int]
    ambiguous_tokens: Mapped[int]
    exact_match_rate: Mapped[float | None]
    mean_margin: Mapped[float | None]
    clipped_margin: Mapped[float | None]
    cross_entropy: Mapped[float | None]
    mean_logit_rank: Mapped[float | None]
    mean_gumbel_rank: Mapped[float | None]
    sampling: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Of the forced parameters, those that shape the tokens' distribution; null where logits were biased."""
    stream_position: Mapped[int | None]
    """Place among the audits weighed in its stream, from 1; null until `storage.streams` has handed it out."""
    notes: Mapped[dict[str, Any]]
    scores: Mapped[bytes | None] = mapped_column(SealedBytes)
    pieces: Mapped[bytes | None] = mapped_column(SealedBytes)
    """Texts of the tokens, from `storage.pieces`: what the answer says, so it is kept no longer than the answer."""

    __table_args__ = (
        CheckConstraint("choice_index >= 0", name="choice_index_counts"),
        CheckConstraint("exact_matches BETWEEN 0 AND tokens", name="exact_matches_within_tokens"),
        CheckConstraint("outside_support BETWEEN 0 AND tokens", name="outside_support_within_tokens"),
        CheckConstraint("ambiguous_tokens BETWEEN 0 AND tokens", name="ambiguous_within_tokens"),
        CheckConstraint("verdict_status = 'verified' OR reason IS NOT NULL", name="unverified_has_reason"),
        Index("ix_audits_upstream_created_at", "upstream", "created_at"),
        Index("ix_audits_created_at", "created_at"),
        Index(
            "ix_audits_verified", "created_at", "upstream", "tokens", "exact_matches", "outside_support",
            **_partial("verdict_status = 'verified'"),
        ),
        Index("ix_audits_worst", "exact_match_rate", **_partial("verdict_status = 'verified' AND tokens >= 20")),
        Index("ix_audits_stream", "upstream", "model", "reference", "sampler", "stream_position", unique=True),
    )


class Stream(Base):
    """All audits of one upstream × model × reference × sampler, weighed; workers move it, audit by audit.

    The audits can be weighed again from the first one: `state` follows from them and the calibration alone.
    """

    __tablename__ = "streams"

    upstream: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(primary_key=True)
    sampler: Mapped[str] = mapped_column(primary_key=True)
    """Id of the contract that the configuration names; empty for none."""
    updated_at: Mapped[datetime]
    audits: Mapped[Sum]
    """Audits weighed so far: the highest `audits.stream_position`."""
    requests: Mapped[Sum]
    """Answers that count as evidence; those skipped are in `detail`, by reason."""
    tokens: Mapped[Sum]
    verdict: Mapped[str] = mapped_column(String(32))
    """consistent, deviates, inconclusive or unsupported; see docs/verdicts.md."""
    reasons: Mapped[list[str]] = mapped_column(JSON)
    log_e: Mapped[float]
    """ln of the highest e-value so far."""
    drift_alarm_at: Mapped[Sum | None]
    """Token at which the drift alarm rang."""
    calibration_id: Mapped[int | None]
    """The band that `state` was made with; null for the shipped one."""
    identified: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Which contract the first answers follow, as `verifier.identify` found it."""
    detail: Mapped[dict[str, Any]]
    """The whole verdict."""
    state: Mapped[dict[str, Any]]
    """What the next audit is weighed on."""


class Calibration(Base):
    """The band of an honest run, for every stream of its reference and sampler; the newest one counts."""

    __tablename__ = "calibrations"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    created_at: Mapped[datetime]
    reference: Mapped[str]
    sampler: Mapped[str]
    token_source: Mapped[str]
    hardware: Mapped[str]
    """As the user names the pair, e.g. `H100 / CPU`; empty for untold."""
    band: Mapped[dict[str, Any]]

    __table_args__ = (Index("ix_calibrations_scope", "reference", "sampler", "id"),)


class DeadLetter(Base):
    """A record of the journal that the database refused, kept until a person has looked at it."""

    __tablename__ = "dead_letters"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    created_at: Mapped[datetime]
    reason: Mapped[str]
    record: Mapped[bytes]
    """As `storage.exchange_codec.pack` wrote it."""


class Retention(Base):
    """How long an upstream's rows are kept, as the proxy's configuration says; `storage.retention` obeys."""

    __tablename__ = "retention"

    upstream: Mapped[str] = mapped_column(primary_key=True)
    payload_days: Mapped[int | None]
    """After so many days exchanges are deleted, and the ids of tokens from their audits; null for never."""
    verdict_days: Mapped[int | None]
    """After so many days audits are deleted; null for never."""
    redact_verified: Mapped[bool]
    """Whether request and answer are emptied as soon as they are audited."""
    emptied_to: Mapped[datetime | None]
    """What came before is emptied: where the next purge begins to look; null for everywhere."""
    deleted_to: Mapped[datetime | None]
    """What came before is deleted."""


class Chore(Base):
    """What one process at a time does for all, again and again; `storage.housekeeping` moves it."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(primary_key=True)
    due_at: Mapped[datetime]
    """Not to be begun before."""
    lease_until: Mapped[datetime | None]
    """Somebody is at it, or died at it, until then."""
    holder: Mapped[str | None]
    done_at: Mapped[datetime | None]
    """When it last went well."""
    failures: Mapped[int]
    """How often it went wrong, ever."""
    problem: Mapped[str | None]
    """Why it last went wrong; null since it went well."""


class Erasure(Base):
    """A user whose exchanges were deleted; what the journal still held of them is not written again."""

    __tablename__ = "erasures"

    user_hash: Mapped[str] = mapped_column(primary_key=True)
    erased_at: Mapped[datetime]
