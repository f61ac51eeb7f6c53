"""What an exchange asks the verifier: one question per choice, or the reason why there is none.

The prompt is always the one that the client's messages give. Where the server tells another one, the answer is also
replayed on that: a provider that added a hidden system prompt then matches, one that serves another model does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from storage.models import Exchange, Outcome
from verifier.alignment import align
from verifier.errors import BadSequence, InputError, Unsupported
from verifier.lattice import TextClaim
from verifier.prompts import faithful_prompt, prompt_text
from verifier.replay import Claim, Reference
from verifier.samplers import SamplerContract, contract
from verifier.sampling_params import SamplingParams
from verifier.sequences import TokenSequence
from verifier.tokenization import ChatTokenizer


@dataclass(frozen=True)
class Question:
    """One choice to be judged.

    Attributes:
        claim: to replay, where the ids are known.
        text_claim: to search, where only the text is.
        told: the claim on the prompt that the server told, where it differs.
        source: of the ids, as `verifier.alignment` names it.
        refusal: why none of that is there.
    """

    exchange: Exchange
    choice_index: int
    notes: dict[str, Any]
    source: str | None = None
    claim: Claim | None = None
    text_claim: TextClaim | None = None
    told: Claim | None = None
    refusal: Unsupported | None = None


@dataclass(frozen=True)
class _Asked:
    """What all choices of one exchange share."""

    exchange: Exchange
    prompt: list[int]
    text: str
    notes: dict[str, Any]
    told_prompt: list[int] | None
    params: SamplingParams
    rules: SamplerContract


def questions_of(exchange: Exchange, tokenizer: ChatTokenizer, reference: Reference) -> list[Question]:
    """The questions of an exchange's choices, in their order."""
    choices = exchange.response.get("choices") or []
    try:
        asked = _asked(exchange, tokenizer)
    except (Unsupported, InputError) as error:
        refusal = error if isinstance(error, Unsupported) else Unsupported("sampling_not_replayable", str(error))
        return [Question(exchange, int(choice["index"]), {}, refusal=refusal) for choice in choices]
    return [_question(asked, choice, tokenizer, reference) for choice in choices]


def _asked(exchange: Exchange, tokenizer: ChatTokenizer) -> _Asked:
    told = exchange.response.get("prompt_token_ids")
    usage = exchange.response.get("usage") or {}
    prompt, difference = faithful_prompt(
        exchange.request, tokenizer, at=exchange.created_at, told=told, prompt_tokens=usage.get("prompt_tokens")
    )
    params = SamplingParams.from_fields(exchange.forced)
    if exchange.forced.get("seed") is None and not params.is_greedy:
        raise Unsupported("no_seed", "no seed was forced")
    return _Asked(
        exchange=exchange,
        prompt=prompt,
        text=prompt_text(exchange.request, tokenizer, at=exchange.created_at),
        notes={"prompt_differs": difference.to_dict()} if difference else {},
        told_prompt=list(told) if difference and told else None,
        params=params,
        rules=contract(exchange.sampler or ""),
    )


def _question(
    asked: _Asked, choice: Mapping[str, Any], tokenizer: ChatTokenizer, reference: Reference
) -> Question:
    exchange, index = asked.exchange, int(choice["index"])
    empty = Question(exchange, index, asked.notes)
    try:
        aligned = align(
            choice, tokenizer, complete=exchange.outcome is Outcome.COMPLETE, prompt=asked.text, stop=_stops(exchange)
        )
        if not aligned.token_ids:
            raise Unsupported("empty_answer", "there is no token to verify")
        reference.check(index, TokenSequence(asked.prompt, aligned.token_ids))
    except Unsupported as refusal:
        return replace(empty, refusal=refusal)
    except BadSequence as error:
        return replace(empty, refusal=Unsupported("sequence_not_scorable", str(error)))
    seed = asked.rules.choice_seed(int(exchange.forced.get("seed") or 0), index)
    if aligned.texts:
        text_claim = TextClaim(asked.prompt, aligned.texts, seed, asked.params, asked.rules)
        return replace(empty, source=aligned.source, text_claim=text_claim)
    claim = Claim(TokenSequence(asked.prompt, aligned.token_ids), seed, asked.params, asked.rules)
    return replace(empty, source=aligned.source, claim=claim, told=_on_told_prompt(asked, claim, index, reference))


def _on_told_prompt(asked: _Asked, claim: Claim, index: int, reference: Reference) -> Claim | None:
    if asked.told_prompt is None:
        return None
    sequence = TokenSequence(asked.told_prompt, claim.sequence.output_token_ids)
    try:
        reference.check(index, sequence)
    except BadSequence:
        return None
    return replace(claim, sequence=sequence)


def _stops(exchange: Exchange) -> list[str]:
    stop = exchange.forced.get("stop") or []
    return [stop] if isinstance(stop, str) else [text for text in stop if isinstance(text, str)]
