"""Prompt lookup: what an ngram drafter proposes, and how vLLM's runner V1 comes to each token with it. Pure.

Source: vllm/v1/spec_decode/ngram_proposer.py and v1/sample/rejection_sampler.py (0.26). A step with d drafts takes
three draws of the request's stream: a race for the bonus token, d uniforms, and one race for the recovered token; a
step without drafts takes one. A recovered token never equals the draft it replaces, so the claimed tokens themselves
tell what was accepted, and with it where each step begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verifier.errors import UnknownContract

NO_DRAFT = -1


@dataclass(frozen=True)
class NgramDrafter:
    """vLLM's prompt lookup: what followed the earliest earlier occurrence of the longest matching suffix.

    Args:
        shortest, longest: lengths of suffix that count (`prompt_lookup_min`, `prompt_lookup_max`).
        count: drafts a step (`num_speculative_tokens`).
    """

    shortest: int
    longest: int
    count: int

    def drafts(self, context: Sequence[int]) -> list[int]:
        """Up to `count` proposals for what follows the context [n]."""
        tokens = np.asarray(context, np.int64)
        for length in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], length)
            hits = np.flatnonzero((windows == tokens[-length:]).all(1))
            if hits.size:
                start = int(hits[0]) + length
                return [int(token) for token in tokens[start : start + self.count]]
        return []


DRAFTERS = tuple(
    NgramDrafter(shortest, longest, count)
    for count in (3, 5, 4, 2)
    for shortest, longest in ((2, 3), (2, 2), (5, 5), (2, 5), (3, 3), (1, 3), (4, 4), (1, 1), (3, 5))
)
"""Settings in use, the likelier first."""


@dataclass(frozen=True)
class Plan:
    """Of each output token [n]: the draw of the race that may decide it, its draft or −1, that draft's place in the
    step, and the draw of its uniform."""

    draws: NDArray[np.int64]
    drafts: NDArray[np.int64]
    lanes: NDArray[np.int64]
    uniforms: NDArray[np.int64]

    def __getitem__(self, rows: slice) -> Plan:
        return Plan(self.draws[rows], self.drafts[rows], self.lanes[rows], self.uniforms[rows])


def plan(prompt: Sequence[int], output: Sequence[int], drafter: NgramDrafter, count: int) -> Plan:
    """How V1 came to the first `count` output tokens, if this drafter proposed."""
    rows: list[tuple[int, int, int, int]] = []
    draw = 0
    while len(rows) < count:
        first = len(rows)
        # the prefill's own step has no drafts
        drafts = drafter.drafts([*prompt, *output[:first]]) if first else []
        accepted = 0
        for lane, draft in enumerate(drafts[: count - first]):
            rows.append((draw + 2, draft, lane, draw + 1))
            if output[first + lane] != draft:
                break
            accepted += 1
        if accepted == len(drafts) and len(rows) < count:
            rows.append((draw, NO_DRAFT, 0, 0))
        draw += 3 if drafts else 1
    columns = np.array(rows, np.int64).reshape(-1, 4)
    return Plan(*columns.T)


def drafter_of(options: Mapping[str, str]) -> NgramDrafter | None:
    """The drafter that a contract's options name, `ngram=SHORTEST-LONGEST,drafts=COUNT`; None where they name none."""
    if not options.keys() & {"ngram", "drafts"}:
        return None
    shortest, _, longest = options.get("ngram", "").partition("-")
    numbers = (shortest, longest, options.get("drafts", ""))
    if not all(number.isdecimal() and int(number) for number in numbers) or int(shortest) > int(longest):
        raise UnknownContract("a drafter is written ngram=SHORTEST-LONGEST,drafts=COUNT, e.g. ngram=2-3,drafts=3")
    return NgramDrafter(*map(int, numbers))
