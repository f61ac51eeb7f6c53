"""Did a drafter propose some of these tokens? The last question of `identify`, where no contract fits cleanly. Pure.

A speculating V1 is in step up to its first draft, and in step all along under the right prompt lookup. A speculating
V2 is half in step: its other tokens are drafts that were accepted, or came second to one that was rejected. The tokens
of a provider with worse weights miss the race too, but nothing ties them to the uniforms that accept drafts: acceptance
or rejection explains only as many of them as chance does. That ratio is the evidence asked for.

A V1 with a drafter that nobody knows is recognised by its steps (`verifier.unknown_drafter`), and not verified.

Sampled drafts are V2's own noise at positions of their own; among the tokens that miss the race, more follow it than by
chance. How they were accepted depends on the drafter, so such answers are recognised and not verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from verifier.bets import IN_STEP, SURENESS, V1, V2, Bet, Identification, Piece, Ranked, bet, probe, ratio, seed_of
from verifier.samplers import contract
from verifier.samplers.contract import GumbelContract
from verifier.samplers.drafters import DRAFTERS, NgramDrafter, plan
from verifier.samplers.names import ContractName, parse, render
from verifier.samplers.torch_cuda import CudaRace
from verifier.samplers.vllm_v2 import era
from verifier.scoring import clamp_temperature, score
from verifier.speculation import Consistency, consistency
from verifier.unknown_drafter import speculated_by_steps

REASON = "speculative_decoding"
_BEGUN = 4.0  # nats
_HEAD = 12  # tokens of an answer that a speculating V1 draws in step, before its first draft
_TAIL = 24  # tokens at an answer's end: those of 4-bit weights are worth some 8 nats there, others lose 2
_MOST = 0.75  # of the answers; those that the worker asks about are all out of step where the provider speculates
_CONSISTENT = 0.96
"""Share of consistent tokens from which on V2's rules verify an answer: drafts that were sampled leave 0.94 at most."""
_SLACK = 0.02  # of a match rate: what rounding turns of the drafts that the rules allow either way
_DRAFT_PLACE, _DRAFT_STEPS = 2**30, {"E": range(1), "F": range(4)}
"""Where V2 draws its drafts since 0.29: this far behind the target's noise; since 0.33 with the step in the seed."""


def with_speculation(
    found: Identification, pieces: Sequence[Piece], tried: int, claimed: str | None
) -> Identification:
    """The same, or what speculation explains better."""
    needed = float(np.log(tried + len(DRAFTERS))) + SURENESS
    known = _under_v1(found, pieces, needed, claimed) or _under_v2(found, pieces, needed, claimed)
    return known or _in_unknown_steps(found, pieces, needed, claimed) or found


def _under_v1(
    found: Identification, pieces: Sequence[Piece], needed: float, claimed: str | None
) -> Identification | None:
    base = _base(claimed, "v1")
    if base is None:
        # an engine that nobody names is looked at closely only where its answers begin in step
        base = V1
        if bet(base, 0, [each.head(_HEAD) for each in pieces]).ranked().evidence < _BEGUN:
            return None
    if _ends_in_step(base, pieces):
        return None
    best = max((one.ranked() for one in _ngram_bets(base, pieces)), key=lambda r: r.evidence, default=None)
    known = found.evidence if found.contract else 0.0
    if best and best.evidence >= known + needed and best.match_rate >= IN_STEP:
        return _led_by(best, found)
    return None


def _in_unknown_steps(
    found: Identification, pieces: Sequence[Piece], needed: float, claimed: str | None
) -> Identification | None:
    """Recognised as drawn by a V1 whose drafter is not known, where no contract fits."""
    if found.contract is None and speculated_by_steps(_base(claimed, "v1") or V1, pieces) >= needed:
        return replace(found, reason=REASON)
    return None


def _ends_in_step(base: str, pieces: Sequence[Piece]) -> bool:
    """Whether most answers follow V1's own draws to their ends: one step with drafts would have shifted them."""
    whole, ends = bet(base, 0, pieces), np.cumsum([len(each.logits) for each in pieces])
    tails = [slice(end - min(_TAIL, len(each.logits)), end) for end, each in zip(ends, pieces, strict=True)]
    return float(np.mean([ratio(whole.match[tail], whole.chances[tail]) > 0.0 for tail in tails])) >= _MOST


def _under_v2(
    found: Identification, pieces: Sequence[Piece], needed: float, claimed: str | None
) -> Identification | None:
    for base in dict.fromkeys([_base(claimed, "v2") or V2[0], *V2]):
        any_drafter = f"{base}{',' if ':' in base else ':'}drafter=any"
        heads = probe(pieces)
        if bet(any_drafter, 0, heads).ranked().evidence > 0.0:
            loosely = bet(any_drafter, 0, pieces).ranked()
            if loosely.evidence >= needed and _proposed([_consistency(base, each) for each in pieces]) >= needed:
                return _with_drafter(loosely, base, pieces, found)
        if _drawn_as_drafts(base, heads) > 0.0 and _drawn_as_drafts(base, pieces) >= needed:
            return replace(_led_by(bet(any_drafter, 0, pieces).ranked(), found), contract=None, reason=REASON)
    return None


