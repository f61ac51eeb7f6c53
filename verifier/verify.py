"""`seedproof verify`: match rates of recorded outputs, file by file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from verifier.answers import answer_texts
from verifier.errors import InputError, VerifierError
from verifier.lattice import Reading
from verifier.processors import not_modelled
from verifier.reading import TextClaim, read_texts
from verifier.recordings import Recording
from verifier.replay import Claim, Reference, replay
from verifier.samplers import SamplerContract
from verifier.samplers.names import parse
from verifier.scoring import TokenScores
from verifier.tokenization import ChatTokenizer

# Logit units. A margin beyond this says "not a near-tie", and infinite ones must count, not vanish from the mean.
MARGIN_CLIP = 1.0


@dataclass(frozen=True)
class FileResult:
    """Summary of one file's tokens."""

    file: str
    sequences: int
    tokens: int
    exact_match_rate: float
    outside_support: int
    mean_margin: float
    tokens_per_second: float
    ambiguous_tokens: int = 0

    def to_dict(self) -> dict[str, str | int | float]:
        """Convert to a dictionary."""
        return asdict(self)


def claims_of(recordings: Sequence[Recording], contract: SamplerContract, file: str) -> list[Claim]:
    """What the recordings claim under a contract. Raises InputError where a sampled one has no seed."""
    claims, engine = [], parse(contract.id).engine
    for number, recording in enumerate(recordings):
        if recording.seed is None and not recording.params.is_greedy and contract.id != "greedy":
            raise InputError(f"{file}: recording {number} has no seed; give one with --seed")
        foreign = not_modelled(engine, recording.params)
        if foreign:
            raise InputError(f"{file}: recording {number}: {engine}'s {foreign} cannot be replayed")
        seed = contract.choice_seed(recording.seed or 0, recording.choice)
        claims.append(Claim(recording.sequence, seed, recording.params, contract))
    return claims


def text_claims_of(
    recordings: Sequence[Recording], claims: Sequence[Claim], tokenizer: ChatTokenizer
) -> list[TextClaim]:
    """The same claims, from messages and text alone."""
    return [
        TextClaim(
            tokenizer.prompt_token_ids(recording.messages),
            answer_texts({"text": recording.text, "finish_reason": recording.finish_reason}, tokenizer),
            claim.seed, claim.params, claim.contract,
        )
        for recording, claim in zip(recordings, claims, strict=True)
    ]  # fmt: skip


def verify_file(
    file: str,
    recordings: Sequence[Recording],
    reference: Reference,
    contract: SamplerContract,
    on_tokens: Callable[[int], None] | None = None,
) -> FileResult:
    """Replay a file's recordings and sum them up."""
    claims = claims_of(recordings, contract, file)
    for number, claim in enumerate(claims):
        if claim.sequence.output_token_ids:
            reference.check(number, claim.sequence)
    started = time.perf_counter()
    scores = TokenScores.join(replay(reference, claims, on_tokens))
    return summarize(file, len(claims), scores, time.perf_counter() - started)


def verify_hidden(
    file: str,
    recordings: Sequence[Recording],
    reference: Reference,
    contract: SamplerContract,
    tokenizer: ChatTokenizer,
    on_tokens: Callable[[int], None] | None = None,
) -> FileResult:
    """As `verify_file`, from messages and text alone; tokens that the text leaves open are counted, not scored.

    Raises InputError for a recording that cannot be read back from its text.
    """
    claims = text_claims_of(recordings, claims_of(recordings, contract, file), tokenizer)
    started = time.perf_counter()
    readings = read_texts(
        reference, claims, tokenizer.spelling, end_token_ids=tokenizer.end_token_ids, on_tokens=on_tokens
    )
    seconds = time.perf_counter() - started
    for number, reading in enumerate(readings):
        if isinstance(reading, VerifierError):
            raise InputError(f"{file}: recording {number} cannot be read from its text: {reading}") from reading
    read = [reading for reading in readings if isinstance(reading, Reading)]
    scores = TokenScores.join([reading.scores[~reading.ambiguous] for reading in read])
    ambiguous = sum(int(reading.ambiguous.sum()) for reading in read)
    return replace(summarize(file, len(claims), scores, seconds), ambiguous_tokens=ambiguous)


def summarize(file: str, sequences: int, scores: TokenScores, seconds: float) -> FileResult:
    """One line of the result; rates are 0 where there are no tokens."""
    tokens = len(scores)
    return FileResult(
        file=file,
        sequences=sequences,
        tokens=tokens,
        exact_match_rate=float(scores.exact_match.mean()) if tokens else 0.0,
        outside_support=int((~scores.inside_support).sum()),
        mean_margin=float(np.minimum(scores.margin, MARGIN_CLIP).mean()) if tokens else 0.0,
        tokens_per_second=tokens / seconds if seconds else 0.0,
    )
