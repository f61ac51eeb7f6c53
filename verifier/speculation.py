"""Speculative decoding: which noise decided a token when a drafter proposed some of them. Pure.

llama.cpp and TGI draw every token as usual and compare it with the draft: nothing changes.

vLLM V1 (v1/sample/rejection_sampler.py) accepts draft x_i if p(x_i) ≥ u_i; the first rejected one is replaced by a
race among all other tokens; if none is, the bonus token follows. Which draws of the stream these are follows from the
claimed tokens and an ngram drafter, which reads nothing but the text (`samplers.drafters`; golden v1_spec: 0.57
naively, 0.98 so). With another drafter nobody outside knows where a step begins.

vLLM V2 keys everything by position, so a known drafter is replayed as in V1. With one that we cannot run we do not know
which rule decided a token. It is consistent if (a) p(t) > u(seed, position), an accepted draft; (b) t wins the race; or
(c) t comes second in it to a token x with p(x) ≤ u, a rejected draft (v1/worker/gpu/spec_decode). Text that owes
nothing to the seed is consistent with probability 1 − (1 − p)³. That holds for drafts that are their drafter's
likeliest token (vLLM's default); sampled ones are accepted by p(x) > u·q(x), and q is not ours to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from verifier.masses import masses
from verifier.samplers.contract import GumbelContract, RaceContract, SamplerContract
from verifier.samplers.drafters import NO_DRAFT, Plan, plan
from verifier.samplers.torch_cuda import WRAPPED
from verifier.samplers.vllm_v1 import SpeculatingRace
from verifier.samplers.vllm_v2 import SpeculatingGumbel, acceptances
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores, clamp_temperature, score

Speculating = SpeculatingRace | SpeculatingGumbel


def is_speculating(contract: SamplerContract) -> bool:
    """Whether tokens under this contract are scored here rather than by its own draws alone."""
    return isinstance(contract, SpeculatingRace | SpeculatingGumbel)


def is_servable(contract: SamplerContract) -> bool:
    """Whether tokens can be drawn by this contract: not by one whose drafter is unknown."""
    return not isinstance(contract, SpeculatingGumbel) or contract.drafter is not None


def speculated(
    logits: NDArray[np.float32], first: int, prompt: Sequence[int], output: Sequence[int], *, seed: int,
    params: SamplingParams, contract: SamplerContract,
) -> TokenScores:  # fmt: skip
    """Scores of the R output tokens from number `first` on under a speculating contract, given processed logits [R, V].

    The margin of a wrong acceptance is T·|ln(p/u)|: how far the draft's logit must move to turn it.
    """
    assert isinstance(contract, SpeculatingRace | SpeculatingGumbel)
    last = first + len(logits)
    claimed = np.asarray(output[first:last], np.int64)
    params = clamp_temperature(params, contract.lowest_temperature)
    positions = contract.positions(len(prompt), last)[first:]
    if params.is_greedy:
        return score(logits, claimed, seed=seed, positions=positions, params=params, contract=contract)
    if contract.drafter is None:
        assert isinstance(contract, SpeculatingGumbel)
        return consistent_scores(logits, claimed, seed=seed, positions=positions, params=params, contract=contract)
    steps = plan(prompt, output, contract.drafter, last)[first:]
    if isinstance(contract, SpeculatingRace):
        return _proposed(logits, claimed, steps, steps.draws, _uniforms(seed, steps, contract), seed, params, contract)
    return _proposed(logits, claimed, steps, positions, acceptances(seed, positions), seed, params, contract)


def _proposed(
    logits: NDArray[np.float32], claimed: NDArray[np.int64], steps: Plan, draws: NDArray[np.int64],
    uniforms: NDArray[np.float64], seed: int, params: SamplingParams, contract: Speculating,
) -> TokenScores:  # fmt: skip
    """Scores of tokens some of which were proposed: with races at `draws` [R] and the drafts' `uniforms` [R]."""
    plain = score(logits, claimed, seed=seed, positions=draws, params=params, contract=contract)
    drafted = np.flatnonzero(steps.drafts != NO_DRAFT)
    if not len(drafted):
        return plain
    decided = _Proposals(logits[drafted], claimed[drafted], steps.drafts[drafted], uniforms[drafted], draws[drafted])
    predicted, margins = _decided(decided, seed, params, contract)
    predicted_ids, margin = plain.predicted_ids.copy(), plain.margin.copy()
    predicted_ids[drafted] = predicted
    margin[drafted] = np.where(np.isfinite(plain.margin[drafted]), margins, np.inf)
    return replace(plain, predicted_ids=predicted_ids, margin=margin)


