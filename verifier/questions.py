"""What an exchange asks the verifier: one question per choice, or the reason why there is none.

The prompt is always the one that the client's request gives. Where the server tells another one, the answer is also
replayed on that: a provider that added a hidden system prompt then matches, one that serves another model does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from storage.models import Exchange, Outcome
from verifier.alignment import Alignment, align
from verifier.completions import completion_prompts, without_echo
from verifier.errors import BadSequence, InputError, Unsupported
from verifier.processors import not_modelled
from verifier.prompts import Prompt, faithful_prompt
from verifier.reading import TextClaim
from verifier.replay import Claim, Reference
from verifier.samplers import SamplerContract, contract
from verifier.samplers.names import parse
from verifier.sampling_params import SamplingParams
from verifier.sequences import TokenSequence
from verifier.tokenization import ChatTokenizer

AnyClaim = Claim | TextClaim


@dataclass(frozen=True)
class Question:
    """One choice to be judged.

    Attributes:
        claim: to replay where the ids are known, to search where only the text is.
        told: the claim on the prompt that the server told, where it differs.
        source: of the ids, as `verifier.alignment` names it.
        refusal: why there is no claim.
    """

    exchange: Exchange
    choice_index: int
    notes: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    claim: AnyClaim | None = None
    told: AnyClaim | None = None
    refusal: Unsupported | None = None


@dataclass(frozen=True)
class _Asked:
    """What all choices of one exchange share."""

    exchange: Exchange
    prompts: list[Prompt]
    params: SamplingParams
    rules: SamplerContract

    @property
    def choices_per_prompt(self) -> int:
        n = self.exchange.forced.get("n")
        return n if type(n) is int and n > 0 else 1

    def prompt_of(self, choice_index: int) -> Prompt:
        number = choice_index // self.choices_per_prompt
        if number >= len(self.prompts):
            raise Unsupported("choice_not_asked_for", "the answer has more choices than were asked for")
        return self.prompts[number]

    def claim(self, prompt_token_ids: list[int], aligned: Alignment, choice_index: int) -> AnyClaim:
        """What the provider says it drew for one choice, on this prompt."""
        seed = self.rules.choice_seed(
            int(self.exchange.forced.get("seed") or 0), choice_index % self.choices_per_prompt
        )
        if aligned.texts:
            return TextClaim(prompt_token_ids, aligned.texts, seed, self.params, self.rules)
        return Claim(TokenSequence(prompt_token_ids, aligned.token_ids), seed, self.params, self.rules)


def questions_of(
    exchange: Exchange, tokenizer: ChatTokenizer, reference: Reference, *, sampler: str | None = None
) -> list[Question]:
    """The questions of an exchange's choices, in their order, by the configured contract or by `sampler`."""
    choices = exchange.response.get("choices") or []
    try:
        asked = _asked(exchange, tokenizer, sampler or exchange.sampler or "")
    except (Unsupported, InputError) as error:
        refusal = error if isinstance(error, Unsupported) else Unsupported("sampling_not_replayable", str(error))
        return [Question(exchange, int(choice["index"]), refusal=refusal) for choice in choices]
    return [_question(asked, choice, tokenizer, reference) for choice in choices]


def _asked(exchange: Exchange, tokenizer: ChatTokenizer, sampler: str) -> _Asked:
    prompts = _prompts(exchange, tokenizer)
    params = SamplingParams.from_fields(exchange.forced)
    if exchange.forced.get("seed") is None and not params.is_greedy:
        raise Unsupported("no_seed", "no seed was forced")
    rules, engine = contract(sampler), parse(sampler).engine
    if foreign := not_modelled(engine, params):
        raise Unsupported("processor_not_modelled", f"{engine}'s {foreign} cannot be replayed: force its neutral value")
    return _Asked(exchange, prompts, params, rules)


