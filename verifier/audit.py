"""The audit of recorded exchanges, on one page: tokenize, align, score. I/O is the caller's.

Every choice of every exchange ends in exactly one NewAudit: verified with its scores, or unsupported with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from storage.audits import NewAudit, pack_scores
from storage.models import Exchange, Outcome
from verifier.alignment import Alignment, align
from verifier.errors import BadSequence, InputError, Unsupported
from verifier.replay import Claim, Reference, replay
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores
from verifier.sequences import TokenSequence
from verifier.tokenization import ChatTokenizer
from verifier.verify import MARGIN_CLIP


@dataclass(frozen=True)
class TrustedModel:
    """A reference with its tokenizer; `name` is what jobs and audits call it."""

    name: str
    tokenizer: ChatTokenizer
    reference: Reference


@dataclass(frozen=True)
class _Question:
    """One choice to be judged: a claim to replay, or the reason why it cannot be."""

    exchange: Exchange
    choice_index: int
    notes: dict[str, Any]
    alignment: Alignment | None = None
    claim: Claim | None = None
    refusal: Unsupported | None = None


def audit_exchanges(
    exchanges: Sequence[Exchange], model: TrustedModel, *, now: datetime
) -> dict[str, list[NewAudit]]:
    """Audits of each exchange's choices, by exchange id, from one run of the reference over all of them."""
    questions = [question for exchange in exchanges for question in _questions(exchange, model)]
    asked = [question for question in questions if question.claim is not None]
    scores = replay(model.reference, [question.claim for question in asked if question.claim])
    scored = dict(zip(map(id, asked), scores, strict=True))
    audits: dict[str, list[NewAudit]] = {exchange.id: [] for exchange in exchanges}
    for question in questions:
        audits[question.exchange.id].append(_audit(question, scored.get(id(question)), model.name, now))
    return audits


def _questions(exchange: Exchange, model: TrustedModel) -> list[_Question]:
    choices = exchange.response.get("choices") or []
    try:
        prompt = _prompt(exchange, model.tokenizer)
        params = SamplingParams.from_fields(exchange.forced)
        rules = contract(exchange.sampler or "")
    except (Unsupported, InputError) as error:
        refusal = error if isinstance(error, Unsupported) else Unsupported("sampling_not_replayable", str(error))
        return [_Question(exchange, choice["index"], {}, refusal=refusal) for choice in choices]
    told = exchange.response.get("prompt_token_ids")
    notes = {"prompt_differs": True} if told is not None and told != prompt else {}
    base = exchange.forced.get("seed")
    return [_question(exchange, choice, prompt, notes, base, params, rules, model) for choice in choices]


def _question(
    exchange: Exchange, choice: Mapping[str, Any], prompt: list[int], notes: dict[str, Any], base: Any,
    params: SamplingParams, rules: Any, model: TrustedModel,
) -> _Question:  # fmt: skip
    index = int(choice["index"])
    try:
        alignment = align(choice, model.tokenizer, complete=exchange.outcome is Outcome.COMPLETE)
        sequence = TokenSequence(prompt, alignment.token_ids)
        if not alignment.token_ids:
            raise Unsupported("empty_answer", "there is no token to verify")
        if base is None and not params.is_greedy:
            raise Unsupported("no_seed", "no seed was forced")
        model.reference.check(index, sequence)
    except Unsupported as refusal:
        return _Question(exchange, index, notes, refusal=refusal)
    except BadSequence as error:
        return _Question(exchange, index, notes, refusal=Unsupported("sequence_not_scorable", str(error)))
    claim = Claim(sequence, rules.choice_seed(int(base or 0), index), params, rules)
    return _Question(exchange, index, notes, alignment=alignment, claim=claim)


def _prompt(exchange: Exchange, tokenizer: ChatTokenizer) -> list[int]:
    request = exchange.request
    return tokenizer.prompt_token_ids(
        request.get("messages") or [],
        tools=request.get("tools"),
        template_kwargs=request.get("chat_template_kwargs"),
    )


def _audit(question: _Question, scores: TokenScores | None, reference: str, now: datetime) -> NewAudit:
    exchange, refusal = question.exchange, question.refusal
    known: dict[str, Any] = {
        "exchange_id": exchange.id, "choice_index": question.choice_index, "created_at": now,
        "upstream": exchange.upstream, "model": exchange.model, "reference": reference,
        "sampler": exchange.sampler, "notes": question.notes,
    }  # fmt: skip
    if scores is None:
        assert refusal is not None
        notes = {**question.notes, "detail": str(refusal)}
        return NewAudit(**{**known, "notes": notes}, verdict_status="unsupported", reason=refusal.reason)
    assert question.alignment is not None
    return NewAudit(
        **known, verdict_status="verified", token_source=question.alignment.source, **summary_columns(scores)
    )


def summary_columns(scores: TokenScores) -> dict[str, Any]:
    """The audit row's sums and means of at least one token, and the packed per-token arrays."""
    finite = np.isfinite(scores.margin)
    return {
        "tokens": len(scores),
        "exact_matches": int(scores.exact_match.sum()),
        "exact_match_rate": float(scores.exact_match.mean()),
        "outside_support": int((~finite).sum()),
        "mean_margin": float(scores.margin[finite].mean()) if finite.any() else None,
        "clipped_margin": float(np.minimum(scores.margin, MARGIN_CLIP).mean()),
        "cross_entropy": float(-scores.logprob.mean()),
        "mean_logit_rank": float(scores.logit_rank.mean()),
        "mean_gumbel_rank": float(scores.gumbel_rank[finite].mean()) if finite.any() else None,
        "scores": pack_scores(per_token(scores)),
    }


def per_token(scores: TokenScores) -> dict[str, Any]:
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
    }
