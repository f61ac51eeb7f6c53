"""Speculative decoding: which noise decided a token when a drafter proposed some of them. Pure.

llama.cpp and TGI draw every token as usual and compare it with the draft: nothing changes.

vLLM V1 (v1/sample/rejection_sampler.py, spec_decode/ngram_proposer.py) with d drafts takes three draws a step from the
request's stream: a race for the bonus token, d float64 uniforms, and one race for the recovered token. Draft x_i is
accepted if p(x_i) ≥ u_i; the first rejected one is replaced by the race among all other tokens; if none is, the bonus
token follows. A step without drafts takes one draw. A recovered token never equals the draft it replaces, so the
claimed tokens themselves tell what was accepted, and with it where each step begins: an ngram drafter, which reads
nothing but the text, makes the whole answer replayable (golden v1_spec: 0.57 naively, 0.98 so).

vLLM V2 keys everything by position, but with a drafter that we cannot run we do not know which rule decided a token.
It is consistent (samplers.md §1.3) if (a) p(t) > u(seed, position), an accepted draft; (b) t wins the race; or (c) t
comes second in it to a token x with p(x) ≤ u, a rejected draft. Text that owes nothing to the seed is consistent with
probability 1 − (1 − p)³.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from verifier.masses import masses
from verifier.samplers.contract import GumbelContract
from verifier.samplers.torch_cuda import WRAPPED, CudaRace
from verifier.samplers.vllm_v2 import acceptances
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores, clamp_temperature, score

_NONE = -1


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
            rows.append((draw, _NONE, 0, 0))
        draw += 3 if drafts else 1
    columns = np.array(rows, np.int64).reshape(-1, 4)
    return Plan(*columns.T)


def ngram_scores(
    logits: NDArray[np.float32], prompt: Sequence[int], output: Sequence[int], *, seed: int,
    params: SamplingParams, contract: CudaRace, drafter: NgramDrafter,
) -> TokenScores:  # fmt: skip
    """Scores of the first R output tokens of an answer under V1's rejection sampler, given processed logits [R, V].

    The margin of a wrong acceptance is T·|ln(p/u)|: how far the draft's logit must move to turn it.
    """
    count = len(logits)
    steps, claimed = plan(prompt, output, drafter, count), np.asarray(output[:count], np.int64)
    params = clamp_temperature(params, contract.lowest_temperature)
    plain = score(logits, claimed, seed=seed, positions=steps.draws, params=params, contract=contract)
    drafted = np.flatnonzero(steps.drafts != _NONE)
    if not len(drafted):
        return plain
    part = Plan(*(getattr(steps, name)[drafted] for name in ("draws", "drafts", "lanes", "uniforms")))
    predicted, margins = _decided(logits[drafted], claimed[drafted], part, seed, params, contract)
    predicted_ids, margin = plain.predicted_ids.copy(), plain.margin.copy()
    predicted_ids[drafted] = predicted
    margin[drafted] = np.where(np.isfinite(plain.margin[drafted]), margins, np.inf)
    return replace(plain, predicted_ids=predicted_ids, margin=margin)


def _decided(
    logits: NDArray[np.float32], claimed: NDArray[np.int64], steps: Plan, seed: int, params: SamplingParams,
    contract: CudaRace,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # fmt: skip
    """What acceptance or the recovering race makes of drafted rows, and by how much the claims miss it."""
    count, heat, rows = len(logits), params.temperature, np.arange(len(logits))
    kept = contract.support(logits, masses(logits, heat, claimed).log_mass, params)
    drafted = logits[rows, steps.drafts]
    with np.errstate(divide="ignore"):
        log_p = np.where(drafted >= kept.cuts, drafted / heat - kept.log_mass, -np.inf)
        lead = log_p - np.log(_uniforms(seed, steps, contract.grid_threads))
    others = logits.copy()
    others[rows, steps.drafts] = -np.inf
    # a claim that is the draft cannot race; the row's winner stands in for it
    racing = np.where(claimed == steps.drafts, others.argmax(1), claimed)
    heats, seeds = np.full(count, heat), np.full(count, seed, np.int64)
    race = contract.race(others, kept.cuts, heats, racing, seeds, steps.draws)
    predicted = np.where(lead >= 0.0, steps.drafts, race.winners)
    wrong_turn = (lead >= 0.0) != (claimed == steps.drafts)
    margins = heat * np.where(wrong_turn, np.abs(lead), np.where(predicted == claimed, 0.0, race.leads))
    return predicted, margins


def _uniforms(seed: int, steps: Plan, grid_threads: int) -> NDArray[np.float64]:
    """The float64 uniforms that decide the drafts; the noise of a float64 race is −ln(−ln u) of the same."""
    lanes = np.arange(int(steps.lanes.max()) + 1)
    noise = WRAPPED["float64"].rows(np.full(len(steps.draws), seed), steps.uniforms, lanes, grid_threads)
    uniforms: NDArray[np.float64] = np.exp(-np.exp(-noise))[np.arange(len(noise)), steps.lanes]
    return uniforms


def consistent_scores(
    logits: NDArray[np.float32], token_ids: NDArray[np.int64], *, seed: int, positions: NDArray[np.int64],
    params: SamplingParams, contract: GumbelContract,
) -> TokenScores:  # fmt: skip
    """Scores of tokens [R] under V2's rules (a), (b) and (c), given processed logits [R, V].

    A consistent token counts as drawn, with margin 0; `prob` is the chance of being consistent without the seed.
    """
    plain = score(logits, token_ids, seed=seed, positions=positions, params=params, contract=contract)
    won = score(logits, plain.predicted_ids, seed=seed, positions=positions, params=params, contract=contract)
    uniforms = acceptances(seed, positions)
    accepted = plain.prob > uniforms
    recovered = (plain.gumbel_rank == 1.0) & (won.prob <= uniforms)
    consistent = (plain.exact_match | accepted | recovered) & plain.inside_support
    return replace(
        plain,
        predicted_ids=np.where(consistent, token_ids, plain.predicted_ids),
        margin=np.where(consistent, np.float32(0.0), plain.margin),
        prob=(1.0 - (1.0 - plain.prob) ** 3).astype(np.float32),
    )
