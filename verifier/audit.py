"""The audit of recorded exchanges: questions in, one NewAudit per choice out. I/O is the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.audits import NewAudit, pack_scores
from storage.models import Exchange
from storage.pieces import pack_pieces
from verifier.band import distribution
from verifier.errors import Unsupported, VerifierError
from verifier.lattice import THRESHOLD, Reading, seed_evidence
from verifier.questions import AnyClaim, Question, questions_of
from verifier.reading import TextClaim, read_texts
from verifier.replay import Claim, Reference, replay
from verifier.resync import Resynced, Shift, follow
from verifier.samplers import assumption, contract
from verifier.scoring import TokenScores
from verifier.tokenization import ChatTokenizer
from verifier.verify import MARGIN_CLIP


@dataclass(frozen=True)
class TrustedModel:
    """A reference with its tokenizer; `name` is what jobs and audits call it.

    One thread at a time has its `turn` on the reference; others may tokenize meanwhile.
    """

    name: str
    tokenizer: ChatTokenizer
    reference: Reference
    turn: RLock = field(default_factory=RLock, repr=False, compare=False)


@dataclass(frozen=True)
class _Answer:
    """Scores of a claim's tokens; `unclear` tells which of them the text leaves open."""

    scores: TokenScores
    unclear: NDArray[np.bool_]
    lost_step: bool = False
    shifts: tuple[Shift, ...] = ()


def audit_exchanges(
    exchanges: Sequence[Exchange], model: TrustedModel, *, now: datetime, samplers: Mapping[str, str] | None = None
) -> dict[str, list[NewAudit]]:
    """Audits of each exchange's choices, by exchange id, from one run of the reference over all of them.

    `samplers`, by exchange id, are contracts to verify by in place of the configured ones.
    """
    questions = [
        question
        for exchange in exchanges
        for question in questions_of(
            exchange, model.tokenizer, model.reference, sampler=(samplers or {}).get(exchange.id)
        )
    ]
    claims = [claim for question in questions for claim in (question.claim, question.told) if claim]
    with model.turn:
        answers = iter(_answers(claims, model))
    audits: dict[str, list[NewAudit]] = {exchange.id: [] for exchange in exchanges}
    for question in questions:
        answer = next(answers) if question.claim else question.refusal
        told = next(answers) if question.told else None
        audits[question.exchange.id].append(_audit(question, answer, told, model, now))
    return audits


def _answers(claims: Sequence[AnyClaim], model: TrustedModel) -> list[_Answer | Unsupported]:
    """What the reference says of each claim: known ids are replayed and followed, texts are searched."""
    known = [claim for claim in claims if isinstance(claim, Claim)]
    texts = [claim for claim in claims if isinstance(claim, TextClaim)]
    plain = replay(model.reference, known)
    followed = iter([follow(model.reference, claim, scores) for claim, scores in zip(known, plain, strict=True)])
    ends = model.tokenizer.end_token_ids
    readings = iter(read_texts(model.reference, texts, model.tokenizer.spelling, end_token_ids=ends) if texts else ())
    return [
        _of_scores(next(followed)) if isinstance(claim, Claim) else _of_reading(next(readings)) for claim in claims
    ]


def _of_scores(found: Resynced) -> _Answer:
    return _Answer(found.scores, np.zeros(len(found.scores), np.bool_), shifts=found.shifts)


def _of_reading(reading: Reading | VerifierError) -> _Answer | Unsupported:
    if isinstance(reading, Unsupported):
        return reading
    if isinstance(reading, VerifierError):
        return Unsupported("sequence_not_scorable", str(reading))
    return _Answer(reading.scores, reading.ambiguous, reading.lost_step)


