"""The tokenization that an answer was sampled in, when only its text is known.

All tokenizations of a text form a lattice. The search walks the tokenizer's own path, scored by one pass of the
reference. Where a token mismatches although the token that the contract predicts would spell the text as well, the
path through the predicted token is scored too, and the one with the better evidence is kept. Where a path falls out of
step and no predicted token mends it (rounding may have decided otherwise just there), every token that spells the text
at that place is tried; so it is where step comes back by itself, since the wrong tokens were as many as the right ones.
Within such a stretch alone must the other token then win: behind it both paths are in step.

Evidence weighs two hypotheses: that the path was drawn with this seed by a model of the reference's kind, and that it
was drawn without it, so that a token of probability p matches with probability p only. Under the second the likelihood
ratio is a martingale of mean 1: by Ville's inequality text that owes nothing to the seed wins, through one given token
at one place, with probability at most exp(−THRESHOLD), however often one looks. And the search ends where the answer so
far shows no trace of the seed, so a cheat cannot buy matches; `bench.hidden_ids` measures that it does not.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.answers import AnswerText
from verifier.errors import BadSequence
from verifier.scoring import TokenScores
from verifier.spelling import Spelling

THRESHOLD = 5.0  # nats
WINDOW = 24  # tokens after a branch by which its paths are told apart
LONG_WINDOW = 96  # the same, for noisy answers
MAX_TRIED = 64  # paths scored beside the first, for one answer
MAX_DEPTH = 10  # branches within one branch: a word that is repeated is written in the same odd way each time
SLIP = 8.0  # nats that a stretch out of step costs, when it ends by itself
NEAR = WINDOW  # tokens around the place where step was lost, in which it may have been lost
_FIDELITIES = (0.5, 0.8, 0.97)  # share of draws that follow the seed: heavy quantization … honest noise
_LEAST_CHANCE = 1e-6


@dataclass(frozen=True)
class Tail:
    """A path to be scored from token number `first` on; for `undrawn` tokens before it nothing was drawn."""

    token_ids: list[int]
    first: int
    undrawn: int = 0


@dataclass(frozen=True)
class Reading:
    """The path found and its scores.

    Attributes:
        ambiguous: which of the tokens cannot be told from the text.
        tried, taken: numbers of other paths.
        lost_step: the answer followed the seed up to a place and no more. What stood there was not guessed right, or
            another sampler went on: all tokens behind it are ambiguous.
    """

    token_ids: list[int]
    scores: TokenScores
    ambiguous: NDArray[np.bool_]
    tried: int
    taken: int
    lost_step: bool = False


@dataclass(frozen=True)
class _Path:
    token_ids: list[int]
    ends: NDArray[np.int64]
    scores: TokenScores
    chances: NDArray[np.float64]
    """[tokens]: of a match without this seed."""
    gains: NDArray[np.float64]
    """[fidelities, tokens + 1]: log likelihood ratios of all tokens before each."""

    def evidence(self, first: int, last: int) -> float:
        """Nats in favour of this seed, of the tokens first … last − 1."""
        end = self.gains.shape[1] - 1
        return _mixed(self.gains[:, min(last, end)] - self.gains[:, min(first, end)])

    def evidence_to(self, places: NDArray[np.int64], first: int) -> NDArray[np.float64]:
        """The same, of the tokens from number `first` up to each of these bytes [n]."""
        gained = self.gains[:, np.searchsorted(self.ends, places, "right")] - self.gains[:, first, None]
        nats: NDArray[np.float64] = np.logaddexp.reduce(gained, axis=0) - np.log(len(gained))
        return nats

    def start(self, token: int) -> int:
        """Byte at which a token begins."""
        return int(self.ends[token - 1]) if token else 0

    def tokens_to(self, byte: int) -> int:
        """Number of tokens that end at or before a byte."""
        return int(np.searchsorted(self.ends, byte, "right"))


def evidence(match: NDArray[np.bool_], chances: NDArray[np.float64]) -> float:
    """log of the likelihood ratio "drawn with this seed" to "drawn without it", mixed over fidelities."""
    return _mixed(_gains(match, chances).sum(axis=1))


def seed_evidence(scores: TokenScores, *, greedy: bool = False) -> float:
    """`evidence` of scored tokens; for an answer decoded without sampling, the model's own chances are taken."""
    return evidence(scores.exact_match, _chances(scores, greedy=greedy))


def _chances(scores: TokenScores, *, greedy: bool) -> NDArray[np.float64]:
    # without sampling every match is certain under the contract; the model's own distribution says what it shows
    chances = np.exp(scores.logprob) if greedy else scores.prob
    clipped: NDArray[np.float64] = np.clip(chances.astype(np.float64), _LEAST_CHANCE, 1.0)
    return clipped