@dataclass(frozen=True)
class _Proposals:
    """Rows with a draft: logits [R, V], and of each row the claim, the draft, its uniform and its race."""

    logits: NDArray[np.float32]
    claimed: NDArray[np.int64]
    drafts: NDArray[np.int64]
    uniforms: NDArray[np.float64]
    draws: NDArray[np.int64]


def _decided(
    rows: _Proposals, seed: int, params: SamplingParams, contract: RaceContract
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What acceptance or the recovering race makes of proposals, and by how much the claims miss it."""
    count, heat, every = len(rows.logits), params.temperature, np.arange(len(rows.logits))
    kept = contract.support(rows.logits, masses(rows.logits, heat, rows.claimed).log_mass, params)
    drafted = rows.logits[every, rows.drafts]
    with np.errstate(divide="ignore"):
        log_p = np.where(drafted >= kept.cuts, drafted / heat - kept.log_mass, -np.inf)
        lead = log_p - np.log(rows.uniforms)
    others = rows.logits.copy()
    others[every, rows.drafts] = -np.inf
    # a claim that is the draft cannot race; the row's winner stands in for it
    racing = np.where(rows.claimed == rows.drafts, others.argmax(1), rows.claimed)
    heats, seeds = np.full(count, heat), np.full(count, seed, np.int64)
    race = contract.race(others, kept.cuts, heats, racing, seeds, rows.draws)
    predicted = np.where(lead >= 0.0, rows.drafts, race.winners)
    wrong_turn = (lead >= 0.0) != (rows.claimed == rows.drafts)
    margins = heat * np.where(wrong_turn, np.abs(lead), np.where(predicted == rows.claimed, 0.0, race.leads))
    return predicted, margins


def _uniforms(seed: int, steps: Plan, contract: SpeculatingRace) -> NDArray[np.float64]:
    """V1's float64 uniforms of each token's draft; the noise of a float64 race is −ln(−ln u) of the same."""
    lanes = np.arange(int(steps.lanes.max(initial=0)) + 1)
    noise = WRAPPED["float64"].rows(np.full(len(steps.draws), seed), steps.uniforms, lanes, contract.grid_threads)
    uniforms: NDArray[np.float64] = np.exp(-np.exp(-noise))[np.arange(len(noise)), steps.lanes]
    return uniforms


@dataclass(frozen=True)
class Consistency:
    """Tokens under V2's rules (a) to (c): the plain scores, which of them an acceptance or a rejection explains, and
    with what chance it would if the provider never looked at the uniforms."""

    plain: TokenScores
    explained: NDArray[np.bool_]
    chance: NDArray[np.float64]


def consistency(
    logits: NDArray[np.float32], token_ids: NDArray[np.int64], *, seed: int, positions: NDArray[np.int64],
    params: SamplingParams, contract: GumbelContract,
) -> Consistency:  # fmt: skip
    """How tokens [R] stand to V2's rules, given processed logits [R, V]."""
    plain = score(logits, token_ids, seed=seed, positions=positions, params=params, contract=contract)
    won = score(logits, plain.predicted_ids, seed=seed, positions=positions, params=params, contract=contract).prob
    uniforms, second = acceptances(seed, positions), plain.gumbel_rank == 1.0
    explained = (plain.prob > uniforms) | (second & (won <= uniforms))
    chance = np.where(second, 1.0 - np.maximum(won - plain.prob, 0.0), plain.prob)
    return Consistency(plain, explained & plain.inside_support, chance.astype(np.float64))


def consistent_scores(
    logits: NDArray[np.float32], token_ids: NDArray[np.int64], *, seed: int, positions: NDArray[np.int64],
    params: SamplingParams, contract: GumbelContract,
) -> TokenScores:  # fmt: skip
    """Scores of tokens [R] under V2's rules (a), (b) and (c), given processed logits [R, V].

    A consistent token counts as drawn, with margin 0; `prob` is the chance of being consistent without the seed.
    """
    found = consistency(logits, token_ids, seed=seed, positions=positions, params=params, contract=contract)
    plain, consistent = found.plain, found.plain.exact_match | found.explained
    return replace(
        plain,
        predicted_ids=np.where(consistent, token_ids, plain.predicted_ids),
        margin=np.where(consistent, np.float32(0.0), plain.margin),
        prob=(1.0 - (1.0 - plain.prob) ** 3).astype(np.float32),
    )
