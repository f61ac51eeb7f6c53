"""Read answers back from their text: the searches of `verifier.lattice`, run in step on a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from verifier.answers import AnswerText
from verifier.errors import BadSequence, Unsupported, VerifierError
from verifier.lattice import Reading, Tail, search
from verifier.reference import LogitRows
from verifier.replay import Claim, Reference, ScoringReference, score_rows
from verifier.samplers.contract import SamplerContract
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores
from verifier.sequences import TokenSequence
from verifier.spelling import Spelling

OnTokens = Callable[[int], None]


@dataclass(frozen=True)
class TextClaim:
    """An answer of which only the text is known, and how it was drawn."""

    prompt_token_ids: list[int]
    texts: Sequence[AnswerText]
    seed: int
    params: SamplingParams
    contract: SamplerContract

    def claim(self, token_ids: list[int]) -> Claim:
        """The claim that these were its tokens."""
        return Claim(TokenSequence(self.prompt_token_ids, token_ids), self.seed, self.params, self.contract)


def read_texts(
    reference: Reference, claims: Sequence[TextClaim], spelling: Spelling, *, end_token_ids: Sequence[int] = (),
    on_tokens: OnTokens | None = None,
) -> list[Reading | VerifierError]:  # fmt: skip
    """Search all answers in step, so that each round is one batch of the reference.

    An answer that cannot be encoded or scored gives its Unsupported or BadSequence in place of a reading.
    `on_tokens` is called with the number of tokens of each first path.
    """
    searches = [
        search(claim.texts, spelling, greedy=claim.params.is_greedy, end_token_ids=end_token_ids) for claim in claims
    ]
    readings: dict[int, Reading | VerifierError] = {}
    waiting: dict[int, Tail] = {}

    def advance(number: int, step: Callable[[], Tail]) -> None:
        try:
            waiting[number] = step()
        except StopIteration as done:
            readings[number] = done.value
        except (Unsupported, BadSequence) as error:
            readings[number] = error

    for number, running in enumerate(searches):
        advance(number, partial(next, running))
    while waiting:
        asked, waiting = waiting, {}
        for number, result in _score_tails(reference, claims, asked, on_tokens).items():
            running = searches[number]
            refused = isinstance(result, BadSequence)
            advance(number, partial(running.throw if refused else running.send, result))  # type: ignore[arg-type]
    return [readings[number] for number in range(len(claims))]


def _score_tails(
    reference: Reference, claims: Sequence[TextClaim], tails: Mapping[int, Tail], on_tokens: OnTokens | None
) -> dict[int, TokenScores | BadSequence]:
    results: dict[int, TokenScores | BadSequence] = {}
    scorable = {}
    for number, tail in tails.items():
        claim = claims[number].claim(tail.token_ids)
        try:
            reference.check(number, claim.sequence)
        except BadSequence as error:
            results[number] = error
        else:
            scorable[number] = (tail, claim)
    score = _scored_there if isinstance(reference, ScoringReference) else _scored_here
    scores = score(reference, list(scorable.values()))  # type: ignore[arg-type]
    for (number, (tail, _)), found in zip(scorable.items(), scores, strict=True):
        results[number] = found
        if on_tokens and not tail.first:
            on_tokens(len(found))
    return results


def _scored_there(reference: ScoringReference, asked: Sequence[tuple[Tail, Claim]]) -> list[TokenScores]:
    """By a reference that scores whole claims where its logits are."""
    whole = reference.scores([claim for _, claim in asked])
    return [scores[tail.first :] for (tail, _), scores in zip(asked, whole, strict=True)]


def _scored_here(reference: Reference, asked: Sequence[tuple[Tail, Claim]]) -> list[TokenScores]:
    """From logits of the tails' tokens alone: what stands before them is prompt to the reference."""
    parts: list[list[TokenScores]] = [[] for _ in asked]
    for rows in reference.logits([_as_prompt(claim.sequence, tail.first) for tail, claim in asked]):
        tail, claim = asked[rows.sequence]
        undrawn = tail.undrawn + sum(int(part.undrawn.sum()) for part in parts[rows.sequence])
        shifted = LogitRows(rows.sequence, rows.first + tail.first, rows.logits)
        parts[rows.sequence].append(score_rows(shifted, claim, reference.end_token_ids, undrawn))
    return [TokenScores.join(pieces) for pieces in parts]


def _as_prompt(sequence: TokenSequence, first: int) -> TokenSequence:
    output = sequence.output_token_ids
    return TokenSequence([*sequence.prompt_token_ids, *output[:first]], output[first:])
