"""Do the tokens follow the seeded noise at all? What parts a wrong sampler contract from a cheating provider. Pure.

Let q be the probability of the claimed token under the filtered distribution. If the provider drew with other noise
(an ignored seed, another sampler), the replayed draw equals its token by chance, with probability q. If even a share
LINK of the tokens comes from our noise, it does with probability LINK + (1 − LINK)·q. The ratio of the two,

    match:     (LINK + (1 − LINK)·q) / q             mismatch:  1 − LINK

has mean 1 under other noise, so its product over tokens reaches 1/ERROR with probability at most ERROR (Ville). It asks
only for a link, not for faithful weights: measured per token, honest answers gain 0.9 nats, 4-bit weights 0.4, a model
of which only a third of the draws agree 0.3; other noise loses 0.1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LINK = 0.3
ERROR = 1e-3
LINKED = -math.log(ERROR)
"""Nats from which a stream counts as linked, and below −LINKED as not."""
LEAST_PROB = 0.01
"""No single token proves more than ln(31); it also keeps the ratio's mean at most 1."""
LEAST_SHARE = 0.15
"""An answer is set aside when it gains less than this share of what full agreement would have gained."""
LOST = 3.0
"""Nats against a link from which an answer's end is set aside. Golden answers, cheats among them, reach 1.5."""


def gains(exact_match: NDArray[np.bool_], prob: NDArray[np.float32]) -> NDArray[np.float64]:
    """Nats per token [n] for a link, from whether the replayed draw equals the claimed token and that one's prob."""
    return np.where(exact_match, _of_a_match(prob), math.log(1.0 - LINK))


def follows(exact_match: NDArray[np.bool_], prob: NDArray[np.float32]) -> bool:
    """Whether one answer by itself looks drawn from our noise, faithfully or not; short ones may err either way."""
    return float(gains(exact_match, prob).sum()) >= LEAST_SHARE * float(_of_a_match(prob).sum())


def followed_tokens(exact_match: NDArray[np.bool_], prob: NDArray[np.float32]) -> int:
    """After how many tokens the noise was lost for good: a draw wasted near an answer's end leaves too little to find
    its place again (`verifier.resync`). All n where it was not; a linked answer's end is cut with chance e^−LOST."""
    against = np.cumsum(-gains(exact_match, prob)[::-1])[::-1]
    start = int(np.argmax(against))
    return start if against[start] >= LOST else len(against)


def is_drawn(prob: NDArray[np.float32]) -> bool:
    """Whether noise had a say in any token: in greedy answers every prob is 0 or 1."""
    return bool(((prob > 0.0) & (prob < 1.0)).any())


def _of_a_match(prob: NDArray[np.float32]) -> NDArray[np.float64]:
    q = np.maximum(prob.astype(np.float64), LEAST_PROB)
    return np.asarray(np.log((LINK + (1.0 - LINK) * q) / q))