def _prompts(exchange: Exchange, tokenizer: ChatTokenizer) -> list[Prompt]:
    response = exchange.response
    told, count = response.get("prompt_token_ids"), (response.get("usage") or {}).get("prompt_tokens")
    if exchange.endpoint == "/v1/completions":
        return completion_prompts(exchange.request, tokenizer, told=_told_prompts(exchange), prompt_tokens=count)
    return [faithful_prompt(exchange.request, tokenizer, at=exchange.created_at, told=told, prompt_tokens=count)]


def _told_prompts(exchange: Exchange) -> list[list[int] | None]:
    """The server's ids of each prompt of a completion: vLLM tells them with every choice."""
    response, n = exchange.response, exchange.forced.get("n") or 1
    first = response.get("prompt_token_ids")
    told = {choice["index"] // n: choice.get("prompt_token_ids", first) for choice in response.get("choices") or []}
    return [told.get(number) for number in range(max(told, default=-1) + 1)]


def _question(
    asked: _Asked, choice: Mapping[str, Any], tokenizer: ChatTokenizer, reference: Reference
) -> Question:
    exchange, index = asked.exchange, int(choice["index"])
    question = Question(exchange, index)
    try:
        prompt = asked.prompt_of(index)
        question = replace(question, notes=_notes(prompt, choice) | _usage_note(exchange))
        aligned = _aligned(exchange, choice, prompt, tokenizer)
        reference.check(index, TokenSequence(prompt.token_ids, aligned.token_ids))
    except Unsupported as refusal:
        return replace(question, refusal=refusal)
    except BadSequence as error:
        return replace(question, refusal=Unsupported("sequence_not_scorable", str(error)))
    claim = asked.claim(prompt.token_ids, aligned, index)
    told = _told_claim(asked, prompt, aligned, index, reference)
    return replace(question, source=aligned.source, claim=claim, told=told)


def _aligned(
    exchange: Exchange, choice: Mapping[str, Any], prompt: Prompt, tokenizer: ChatTokenizer
) -> Alignment:
    if exchange.endpoint == "/v1/completions" and exchange.request.get("echo"):
        choice = without_echo(choice, prompt)
    complete = exchange.outcome is Outcome.COMPLETE
    special = exchange.request.get("skip_special_tokens") is False
    aligned = align(choice, tokenizer, complete=complete, prompt=prompt.text, stop=_stops(exchange), special=special)
    if not aligned.token_ids:
        raise Unsupported("empty_answer", "there is no token to verify")
    return aligned


def _notes(prompt: Prompt, choice: Mapping[str, Any]) -> dict[str, Any]:
    notes: dict[str, Any] = {"prompt_differs": prompt.difference.to_dict()} if prompt.difference else {}
    return notes | ({"ids_from": choice["ids_from"]} if choice.get("ids_from") else {})


def _usage_note(exchange: Exchange) -> dict[str, Any]:
    """Where the server bills another number of tokens than its ids are; nothing is known of answers that were cut."""
    told = (exchange.response.get("usage") or {}).get("completion_tokens")
    ids = [choice.get("token_ids") for choice in exchange.response.get("choices") or []]
    if told is None or exchange.outcome is not Outcome.COMPLETE or None in ids:
        return {}
    count = sum(map(len, ids))
    return {} if told == count else {"usage_differs": {"completion_tokens": told, "token_ids": count}}


def _told_claim(
    asked: _Asked, prompt: Prompt, aligned: Alignment, choice_index: int, reference: Reference
) -> AnyClaim | None:
    """The claim on the prompt that the server told, where it differs and can be scored."""
    if prompt.told is None:
        return None
    try:
        reference.check(choice_index, TokenSequence(prompt.told, aligned.token_ids))
    except BadSequence:
        return None
    return asked.claim(prompt.told, aligned, choice_index)


def _stops(exchange: Exchange) -> list[str]:
    stop = exchange.forced.get("stop") or []
    return [stop] if isinstance(stop, str) else [text for text in stop if isinstance(text, str)]
