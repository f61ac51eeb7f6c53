"""The audit of recorded exchanges: questions in, one NewAudit per choice out. I/O is the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.audits import NewAudit, pack_scores
from storage.models import Exchange
from verifier.band import distribution
from verifier.errors import Unsupported, VerifierError
from verifier.lattice import Reading, read_texts
from verifier.questions import Question, questions_of
from verifier.replay import Reference, replay
from verifier.scoring import TokenScores
from verifier.tokenization import ChatTokenizer
from verifier.verify import MARGIN_CLIP


@dataclass(frozen=True)
class TrustedModel:
    """A reference with its tokenizer; `name` is what jobs and audits call it."""

    name: str
    tokenizer: ChatTokenizer
    reference: Reference


@dataclass(frozen=True)
class _Answer:
    """Scores of a question's tokens; `unclear` tells which of them the text leaves open."""

    scores: TokenScores
    unclear: NDArray[np.bool_]
    on_told_prompt: TokenScores | None = None


def audit_exchanges(
    exchanges: Sequence[Exchange], model: TrustedModel, *, now: datetime
) -> dict[str, list[NewAudit]]:
    """Audits of each exchange's choices, by exchange id, from one run of the reference over all of them."""
    questions = [
        question
        for exchange in exchanges
        for question in questions_of(exchange, model.tokenizer, model.reference)
    ]
    answers = {**_replayed(questions, model), **_searched(questions, model)}
    audits: dict[str, list[NewAudit]] = {exchange.id: [] for exchange in exchanges}
    for number, question in enumerate(questions):
        audits[question.exchange.id].append(_audit(question, answers.get(number), model.name, now))
    return audits


def _replayed(questions: Sequence[Question], model: TrustedModel) -> dict[int, _Answer | Unsupported]:
    """Answers to the questions whose ids are known, by number."""
    numbers = [number for number, question in enumerate(questions) if question.claim]
    told = [number for number in numbers if questions[number].told]
    claims = [questions[number].claim for number in numbers] + [questions[number].told for number in told]
    scores = replay(model.reference, [claim for claim in claims if claim])
    on_told = dict(zip(told, scores[len(numbers) :], strict=True))
    return {
        number: _Answer(own, np.zeros(len(own), np.bool_), on_told.get(number))
        for number, own in zip(numbers, scores, strict=False)
    }


def _searched(questions: Sequence[Question], model: TrustedModel) -> dict[int, _Answer | Unsupported]:
    """Answers to the questions of which only the text is known, by number."""
    found = [(number, question.text_claim) for number, question in enumerate(questions) if question.text_claim]
    readings = read_texts(
        model.reference,
        [claim for _, claim in found],
        model.tokenizer.spelling,
        end_token_ids=model.tokenizer.end_token_ids,
    )
    return {number: _answer(reading) for (number, _), reading in zip(found, readings, strict=True)}


def _answer(reading: Reading | VerifierError) -> _Answer | Unsupported:
    if isinstance(reading, Unsupported):
        return reading
    if isinstance(reading, VerifierError):
        return Unsupported("sequence_not_scorable", str(reading))
    return _Answer(reading.scores, reading.ambiguous)


def _audit(question: Question, answer: _Answer | Unsupported | None, reference: str, now: datetime) -> NewAudit:
    exchange = question.exchange
    refusal = question.refusal if answer is None else answer
    known: dict[str, Any] = {
        "exchange_id": exchange.id, "choice_index": question.choice_index, "created_at": now,
        "upstream": exchange.upstream, "model": exchange.model, "reference": reference,
        "sampler": exchange.sampler,
    }  # fmt: skip
    if isinstance(refusal, Unsupported):
        notes = {**question.notes, "detail": str(refusal)}
        return NewAudit(**known, notes=notes, verdict_status="unsupported", reason=refusal.reason)
    assert isinstance(answer, _Answer)
    return NewAudit(
        **known,
        notes={**question.notes, **_told_note(answer)},
        verdict_status="verified",
        token_source=question.source,
        sampling=_sampling(question),
        **summary_columns(answer.scores, answer.unclear),
    )


def _sampling(question: Question) -> dict[str, float] | None:
    claim = question.claim or question.text_claim
    return distribution(claim.params) if claim else None


def _told_note(answer: _Answer) -> Mapping[str, float]:
    told = answer.on_told_prompt
    return {} if told is None else {"match_rate_on_told_prompt": float(told.exact_match.mean())}


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
        "ambiguous": unclear.astype(np.uint8),
    }
