"""Replay claimed sequences on the reference: one forward pass, every claimed token scored under its contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from verifier.processors import History, processed
from verifier.reference import LogitRows
from verifier.samplers.contract import SamplerContract
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores, score
from verifier.sequences import TokenSequence
from verifier.speculation import is_speculating, speculated


class Reference(Protocol):
    """A trusted model that gives raw logits for output positions."""

    @property
    def width(self) -> int:
        """Logits per row."""
        ...

    @property
    def end_token_ids(self) -> Sequence[int]:
        """Ids that end an answer."""
        ...

    def check(self, number: int, sequence: TokenSequence, limit: int | None = None) -> None:
        """Raise BadSequence if the sequence cannot be scored."""
        ...

    def logits(self, sequences: Sequence[TokenSequence]) -> Iterator[LogitRows]:
        """Rows of logits of every output token, sequence by sequence."""
        ...


@runtime_checkable
class ScoringReference(Protocol):
    """A trusted model that scores claims where its logits are, as GPU references do."""

    def scores(
        self, claims: Sequence[Claim], on_tokens: Callable[[int], None] | None = None
    ) -> list[TokenScores]:
        """What `replay` returns."""
        ...


@dataclass(frozen=True)
class Claim:
    """What a provider says it did: these tokens, drawn with this seed and these parameters by this sampler."""

    sequence: TokenSequence
    seed: int
    params: SamplingParams
    contract: SamplerContract


def replay(
    reference: Reference, claims: Sequence[Claim], on_tokens: Callable[[int], None] | None = None
) -> list[TokenScores]:
    """Scores of each claim's output tokens, in the order of the claims; an empty output gives empty scores.

    Args:
        reference: the trusted model.
        claims: each must pass `reference.check`.
        on_tokens: called with the number of tokens scored since the last call.
    """
    if isinstance(reference, ScoringReference):
        return reference.scores(claims, on_tokens)
    parts: list[list[TokenScores]] = [[] for _ in claims]
    for rows in reference.logits([claim.sequence for claim in claims]):
        skipped = sum(int(part.undrawn.sum()) for part in parts[rows.sequence])
        scores = score_rows(rows, claims[rows.sequence], reference.end_token_ids, skipped)
        parts[rows.sequence].append(scores)
        if on_tokens:
            on_tokens(len(scores))
    return [TokenScores.join(pieces) for pieces in parts]


def score_rows(rows: LogitRows, claim: Claim, end_token_ids: Sequence[int], skipped: int = 0) -> TokenScores:
    """Scores of the output tokens that these rows belong to; for `skipped` earlier ones the engine drew nothing."""
    prompt, output = claim.sequence.prompt_token_ids, claim.sequence.output_token_ids
    last = rows.first + len(rows.logits)
    positions = claim.contract.positions(len(prompt), len(output))
    history = History(prompt, output, end_token_ids)
    logits = processed(rows.logits.numpy(), rows.first, history, claim.params)
    if is_speculating(claim.contract):
        return speculated(
            logits, rows.first, prompt, output, seed=claim.seed, params=claim.params, contract=claim.contract
        )
    return score(
        logits,
        np.asarray(output[rows.first : last], np.int64),
        seed=claim.seed,
        positions=positions[rows.first : last] - skipped,
        params=claim.params,
        contract=claim.contract,
    )
