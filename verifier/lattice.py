"""The tokenization that an answer was sampled in, when only its text is known.

All tokenizations of a text form a lattice. The search walks the tokenizer's own path, scored by one pass of the
reference. Where a token mismatches although the token that the contract predicts would spell the text as well, the
path through the predicted token is scored too, and the one with the better evidence is kept.

Evidence weighs two hypotheses: that the path was drawn with this seed by a model of the reference's kind, and that it
was drawn without it, so that a token of probability p matches with probability p only. The likelihood ratio's mean
under the second is 1: by Markov's inequality text that owes nothing to the seed wins one tried path with probability
at most exp(−THRESHOLD). So the search cannot buy matches for a cheat, and it ends where the answer so far shows no
trace of the seed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from verifier.answers import AnswerText
from verifier.reference import LogitRows
from verifier.replay import Claim, Reference, score_rows
from verifier.scoring import TokenScores
from verifier.sequences import TokenSequence
from verifier.spelling import Spelling

THRESHOLD = 5.0  # nats
WINDOW = 24  # tokens after a branch by which its paths are told apart
MAX_TRIED = 32  # paths scored beside the first, for one answer
MAX_DEPTH = 4  # branches within one branch
_FIDELITIES = (0.5, 0.8, 0.97)  # share of draws that follow the seed: heavy quantization … honest noise
_LEAST_CHANCE = 1e-6


@dataclass(frozen=True)
class Tail:
    """A path to be scored from token number `first` on."""

    token_ids: list[int]
    first: int


@dataclass(frozen=True)
class Reading:
    """The path found, its scores, and which of its tokens cannot be told; `tried` and `taken` count other paths."""

    token_ids: list[int]
    scores: TokenScores
    ambiguous: NDArray[np.bool_]
    tried: int
    taken: int


@dataclass(frozen=True)
class _Path:
    token_ids: list[int]
    ends: NDArray[np.int64]
    scores: TokenScores
    chances: NDArray[np.float64]

    def evidence(self, first: int, last: int) -> float:
        """Nats in favour of this seed, of the tokens first … last − 1."""
        return evidence(self.scores.exact_match[first:last], self.chances[first:last])

    def start(self, token: int) -> int:
        """Byte at which a token begins."""
        return int(self.ends[token - 1]) if token else 0

    def tokens_to(self, byte: int) -> int:
        """Number of tokens that end at or before a byte."""
        return int(np.searchsorted(self.ends, byte, "right"))


def evidence(match: NDArray[np.bool_], chances: NDArray[np.float64]) -> float:
    """log of the likelihood ratio "drawn with this seed" to "drawn without it", mixed over fidelities."""
    gains = [
        np.where(match, np.log(h / chances + 1.0 - h), np.log1p(-h)).sum(dtype=np.float64) for h in _FIDELITIES
    ]
    return float(np.logaddexp.reduce(gains) - np.log(len(gains)))


Search = Generator[list[Tail], list[TokenScores], Reading]


def search(
    text: AnswerText, spelling: Spelling, *, greedy: bool = False, end_token_ids: Sequence[int] = ()
) -> Search:
    """Find the path of one answer: yields paths to score, receives their scores, returns the reading. Pure.

    Args:
        text: what was written; at least one byte or mark.
        spelling: of the reference's tokenizer.
        greedy: the answer was decoded without sampling; chances are then the model's own at T = 1.
        end_token_ids: ids that may have ended it, where the text's last mark is one of them.
    """
    return (yield from _Search(text, spelling, greedy, end_token_ids).run())


class _Search:
    def __init__(self, text: AnswerText, spelling: Spelling, greedy: bool, ends: Sequence[int]) -> None:
        self._text, self._spelling, self._greedy, self._ends = text, spelling, greedy, tuple(ends)
        self._tried = self._taken = 0
        self._unclear: list[tuple[int, int]] = []

    def run(self) -> Search:
        ids = self._text.token_ids(self._spelling)
        (scores,) = yield [Tail(ids, 0)]
        path, settled = self._path(ids, scores), 0
        while self._tried < MAX_TRIED:
            branch = self._next_branch(path, settled, len(path.token_ids))
            if branch is None or path.evidence(0, branch) < -THRESHOLD:
                break
            path = yield from self._decide(path, branch)
            settled = branch + 1
        path = yield from self._with_right_end(path)
        return self._reading(path)

    def _decide(self, path: _Path, branch: int) -> Generator[list[Tail], list[TokenScores], _Path]:
        """The better of the path and those that leave it at `branch`; an open contest is noted as unclear."""
        rival: _Path | None = self._off(path, branch)
        horizon = int(path.ends[min(branch + WINDOW, len(path.ends) - 1)])
        tails = [self._tail(path, branch)]
        unclear = False
        for _ in range(MAX_DEPTH):
            self._tried += 1
            (scores,) = yield tails
            rival = self._path(tails[0].token_ids, scores, path, tails[0].first)
            tails = []
            ours, theirs = (p.evidence(branch, p.tokens_to(horizon)) for p in (path, rival))
            if theirs >= THRESHOLD and theirs - ours >= THRESHOLD:
                self._taken += 1
                return rival
        return path