def _gains(match: NDArray[np.bool_], chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """[fidelities, tokens]: each token's log likelihood ratio."""
    fidelity = np.array(_FIDELITIES)[:, None]
    ratios: NDArray[np.float64] = np.where(match, np.log(fidelity / chances + 1.0 - fidelity), np.log1p(-fidelity))
    return ratios


def _mixed(gains: NDArray[np.float64]) -> float:
    return float(np.logaddexp.reduce(gains) - np.log(len(gains)))


Search = Generator[Tail, TokenScores, Reading]


def search(
    texts: Sequence[AnswerText], spelling: Spelling, *, greedy: bool = False, end_token_ids: Sequence[int] = ()
) -> Search:
    """Find the path of one answer: yields what is to be scored, receives the scores, returns the reading. Pure.

    Whoever runs it may throw BadSequence into it for a path that the reference cannot take; for the first path it
    comes back out.

    Args:
        texts: what was written; more than one where that is not certain, the likeliest first. None is empty.
        spelling: of the reference's tokenizer.
        greedy: the answer was decoded without sampling; chances are then the model's own at T = 1.
        end_token_ids: ids any of which may be the end token that the last mark stands for.
    """
    return (yield from _Search(texts, spelling, greedy, frozenset(end_token_ids)).run())


class _Search:
    def __init__(
        self, texts: Sequence[AnswerText], spelling: Spelling, greedy: bool, end_token_ids: frozenset[int]
    ) -> None:
        self._texts, self._text = texts, texts[0]
        self._spelling, self._greedy, self._end_token_ids = spelling, greedy, end_token_ids
        self._tried = self._taken = 0
        self._unclear: list[slice] = []
        self._sound = 0  # tokens before this one have been looked through for stretches out of step

    def run(self) -> Search:
        path = yield from self._scored(Tail(self._text.token_ids(self._spelling), 0))
        path = yield from self._likeliest_text(path)
        settled: int | None = 0
        while settled is not None:
            path = yield from self._followed(path, settled)
            path, settled = yield from self._found_again(path)
            if settled is None:
                path, settled = yield from self._mended(path)
        path = yield from self._with_right_end(path)
        return self._reading(path)

    def _followed(self, path: _Path, settled: int) -> Generator[Tail, TokenScores, _Path]:
        """The path as the contract's predictions lead it through the text, from `settled` on, while it is in step."""
        while self._tried < MAX_TRIED:
            branch, lost = self._next_branch(path, settled, len(path.token_ids)), _step_lost_at(path)
            if branch is None or path.evidence(0, branch) < -THRESHOLD or (lost is not None and branch > lost):
                break
            path = yield from self._decided(path, branch, int(path.scores.predicted_ids[branch]))
            settled = branch + 1
        return path

    def _found_again(self, path: _Path) -> Generator[Tail, TokenScores, tuple[_Path, int | None]]:
        """A path in step again and the token from which it is new; the same path and None where there is none."""
        lost = _step_lost_at(path)
        for place in [] if lost is None else _near(np.flatnonzero(~path.scores.exact_match), lost):
            for token in self._spelling_here(path, place):
                if self._tried >= MAX_TRIED:
                    return path, None
                found = yield from self._decided(path, place, token)
                if found is not path:
                    return found, place + 1
        return path, None

    def _mended(self, path: _Path) -> Generator[Tail, TokenScores, tuple[_Path, int | None]]:
        """As `_found_again`, of stretches out of step that end by themselves: as many tokens, split otherwise."""
        for place, end in _slips(path, self._sound):
            for token in self._spelling_here(path, place):
                if self._tried >= MAX_TRIED:
                    return path, None
                found = yield from self._better_stretch(path, place, token, end)
                if found is not None:
                    self._taken += 1
                    self._sound = place + 1
                    self._unclear = [stretch for stretch in self._unclear if stretch.stop <= place]
                    return found, self._sound
        self._sound = len(path.token_ids)
        return path, None

    def _better_stretch(
        self, path: _Path, place: int, token: int, end: int
    ) -> Generator[Tail, TokenScores, _Path | None]:
        """The path with another token at `place`, if that shows the seed before byte `end`, where the path does not."""
        self._tried += 1
        try:
            rival = yield from self._scored(self._leaving(path, place, token), path)
        except BadSequence:
            return None
        (theirs,), (ours,) = (one.evidence_to(np.array([end]), place) for one in (rival, path))
        return rival if theirs >= THRESHOLD and theirs - ours >= THRESHOLD else None

    def _spelling_here(self, path: _Path, place: int) -> list[int]:
        """Tokens that the text allows in place of one of the path's, longest first."""
        start, known = path.start(place), self._spelling.ids_by_bytes
        pieces = [self._text.data[start : start + n] for n in range(self._spelling.longest, 0, -1)]
        known_here = [piece for piece in dict.fromkeys(pieces) if piece in known and self._text.allows(piece, start)]
        return [known[piece] for piece in known_here if known[piece] != path.token_ids[place]]

    def _likeliest_text(self, path: _Path) -> Generator[Tail, TokenScores, _Path]:
        """Another text only where the first one is out of step at its start, or behind a stretch that was inferred."""
        if len(self._texts) == 1 or not self._out_of_step(path):
            return path
        known = path.evidence(0, len(path.token_ids))
        for text in self._texts[1:]:
            self._tried += 1
            try:
                other = yield from self._scored(Tail(text.token_ids(self._spelling), 0))
            except BadSequence:
                continue
            found = other.evidence(0, len(other.token_ids))
            if found >= known + THRESHOLD:
                path, known, self._text = other, found, text
        return path

    def _out_of_step(self, path: _Path) -> bool:
        after = [0, *(path.tokens_to(end) for _, end in self._text.inferred)]
        return any(path.evidence(first, first + WINDOW) < 0.0 for first in after)

    def _next_branch(self, path: _Path, first: int, last: int) -> int | None:
        """The first mismatch from `first` on whose predicted token would spell the text as well."""
        wrong = np.flatnonzero(~path.scores.exact_match[first:last]) + first
        return next((int(i) for i in wrong if self._spells(path, int(i))), None)

    def _spells(self, path: _Path, token: int) -> bool:
        predicted, table = int(path.scores.predicted_ids[token]), self._spelling.token_bytes
        if self._leaves_no_trace(predicted):
            return True
        plain = predicted < len(table) and predicted not in self._spelling.special_ids
        return plain and self._text.allows(table[predicted], path.start(token))

    def _leaves_no_trace(self, token: int) -> bool:
        """Whether it may have been drawn between any two others: servers drop special tokens from the text."""
        return token in self._spelling.special_ids and token not in self._end_token_ids

    def _decided(self, path: _Path, branch: int, token: int) -> Generator[Tail, TokenScores, _Path]:
        """The path, or one with clearly more evidence that leaves it at `branch` by a token, then by predicted ones."""
        text = self._text
        found = yield from self._rival(path, branch, token)
        if found is None:
            self._text = text
        return found or path

    def _rival(self, path: _Path, branch: int, token: int) -> Generator[Tail, TokenScores, _Path | None]:
        horizons = [int(path.ends[min(branch + n, len(path.ends) - 1)]) for n in (WINDOW, LONG_WINDOW)]
        rival, off = path, branch
        for _ in range(MAX_DEPTH):
            self._tried += 1
            try:
                rival = yield from self._scored(self._leaving(rival, off, token), rival)
            except BadSequence:
                return None
            # behind its next odd token a rival may be out of step again: what it has shown before counts
            looked = rival.ends[branch : rival.tokens_to(horizons[1])]
            theirs, ours = rival.evidence_to(looked, branch), path.evidence_to(looked, branch)
            shown = (theirs >= THRESHOLD) & (theirs - ours >= THRESHOLD)
            if shown.any() and _keeps_up(path, rival, branch, horizons[0]):
                self._taken += 1
                return rival
            again = self._next_branch(rival, off + 1, rival.tokens_to(horizons[1]))
            if again is None or (theirs < np.minimum(0.0, ours))[again - 1 - branch]:
                break
            off, token = again, int(rival.scores.predicted_ids[again])
        theirs, ours = rival.evidence_to(np.array(horizons), branch), path.evidence_to(np.array(horizons), branch)
        if ((theirs > 0.0) & (theirs > ours - THRESHOLD)).all():
            self._unclear.append(_contested(path, rival, branch, horizons[0]))
        return None

    def _leaving(self, path: _Path, branch: int, token: int) -> Tail:
        """The path up to `branch`, another token there, then the tokenizer's own way until it meets the path again."""
        start, spelled = path.start(branch), self._spelling.token_bytes[token]
        if self._leaves_no_trace(token):
            self._text = self._text.with_mark(start, token, spelled)
        rest = start + len(spelled)
        ids = [*path.token_ids[:branch], token, *self._text.token_ids(self._spelling, rest)]
        if not self._leaves_no_trace(token):
            ids = self._rejoined(ids, path, branch)
        return Tail(ids, branch, int(path.scores.undrawn[:branch].sum()))

    def _rejoined(self, ids: list[int], path: _Path, branch: int) -> list[int]:
        """The ids, but the path's own from where as many tokens have spelled as much: noise is the same from there."""
        count = min(len(ids), len(path.token_ids))
        met = np.flatnonzero(self._spelling.ends(ids)[branch:count] == path.ends[branch:count])
        if not len(met):
            return ids
        meeting = branch + int(met[0]) + 1
        return ids[:meeting] + path.token_ids[meeting:]

    def _scored(self, tail: Tail, known: _Path | None = None) -> Generator[Tail, TokenScores, _Path]:
        scores = yield tail
        if known is not None and tail.first:
            scores = TokenScores.join([known.scores[: tail.first], scores])
        chances = _chances(scores, greedy=self._greedy)
        if known is not None and tail.first < len(known.chances):
            # a predicted token was followed since it fits the text: so would the one that it replaces have done
            chances[: tail.first] = known.chances[: tail.first]
            chances[tail.first] = min(1.0, chances[tail.first] + known.chances[tail.first])
        gains = _gains(scores.exact_match, chances)
        running = np.concatenate([np.zeros((len(gains), 1)), np.cumsum(gains, axis=1)], axis=1)
        return _Path(tail.token_ids, self._spelling.ends(tail.token_ids), scores, chances, running)

    def _with_right_end(self, path: _Path) -> Generator[Tail, TokenScores, _Path]:
        """The path with the end token that the contract predicts, where the model has several."""
        last, predicted = path.token_ids[-1], int(path.scores.predicted_ids[-1])
        if last == predicted or not {last, predicted} <= self._end_token_ids:
            return path
        undrawn = int(path.scores.undrawn[:-1].sum())
        tail = Tail([*path.token_ids[:-1], predicted], len(path.token_ids) - 1, undrawn)
        return (yield from self._scored(tail, path))

    def _reading(self, path: _Path) -> Reading:
        ambiguous = self._text.inferred_tokens(path.ends)
        for stretch in self._unclear:
            ambiguous[stretch] = True
        if self._may_be_trimmed(path):
            ambiguous[-1] = True
        lost = _step_lost_at(path)
        if lost is not None:
            ambiguous[lost:] = True
        return Reading(path.token_ids, path.scores, ambiguous, self._tried, self._taken, lost is not None)

    def _may_be_trimmed(self, path: _Path) -> bool:
        """Whether whitespace was drawn in place of the end token: servers may trim it, and so hide tokens."""
        predicted, table = int(path.scores.predicted_ids[-1]), self._spelling.token_bytes
        return path.token_ids[-1] in self._end_token_ids and predicted < len(table) and table[predicted].isspace()


def _step_lost_at(path: _Path) -> int | None:
    """The first mismatch of a path that followed the seed up to there and no more, or None."""
    peak = int(np.argmax(np.logaddexp.reduce(path.gains, axis=0)))
    in_step, rest = path.evidence(0, peak), path.evidence(peak, len(path.token_ids))
    if in_step < THRESHOLD or rest >= -THRESHOLD:
        return None
    return peak + int(np.argmin(path.scores.exact_match[peak:]))  # certain tokens in between say nothing


def _near(mismatches: NDArray[np.int64], lost: int) -> list[int]:
    """The mismatch at which step was lost, the one before and the one behind it."""
    at = int(np.searchsorted(mismatches, lost))
    found = [int(mismatches[n]) for n in (at, at - 1, at + 1) if 0 <= n < len(mismatches)]
    return [place for place in found if abs(place - lost) <= NEAR]


def _keeps_up(path: _Path, rival: _Path, branch: int, horizon: int) -> bool:
    """Whether a rival is not behind at byte `horizon`, where a wrong one is, however much one unlikely match showed."""
    (theirs,), (ours,) = (one.evidence_to(np.array([horizon]), branch) for one in (rival, path))
    return bool(theirs >= ours)


def _slips(path: _Path, first: int) -> list[tuple[int, int]]:
    """Stretches out of step behind shown evidence: the first token (then the one before it) and the byte of the end."""
    running, end = np.logaddexp.reduce(path.gains, axis=0), first
    found: list[tuple[int, int]] = []
    for wrong in map(int, np.flatnonzero(~path.scores.exact_match)):
        after = running[wrong : wrong + WINDOW + 1]
        low = int(np.argmin(after))
        if wrong < end or path.evidence(0, wrong) < THRESHOLD or after[0] - after[low] < SLIP:
            continue
        end = wrong + low
        found += [(place, path.start(end)) for place in (wrong, wrong - 1)]
    return found


def _contested(path: _Path, rival: _Path, branch: int, horizon: int) -> slice:
    """The path's tokens that a rival would replace: up to where both meet, or further where that shifts the rest."""
    ends, others = path.ends[branch:], rival.ends[branch:]
    met = np.flatnonzero(np.isin(ends, others))
    if len(met) and ends[met[0]] == others[min(met[0], len(others) - 1)]:
        return slice(branch, branch + int(met[0]) + 1)
    return slice(branch, path.tokens_to(horizon))
