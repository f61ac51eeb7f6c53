"""What a reference tells of a few answers: is the prompt the model's own, how are ids read, which sampler drew them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.models import Exchange
from verifier.audit import TrustedModel
from verifier.identify import Identification, Sample, identify
from verifier.questions import AnyClaim, Question, questions_of
from verifier.reading import TextClaim
from verifier.sequences import TokenSequence


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        prompt: `equal`, `differs` or `unknown` (the provider tells neither ids nor a count).
        prompt_detail: how it differs.
        token_source: `given`, `logprobs` or `retokenized`; None where no answer could be read.
        refusal: why none could.
        identified: which contract the answers follow.
    """

    prompt: str
    prompt_detail: str
    token_source: str | None
    refusal: str | None
    identified: Identification | None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        found = None if self.identified is None else self.identified.to_dict()
        return {**vars(self), "identified": found}


def examine(exchanges: Sequence[Exchange], model: TrustedModel) -> Examination:
    """Read and score the first choices of exchanges that were sent with a seed."""
    asked = [questions_of(exchange, model.tokenizer, model.reference)[0] for exchange in exchanges]
    readable = [question.claim for question in asked if question.claim is not None]
    refusals = [str(question.refusal) for question in asked if question.refusal is not None]
    prompt, detail = _prompt(exchanges, asked)
    return Examination(
        prompt, detail, next((question.source for question in asked if question.source), None),
        refusals[0] if refusals else None,
        identify(model.reference, [_drawn(claim, model) for claim in readable]) if readable else None,
    )  # fmt: skip


def _prompt(exchanges: Sequence[Exchange], asked: Sequence[Question]) -> tuple[str, str]:
    differences = [question.notes["prompt_differs"] for question in asked if "prompt_differs" in question.notes]
    if differences:
        shown = {name: value for name, value in differences[0].items() if name != "place"}
        return "differs", ", ".join(f"{name} {value!r}" for name, value in shown.items())[:300]
    answers = [exchange.response for exchange in exchanges]
    told = any(a.get("prompt_token_ids") or (a.get("usage") or {}).get("prompt_tokens") for a in answers)
    return ("equal" if told else "unknown"), ""


def _drawn(claim: AnyClaim, model: TrustedModel) -> Sample:
    """The claim's tokens; of a text, the tokenizer's own, which are mostly those that were sampled."""
    if isinstance(claim, TextClaim):
        ids = claim.texts[0].token_ids(model.tokenizer.spelling)
        return Sample(TokenSequence(claim.prompt_token_ids, ids), claim.seed, 0, claim.params)
    return Sample(claim.sequence, claim.seed, 0, claim.params)
