"""Streams that lost their place: an engine that skipped or repeated draws, found and followed.

vLLM V1 keeps one generator a request and takes its k-th draw for token k, until a draw is wasted: a preempted request
under async scheduling loses one (0.14 … 0.32), and TGI restarts the stream at 0 whenever a request joins the batch.
From there on a plain replay compares every token with another token's noise, and an honest answer looks like a cheat.

So where the matches of an answer break off, other places of the stream are tried on the tokens that follow. One is
taken only with evidence (`lattice.evidence`) of THRESHOLD nats more than the place it replaces: text that owes nothing
to the seed wins one try with probability at most exp(−THRESHOLD), so that a cheat cannot buy matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.lattice import evidence
from verifier.processors import History, processed
from verifier.replay import Claim, Reference
from verifier.samplers.contract import SamplerContract
from verifier.scoring import TokenScores, score

THRESHOLD = 10.0
"""Nats; some thirty places are tried at most MAX_SHIFTS times an answer, so by chance fewer than 1 in 80 finds any."""
WINDOW = 64
"""Tokens after a break by which a place is judged."""
MAX_SHIFTS = 8
"""Breaks that are mended in one answer. A stream that breaks more often is not preempted but speculates."""
SKIPS = tuple(range(1, 9))
"""Draws wasted at one break."""
MAX_LOGITS = 2**28
"""Logits that are held at a time; a longer answer is not followed."""
_REACH = 8  # tokens that may match by chance after a restart, before the break shows
_IN_STEP = 0.97
_LEAST_CHANCE = 1e-6

ScoreAt = Callable[[int, int, int], TokenScores]
"""Scores of the tokens first … last − 1 with `shift` added to their positions."""


@dataclass(frozen=True)
class Shift:
    """From output token `token` on, positions are `by` more than the contract's own."""

    token: int
    by: int

    def to_dict(self) -> dict[str, int]:
        """Convert to a dictionary, as the audit's note `resync` lists it."""
        return {"token": self.token, "shift": self.by}


@dataclass(frozen=True)
class Resynced:
    """Scores along the stream as it was found to run, and where it jumped; without jumps, the plain scores."""

    scores: TokenScores
    shifts: tuple[Shift, ...] = ()


def is_stream(contract: SamplerContract) -> bool:
    """Whether the contract takes its draws one after the other from the first output token on, so that one can be
    lost; where noise belongs to a place in the text (vLLM V2, SGLang) none can."""
    return int(contract.positions(100, 1)[0]) == 0 and contract.id != "greedy"


def chances(scores: TokenScores) -> NDArray[np.float64]:
    """Probability with which each token matches without the seed, kept away from 0."""
    return np.clip(scores.prob.astype(np.float64), _LEAST_CHANCE, 1.0)


def broken_at(scores: TokenScores, first: int = 0) -> int | None:
    """Number of the first token that no longer follows the seed, or None while the answer is in step.

    It is where the evidence of an exact replay is greatest, if from there to the end it falls by THRESHOLD.
    """
    match, chance = scores.exact_match[first:], chances(scores)[first:]
    gains = np.where(match, np.log(_IN_STEP / chance + 1.0 - _IN_STEP), np.log1p(-_IN_STEP))
    sums = np.concatenate([[0.0], np.cumsum(gains)])
    top = int(sums.argmax())
    return first + top if sums[-1] <= sums[top] - THRESHOLD else None


def resync(plain: TokenScores, score_at: ScoreAt) -> Resynced:
    """Follow an answer whose plain replay falls out of step through the jumps of its stream."""
    scores, shifts, by, first = plain, list[Shift](), 0, 0
    while len(shifts) < MAX_SHIFTS:
        broken = broken_at(scores, first)
        found = None if broken is None else _continued(scores, broken, by, score_at)
        if broken is None or found is None:
            break
        by, first = found, broken
        scores = TokenScores.join([scores[:broken], score_at(broken, len(scores), by)])
        shifts.append(Shift(broken, by))
    return Resynced(scores, tuple(shifts))


def _continued(scores: TokenScores, broken: int, by: int, score_at: ScoreAt) -> int | None:
    """The shift under which the tokens from `broken` on have THRESHOLD nats more evidence than now."""
    last = min(broken + WINDOW, len(scores))
    now = _evidence(scores[broken:last])
    tried = {shift: _evidence(score_at(broken, last, shift)) for shift in _places(broken, by)}
    best = max(tried, key=lambda shift: tried[shift])
    return best if tried[best] >= THRESHOLD and tried[best] - now >= THRESHOLD else None


def _places(broken: int, by: int) -> Sequence[int]:
    """Shifts to try: draws wasted, and restarts of the stream at one of the last tokens."""
    restarts = (-token for token in range(broken, max(broken - _REACH, 0) - 1, -1) if token)
    return [*dict.fromkeys([*(by + skip for skip in SKIPS), *restarts])]


def _evidence(scores: TokenScores) -> float:
    return evidence(scores.exact_match, chances(scores))


def follow(reference: Reference, claim: Claim, plain: TokenScores) -> Resynced:
    """Follow a claim whose plain replay gave `plain`; one more forward pass, and only if it falls out of step."""
    prompt, output = claim.sequence.prompt_token_ids, claim.sequence.output_token_ids
    too_long = len(output) * reference.width > MAX_LOGITS
    if claim.params.is_greedy or not is_stream(claim.contract) or too_long or broken_at(plain) is None:
        return Resynced(plain)
    raw = np.concatenate([rows.logits.numpy() for rows in reference.logits([claim.sequence])])
    logits = processed(raw, 0, History(prompt, output, reference.end_token_ids), claim.params)
    positions = claim.contract.positions(len(prompt), len(output))

    def score_at(first: int, last: int, shift: int) -> TokenScores:
        return score(
            logits[first:last], np.asarray(output[first:last], np.int64), seed=claim.seed,
            positions=positions[first:last] + shift, params=claim.params, contract=claim.contract,
        )  # fmt: skip

    return resync(plain, score_at)
