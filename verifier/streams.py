"""Audits into verdicts: weighs what a worker has just added, in the same transaction, each audit exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from sqlalchemy.ext.asyncio import AsyncSession

from storage import calibrations, history, streams
from storage.audits import unpack_scores
from storage.models import Audit, Stream, TokenSource
from storage.streams import StreamKey
from verifier.band import SHIPPED, Band
from verifier.detectors import SequenceScores
from verifier.report import StreamReport
from verifier.stream_state import AuditedAnswer, StreamState


async def weigh(session: AsyncSession, exchange_id: str, key: StreamKey, *, now: datetime) -> Stream:
    """Weigh an exchange's new audits and renew its stream's verdict.

    A stream whose reference got a newer calibration is first weighed again, from its first audit, with that band.

    Args:
        session: the transaction that added the audits.
        exchange_id: whose audits; those already weighed are left out.
        key: the stream that they belong to.
    """
    stream = await streams.locked(session, key, now=now)
    state = StreamState.from_dict(stream.state)
    band, calibration_id = await band_of(session, key, retokenized=state.retokenized)
    if calibration_id != stream.calibration_id:
        state = await replayed(session, key, band)
        stream.calibration_id = calibration_id
    previous, placed = stream.verdict, await streams.place(session, exchange_id, stream)
    for audit in placed:
        state = state.after(audited_answer(audit), band)
        stream.identified = audit.notes.get("identified") or stream.identified
    _keep(stream, state, band, now)
    await history.note(session, stream, placed, previous=previous, now=now)
    return stream


async def replayed(
    session: AsyncSession, key: StreamKey, band: Band, *, since: datetime | None = None,
    exchange_ids: Sequence[str] | None = None,
) -> StreamState:  # fmt: skip
    """The state of a stream from its stored audits alone; from those made at or after `since`, of these exchanges."""
    state = StreamState()
    async for audit in streams.weighed(session, key, since=since, exchange_ids=exchange_ids):
        state = state.after(audited_answer(audit), band)
    return state


async def reports(
    session: AsyncSession, *, upstream: str | None = None, since: datetime | None = None,
    exchange_ids: Sequence[str] | None = None,
) -> list[StreamReport]:  # fmt: skip
    """The verdict on every stream: from its stored audits of at or after `since`, or of these exchanges, else from its
    state."""
    found = []
    for stream in await streams.every(session, upstream=upstream):
        key = StreamKey.of(stream)
        state = StreamState.from_dict(stream.state)
        band, calibration_id = await band_of(session, key, retokenized=state.retokenized)
        if since is not None or exchange_ids is not None or stream.calibration_id != calibration_id:
            state = await replayed(session, key, band, since=since, exchange_ids=exchange_ids)
        found.append(StreamReport(key, state.verdict(band, stream.identified), stream.identified))
    return found


async def band_of(session: AsyncSession, key: StreamKey, *, retokenized: bool) -> tuple[Band, int | None]:
    """The band that a stream is judged by and its calibration's id; the shipped one has none."""
    source = TokenSource.RETOKENIZED if retokenized else TokenSource.GIVEN
    row = await calibrations.fitting(
        session, reference=key.reference, sampler=key.sampler, upstream=key.upstream, token_source=source.value
    )
    return (SHIPPED, None) if row is None else (Band.from_dict(row.band), row.id)


def audited_answer(audit: Audit) -> AuditedAnswer:
    """What a stored audit brings to its stream."""
    prompt_differs = bool(audit.notes.get("prompt_differs"))
    if audit.scores is None:
        refusal = audit.reason or "not_scored"
        return AuditedAnswer(None, np.empty(0, np.float32), refusal=refusal, prompt_differs=prompt_differs)
    arrays = {name: np.asarray(values) for name, values in unpack_scores(audit.scores).items()}
    clear = arrays.pop("ambiguous") == 0
    kept = {name: values[clear] for name, values in arrays.items()}
    return AuditedAnswer(
        scores=SequenceScores.from_arrays(kept),
        prob=kept["prob"],
        sampling=audit.sampling,
        retokenized=audit.token_source is TokenSource.RETOKENIZED,
        prompt_differs=prompt_differs,
        other_sampler=bool(audit.notes.get("other_sampler")),
        ambiguous_tokens=audit.ambiguous_tokens,
    )


def _keep(stream: Stream, state: StreamState, band: Band, now: datetime) -> None:
    verdict = state.verdict(band, stream.identified)
    stream.updated_at = now
    stream.requests, stream.tokens = verdict.requests, verdict.tokens
    stream.verdict, stream.reasons, stream.log_e = verdict.word, list(verdict.reasons), verdict.log_e
    stream.drift_alarm_at = state.drift.alarm_at
    stream.detail, stream.state = verdict.to_dict(), state.to_dict()