def _with_drafter(loosely: Ranked, base: str, pieces: Sequence[Piece], found: Identification) -> Identification:
    """Named with its drafter where prompt lookup explains as much, else as one that is known by its rules alone."""
    exact = max((one.ranked() for one in _ngram_bets(base, pieces)), key=lambda r: r.evidence)
    if exact.evidence >= loosely.evidence and exact.match_rate >= loosely.match_rate - _SLACK:
        return _led_by(exact, found)
    named = _led_by(loosely, found)
    return named if loosely.match_rate >= _CONSISTENT else replace(named, contract=None, reason=REASON)


def _led_by(best: Ranked, found: Identification) -> Identification:
    return Identification(best.contract, None, found.tokens, [best, *found.ranking])


def _base(claimed: str | None, runner: str) -> str | None:
    """The claimed contract without a drafter, if it is vLLM's with this runner."""
    if claimed is None or parse(claimed).engine != "vllm":
        return None
    kind = CudaRace if runner == "v1" else GumbelContract
    return without_drafter(claimed) if isinstance(contract(claimed), kind) else None


def without_drafter(contract_id: str) -> str:
    """The contract's id with no word of speculation."""
    name = parse(contract_id)
    options = {key: value for key, value in name.options.items() if key not in {"ngram", "drafts", "drafter"}}
    return render(replace(name, options=options))


def _ngram_bets(base: str, pieces: Sequence[Piece]) -> Iterator[Bet]:
    seen = set[bytes]()
    texts = [each.sample.sequence for each in pieces]
    for drafter in DRAFTERS:
        plans = [plan(t.prompt_token_ids, t.output_token_ids, drafter, len(t.output_token_ids)) for t in texts]
        steps = b"".join(each.drafts.tobytes() + each.draws.tobytes() for each in plans)
        if steps not in seen:
            seen.add(steps)
            yield bet(with_drafter(base, drafter), 0, pieces)


def with_drafter(base: str, drafter: NgramDrafter) -> str:
    """A contract id with a drafter added."""
    name = parse(base)
    spelled = {"ngram": f"{drafter.shortest}-{drafter.longest}", "drafts": str(drafter.count)}
    return render(ContractName(name.engine, name.version, name.runner, {**name.options, **spelled}))


def _consistency(base: str, each: Piece) -> Consistency:
    rules, sample = contract(base), each.sample
    assert isinstance(rules, GumbelContract)
    return consistency(
        each.logits, each.claimed, seed=seed_of(rules, each), contract=rules,
        positions=rules.positions(len(sample.sequence.prompt_token_ids), len(each.logits)),
        params=clamp_temperature(sample.params, rules.lowest_temperature),
    )  # fmt: skip


def _proposed(standing: Sequence[Consistency]) -> float:
    """Nats for "the tokens that miss the race were proposed", from how many of them V2's rules explain."""
    missed = [~one.plain.exact_match for one in standing]
    explained = np.concatenate([one.explained[rows] for one, rows in zip(standing, missed, strict=True)])
    chances = np.concatenate([one.chance[rows] for one, rows in zip(standing, missed, strict=True)])
    return ratio(explained, chances)


def _drawn_as_drafts(base: str, pieces: Sequence[Piece]) -> float:
    """Nats for "the tokens that miss the race are a drafter's draws", at the best place where drafts are drawn."""
    steps = _DRAFT_STEPS.get(era(parse(base).version))
    if steps is None:
        return -np.inf
    standing = [_consistency(base, each) for each in pieces]
    return max(_at_step(base, step, pieces, standing) for step in steps)


def _at_step(base: str, step: int, pieces: Sequence[Piece], standing: Sequence[Consistency]) -> float:
    rules, match, chances = contract(base), [], []
    for each, one in zip(pieces, standing, strict=True):
        missed = ~one.plain.exact_match
        positions = rules.positions(len(each.sample.sequence.prompt_token_ids), len(each.logits))
        if missed.any():
            drawn = score(
                each.logits[missed], each.claimed[missed], seed=seed_of(rules, each) ^ (step << 32),
                positions=positions[missed] + _DRAFT_PLACE, params=each.sample.params, contract=rules,
            )  # fmt: skip
            match.append(drawn.exact_match)
            chances.append(drawn.prob)
    return ratio(np.concatenate(match), np.concatenate(chances)) if match else 0.0