def _audit(
    question: Question, answer: _Answer | Unsupported | None, told: _Answer | Unsupported | None, model: TrustedModel,
    now: datetime,
) -> NewAudit:  # fmt: skip
    exchange = question.exchange
    known: dict[str, Any] = {
        "exchange_id": exchange.id, "choice_index": question.choice_index, "created_at": now,
        "upstream": exchange.upstream, "model": exchange.model, "reference": model.name,
        "sampler": exchange.sampler,
    }  # fmt: skip
    if isinstance(answer, Unsupported):
        notes = {**question.notes, "detail": str(answer)}
        return NewAudit(**known, notes=notes, verdict_status="unsupported", reason=answer.reason)
    assert answer is not None
    assert question.claim is not None
    explained = _told_note(answer, told, greedy=question.claim.params.is_greedy)
    return NewAudit(
        **known,
        notes={**question.notes, **explained, **_sampler_notes(question, answer)},
        verdict_status="verified",
        token_source=question.source,
        sampling=distribution(question.claim.params),
        pieces=_pieces(answer.scores, model.tokenizer),
        **summary_columns(answer.scores, answer.unclear),
    )


def _pieces(scores: TokenScores, tokenizer: ChatTokenizer) -> bytes:
    claimed, predicted = scores.token_ids.tolist(), scores.predicted_ids.tolist()
    return pack_pieces(tokenizer.pieces(claimed), tokenizer.pieces(predicted))


def _told_note(answer: _Answer, told: _Answer | Unsupported | None, *, greedy: bool) -> Mapping[str, Any]:
    """How the answer matches on the prompt that the server told, and whether that prompt explains it."""
    if not isinstance(told, _Answer):
        return {}
    rate = _mean(told.scores[~told.unclear].exact_match)
    nats = [seed_evidence(one.scores, greedy=greedy) for one in (told, answer)]
    return {"match_rate_on_told_prompt": rate, "told_prompt_explains": nats[0] - nats[1] >= THRESHOLD}


def _sampler_notes(question: Question, answer: _Answer) -> Mapping[str, Any]:
    """What a reader must know of the contract: another one than configured, what it assumes, draws that were lost."""
    assert question.claim is not None
    configured = question.exchange.sampler or ""
    by, assumed = question.claim.contract.id, assumption(configured)
    return {
        **({"lost_step": True} if answer.lost_step else {}),
        **({} if by == contract(configured).id else {"verified_by": by}),
        **({"assumed": assumed} if assumed else {}),
        **({"resync": [shift.to_dict() for shift in answer.shifts]} if answer.shifts else {}),
    }


def summary_columns(scores: TokenScores, unclear: NDArray[np.bool_]) -> dict[str, Any]:
    """The audit row's sums and means of at least one token, and the packed per-token arrays.

    Unclear tokens are counted apart and enter no sum; if all are, the sums are those of none.
    """
    clear = scores[~unclear]
    finite = np.isfinite(clear.margin)
    return {
        "tokens": len(scores),
        "ambiguous_tokens": int(unclear.sum()),
        "exact_matches": int(clear.exact_match.sum()),
        "exact_match_rate": _mean(clear.exact_match),
        "outside_support": int((~finite).sum()),
        "mean_margin": _mean(clear.margin[finite]),
        "clipped_margin": _mean(np.minimum(clear.margin, MARGIN_CLIP)),
        "cross_entropy": _mean(-clear.logprob),
        "mean_logit_rank": _mean(clear.logit_rank),
        "mean_gumbel_rank": _mean(clear.gumbel_rank[finite]),
        "scores": pack_scores(per_token(scores, unclear)),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def per_token(scores: TokenScores, unclear: NDArray[np.bool_]) -> dict[str, Any]:
    """The arrays that are kept of every token."""
    return {
        "token_ids": scores.token_ids.astype(np.int32),
        "predicted_ids": scores.predicted_ids.astype(np.int32),
        "prob": scores.prob,
        "logprob": scores.logprob,
        "entropy": scores.entropy,
        "margin": scores.margin,
        "logit_rank": scores.logit_rank,
        "gumbel_rank": scores.gumbel_rank,
        "edge": scores.edge.astype(np.uint8),
        "ambiguous": unclear.astype(np.uint8),
    }
