"""Did vLLM's runner V1 speculate with a drafter that nobody knows? A hidden Markov model over its steps. Pure.

Which draws a V1 step takes is known (`samplers.drafters`), what was proposed in it is not. But the tokens say enough:
of a step with d drafts that begins at draw m, token l is accepted where the l-th uniform of draw m + 1 lies below its
probability; the first that was not is won by the race of draw m + 2, the draft aside; after d accepted ones the race of
draw m gives one more. A step without drafts is the race of draw m alone, and so is the first, of the prompt.

The likelihood of the tokens under these rules, summed over all ways in which steps may lie (the forward algorithm,
Rabiner 1989) and over d, against "drawn without this seed", has mean 1 under the latter: evidence like any other bet's.
Answers found so are recognised, not verified: an accepted token may be whatever the drafter liked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.bets import Piece, seed_of
from verifier.samplers import contract
from verifier.samplers.torch_cuda import WRAPPED, CudaRace
from verifier.scoring import clamp_temperature, score

Floats = NDArray[np.float64]

TOKENS = 32
"""Of each answer; some 0.5 nats a token, against 9 that are asked for."""
DRAFTS = (1, 2, 3, 4, 5, 7)
"""Drafts a step, equally likely."""
_PLAIN = 0.2  # prior of a step without drafts
_BONUS, _RECOVERED = 0.95, 0.6  # how often a race decides: the rest is rounding, and runners-up of rejected drafts
_SLIP = 0.03  # acceptances that rounding turns
_LEAST = 1e-6


@dataclass(frozen=True)
class _Odds:
    """Log likelihood ratios of an answer's tokens [n] under everything that may have drawn them.

    Args:
        bonus, recovered: [n, draws] won by the race of a draw.
        accepted: [n, draws, lanes] accepted by a draw's uniform of this lane.
    """

    bonus: Floats
    recovered: Floats
    accepted: Floats


def speculated_by_steps(base: str, pieces: Sequence[Piece]) -> float:
    """Nats for "V1 drew these answers in steps with drafts", against "without this seed" and "without drafts".

    At most 0 where most first tokens, which no draft can touch, are not V1's.

    Args:
        base: id of a V1 contract of a GPU.
        pieces: beginnings of answers; TOKENS of each are read.
    """
    heads = [each.head(TOKENS) for each in pieces]
    odds = [_odds(base, each) for each in heads]
    if np.mean([one.bonus[0, 0] > 0.0 for one in odds]) <= 0.5:
        return 0.0
    by_count = [sum(_forward(one, drafts) for one in odds) for drafts in DRAFTS]
    in_step = sum(float(np.trace(one.bonus)) for one in odds)
    return float(np.logaddexp.reduce(by_count) - np.log(len(DRAFTS))) - max(0.0, in_step)


def _odds(base: str, each: Piece) -> _Odds:
    rules, n = contract(base), len(each.logits)
    assert isinstance(rules, CudaRace)
    seed, draws = seed_of(rules, each), 3 * n
    won, prob = _races(rules, each, seed, draws)
    noise = WRAPPED["float64"].rows(np.full(draws, seed), np.arange(draws), np.arange(max(DRAFTS)), rules.grid_threads)
    below = np.exp(-np.exp(-noise)) < prob[:, None, None]
    p = prob[:, None, None]
    return _Odds(
        bonus=np.log(1.0 - _BONUS + _BONUS * won / prob[:, None]),
        recovered=np.log(1.0 - _RECOVERED + _RECOVERED * won / prob[:, None]),
        accepted=np.log(np.where(below, (1.0 - _SLIP) / p, _SLIP / (1.0 - p))),
    )


def _races(rules: CudaRace, each: Piece, seed: int, draws: int) -> tuple[NDArray[np.bool_], Floats]:
    """Which tokens [n] win the race of each draw, bool[n, draws], and their filtered probabilities [n]."""
    n, params = len(each.logits), clamp_temperature(each.sample.params, rules.lowest_temperature)
    won, prob = np.zeros((n, draws), np.bool_), np.full(n, _LEAST)
    for ahead in range(-(n // 2), draws):
        rows = np.arange(max(0, -ahead), min(n, draws - ahead))
        rows = rows[rows + ahead <= 3 * rows]
        if len(rows):
            scores = score(
                each.logits[rows], each.claimed[rows], seed=seed, positions=rows + ahead, params=params, contract=rules
            )
            won[rows, rows + ahead] = scores.exact_match
            prob[rows] = scores.prob
    return won, np.clip(prob, _LEAST, 1.0 - _LEAST)


def _forward(odds: _Odds, drafts: int) -> float:
    """Log likelihood ratio of all the tokens, if steps have this many drafts or none."""
    n, draws = odds.bonus.shape
    mass = np.full((n + 1, draws), -np.inf)
    mass[1, 1] = odds.bonus[0, 0]
    cut_short = -np.inf
    for first in range(1, n):
        _add(mass[first + 1], 1, mass[first] + np.log(_PLAIN) + odds.bonus[first])
        path = mass[first] + np.log((1.0 - _PLAIN) / (drafts + 1))
        for lane in range(drafts + 1):
            token = first + lane
            if token == n:
                cut_short = np.logaddexp(cut_short, np.logaddexp.reduce(path) + np.log(drafts + 1 - lane))
                break
            if lane == drafts:
                _add(mass[token + 1], 3, path + odds.bonus[token])
            else:
                _add(mass[token + 1], 3, path + _later(odds.recovered[token], 2))
                path = path + _later(odds.accepted[token, :, lane], 1)
    return float(np.logaddexp(np.logaddexp.reduce(mass[n]), cut_short))


def _add(mass: Floats, draws: int, paths: Floats) -> None:
    """Add the paths' mass to states this many draws on."""
    mass[draws:] = np.logaddexp(mass[draws:], paths[:-draws])


def _later(odds: Floats, draws: int) -> Floats:
    """The odds by the draw at which the step begins, given by a draw of its that comes later."""
    return np.concatenate([odds[draws:], np.full(draws, -np.inf)])
