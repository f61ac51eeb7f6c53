"""Which sampler made an output: a few hundred tokens of it under every contract, from one forward pass.

Each contract is a bet against "drawn without this seed" (`lattice.evidence`). Its noise owes nothing to the text, so
under that hypothesis each bet's mean is 1, whatever model or temperature the provider really used: none of C contracts
reaches THRESHOLD = ln C + SURENESS but with probability e^−SURENESS. All are tried on PROBE tokens, and those with a
chance left on the rest. Greedy decoding uses no noise, so its bet is no such thing: it must match nearly always.

Where none fits, speculation is looked for (`speculation`): ngram drafters under V1, the consistency rule under V2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from verifier.lattice import evidence
from verifier.masses import masses
from verifier.processors import History, processed
from verifier.replay import Claim, Reference
from verifier.samplers import candidates, contract, stands_for
from verifier.samplers.contract import Draws, GumbelContract, SamplerContract
from verifier.samplers.greedy import GREEDY
from verifier.samplers.torch_cuda import CudaRace
from verifier.sampling_params import SamplingParams
from verifier.scoring import TokenScores, clamp_temperature
from verifier.sequences import TokenSequence
from verifier.speculation import DRAFTERS, NgramDrafter, consistent_scores, ngram_scores, plan

LIMIT = 300
"""Tokens that are read."""
PROBE = 64
"""Tokens on which all contracts are tried."""
SURENESS = 9.0
"""Nats; one stream in 8,000 that ignores its seed is given a contract."""
CERTAIN = 60.0
"""Nats beyond which no other contract can be the one."""
_GREEDY_MATCH = 0.9
_IN_STEP = 0.6  # lowest match rate of a contract that is followed: heavy quantization leaves 0.7
_LEAST_CHANCE = 1e-6
_CLEAN = 0.93  # match rate from which on nothing else needs to be looked for
_UNUSUAL = 4.0  # nats
_BEGUN = 4.0  # nats
_HEAD = 12  # tokens of an answer that a speculating V1 draws in step, before its first draft
_LEFT_AFTER_PROBE, _HOPELESS = 6, -3.0  # the best this many stay, unless they have lost as many nats
_V1, _V2 = "vllm@0.26.0/v1", ("vllm@0.26.0/v2", "vllm@0.33.0/v2", "vllm@0.23.0/v2", "vllm@0.21.0/v2")
_COMMON = ("greedy", _V1, *_V2[:2])
_SHIFTED = ((_V1, 1), (_V1, 2), *((name, shift) for name in _V2[:2] for shift in (-1, 1)))


class Answer(Protocol):
    """An answer of unknown sampler, e.g. a Recording: `seed` is the request's, None where there was none."""

    @property
    def sequence(self) -> TokenSequence: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def choice(self) -> int: ...
    @property
    def params(self) -> SamplingParams: ...


@dataclass(frozen=True)
class Sample:
    """An answer as `identify` takes it."""

    sequence: TokenSequence
    seed: int | None
    choice: int
    params: SamplingParams


@dataclass(frozen=True)
class Ranked:
    """One contract and what speaks for it.

    Attributes:
        evidence: nats for "drawn by this contract" against "drawn without the seed", of `tokens` tokens.
        shift: draws by which the stream runs ahead of the contract's own positions.
        covers: the engines and versions that it stands for.
        speculation: the drafter under which it was replayed.
    """

    contract: str
    evidence: float
    match_rate: float
    tokens: int
    shift: int = 0
    covers: str | None = None
    speculation: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary without the fields that say nothing."""
        return {name: value for name, value in asdict(self).items() if value is not None and (name != "shift" or value)}


@dataclass(frozen=True)
class Identification:
    """What an output was made by.

    Attributes:
        contract: id of the contract that explains it, or None.
        reason: why there is none: `no_seed`, `no_tokens`, `no_contract_fits` (seed ignored, unknown engine) or
            `speculative_decoding`.
        tokens: how many were read.
        ranking: all contracts, the best first.
    """

    contract: str | None
    reason: str | None
    tokens: int
    ranking: list[Ranked] = field(default_factory=list)

    @property
    def evidence(self) -> float:
        """Nats that speak for the best contract."""
        return self.ranking[0].evidence if self.ranking else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary; the contract is "none" where there is none."""
        return {
            "contract": self.contract or "none", "reason": self.reason, "tokens": self.tokens,
            "ranking": [entry.to_dict() for entry in self.ranking],
        }  # fmt: skip


def identify_claims(reference: Reference, claims: Sequence[Claim], *, limit: int = LIMIT) -> Identification:
    """Identify what made the claims' tokens, whatever contracts they name; give first choices (n > 1: i = 0) only."""
    return identify(reference, [Sample(c.sequence, c.seed, 0, c.params) for c in claims], limit=limit)


def identify(
    reference: Reference, answers: Iterable[Answer], *, limit: int = LIMIT, exhaustive: bool = False
) -> Identification:
    """Identify what made answers of one stream, from up to `limit` of their tokens; `exhaustive` as for `rank`."""
    usable = [answer for answer in answers if answer.sequence.output_token_ids]
    seeded = [answer for answer in usable if answer.seed is not None or answer.params.is_greedy]
    if not seeded:
        return Identification(None, "no_seed" if usable else "no_tokens", 0)
    return rank([*_pieces(reference, cut_down(seeded, limit))], reference.width, exhaustive=exhaustive)


def cut_down(answers: Sequence[Answer], limit: int) -> list[Sample]:
    """The beginnings of as many answers as share `limit` tokens with at least PROBE each."""
    share = max(PROBE, limit // len(answers))
    cut, left = [], limit
    for answer in answers:
        output = answer.sequence.output_token_ids[: min(share, left)]
        if output:
            sequence = TokenSequence(answer.sequence.prompt_token_ids, output)
            cut.append(Sample(sequence, answer.seed, answer.choice, answer.params))
        left -= len(output)
    return cut


@dataclass(frozen=True)
class Piece:
    """The beginning of an answer with its processed logits [R, V] and what all contracts share of them."""

    sample: Sample
    logits: NDArray[np.float32]
    log_mass: NDArray[np.float64]
    logprob: NDArray[np.float64]

    def head(self, count: int) -> Piece:
        """The first `count` tokens of it."""
        return Piece(self.sample, self.logits[:count], self.log_mass[:count], self.logprob[:count])

    @property
    def claimed(self) -> NDArray[np.int64]:
        return np.asarray(self.sample.sequence.output_token_ids[: len(self.logits)], np.int64)


def _pieces(reference: Reference, samples: Sequence[Sample]) -> Iterable[Piece]:
    parts: dict[int, list[NDArray[np.float32]]] = {number: [] for number in range(len(samples))}
    for rows in reference.logits([sample.sequence for sample in samples]):
        parts[rows.sequence].append(rows.logits.numpy())
    for number, sample in enumerate(samples):
        prompt, output = sample.sequence.prompt_token_ids, sample.sequence.output_token_ids
        history = History(prompt, output, reference.end_token_ids)
        yield piece(processed(np.concatenate(parts[number]), 0, history, sample.params), sample)


def piece(logits: NDArray[np.float32], sample: Sample) -> Piece:
    """A piece of processed logits [R, V] of the first R output tokens."""
    claimed = np.asarray(sample.sequence.output_token_ids[: len(logits)], np.int64)
    heat = 1.0 if sample.params.is_greedy else sample.params.temperature
    log_mass = masses(logits, heat, claimed).log_mass
    logprob = logits[np.arange(len(logits)), claimed] / heat - log_mass
    return Piece(sample, logits, log_mass, logprob)


@dataclass(frozen=True)
class _Bet:
    contract_id: str
    match: NDArray[np.bool_]
    chances: NDArray[Any]
    shift: int = 0
    speculation: str | None = None

    def ranked(self) -> Ranked:
        rate = float(self.match.mean())
        ratio = evidence(self.match, np.clip(self.chances.astype(np.float64), _LEAST_CHANCE, 1.0))
        covers = stands_for(self.contract_id)
        return Ranked(self.contract_id, ratio, rate, len(self.match), self.shift, covers, self.speculation)


def rank(pieces: Sequence[Piece], width: int, *, exhaustive: bool = False) -> Identification:
    """Identify from pieces whose logits are `width` wide. Pure.

    The contracts in common use go first; if one of them explains the tokens beyond doubt, the others are tried, and
    ranked, only where `exhaustive` asks for it.
    """
    tokens = sum(len(each.logits) for each in pieces)
    if all(each.sample.params.is_greedy for each in pieces):
        best = _bet("greedy", 0, pieces).ranked()
        return _named([best], tokens, 1)
    trials = [*((name, 0) for name in candidates(width)), *_SHIFTED]
    common = [trial for trial in trials if trial[0] in _COMMON and not trial[1]]
    rare = [trial for trial in trials if trial not in common]
    ranking = _ranking(common, pieces, tokens)
    if exhaustive or ranking[0].evidence < CERTAIN:
        ranking = _sorted([*ranking, *_ranking(rare, pieces, tokens)])
    elif ranking[0].contract.startswith(_V1):
        # the GPU classes differ on few tokens
        twins = [trial for trial in rare if trial[0].startswith(f"{_V1}:gpu=")]
        ranking = _sorted([*ranking, *_ranking(twins, pieces, tokens)])
    found = _named(ranking, tokens, len(trials))
    return found if ranking[0].match_rate >= _CLEAN else _speculated(found, pieces, len(trials))


def _ranking(trials: Sequence[tuple[str, int]], pieces: Sequence[Piece], tokens: int) -> list[Ranked]:
    """All on the first PROBE tokens, the best few on all of them."""
    probes = [each.head(-(-PROBE // len(pieces))) for each in pieces]
    first = _sorted([_bet(*trial, probes).ranked() for trial in trials])
    left = [r for r in first[:_LEFT_AFTER_PROBE] if r.tokens < tokens and r.evidence > _HOPELESS]
    full = [_bet(r.contract, r.shift, pieces).ranked() for r in left]
    return _sorted(full) + [r for r in first if r not in left]


def _sorted(ranking: Sequence[Ranked]) -> list[Ranked]:
    """The most evidence first, of the most tokens first; what differs on few tokens from the usual must earn it."""
    unusual = {True: _UNUSUAL, False: 0.0}
    return sorted(ranking, key=lambda r: (-r.tokens, unusual[":gpu=" in r.contract] - r.evidence))


def _named(ranking: list[Ranked], tokens: int, tried: int) -> Identification:
    best = ranking[0]
    needed = _GREEDY_MATCH if best.contract == "greedy" else _IN_STEP
    if best.evidence >= np.log(tried) + SURENESS and best.match_rate >= needed:
        return Identification(best.contract, None, tokens, ranking)
    return Identification(None, "no_contract_fits", tokens, ranking)


def _bet(contract_id: str, shift: int, pieces: Sequence[Piece]) -> _Bet:
    rules = contract(contract_id)
    draws = [_draws(rules, shift, each) for each in pieces]
    match = np.concatenate([own.winners == each.claimed for own, each in zip(draws, pieces, strict=True)])
    chances = np.concatenate([_chances(rules, own, each) for own, each in zip(draws, pieces, strict=True)])
    return _Bet(contract_id, match, chances, shift)


def _draws(rules: SamplerContract, shift: int, each: Piece) -> Draws:
    sample = each.sample
    params = clamp_temperature(sample.params, rules.lowest_temperature)
    positions = rules.positions(len(sample.sequence.prompt_token_ids), len(each.logits)) + shift
    seed = rules.choice_seed(sample.seed or 0, sample.choice)
    sampler = GREEDY if params.is_greedy else rules
    return sampler.draw(each.logits, each.log_mass, each.claimed, seed=seed, positions=positions, params=params)


def _chances(rules: SamplerContract, draws: Draws, each: Piece) -> NDArray[np.float64]:
    if rules.id == "greedy":
        return np.exp(each.logprob)
    # `auto` tries two noises on every token
    ways = 2.0 if getattr(rules, "index", None) == "auto" else 1.0
    return np.minimum(ways * draws.prob, 1.0)


def _speculated(found: Identification, pieces: Sequence[Piece], tried: int) -> Identification:
    """The same, or what speculation explains better; its contracts are ranked but not named, for none replays it alone.

    V1's answers begin in step, before their first draft; so do those of quantized models, which stay so.
    """
    needed = np.log(tried + len(DRAFTERS) + len(_V2)) + SURENESS
    known = found.evidence if found.contract else 0.0
    begun = _bet(_V1, 0, [each.head(_HEAD) for each in pieces]).ranked().evidence >= _BEGUN
    bets = [*(_ngram_bets(pieces) if begun else ()), *(() if found.contract else _consistent_bets(pieces))]
    best = max((bet.ranked() for bet in bets), key=lambda r: r.evidence, default=None)
    if best and best.evidence >= known + needed and best.match_rate >= _IN_STEP:
        return Identification(None, "speculative_decoding", found.tokens, [best, *found.ranking])
    return found


def _ngram_bets(pieces: Sequence[Piece]) -> Iterable[_Bet]:
    seen = set[bytes]()
    for drafter in DRAFTERS:
        plans = [plan(s.prompt_token_ids, s.output_token_ids, drafter, len(s.output_token_ids)) for s in _texts(pieces)]
        steps = b"".join(each.drafts.tobytes() + each.draws.tobytes() for each in plans)
        if steps in seen:
            continue
        seen.add(steps)
        scores = TokenScores.join([_ngram(each, drafter) for each in pieces])
        name = f"ngram {drafter.shortest}-{drafter.longest}, {drafter.count} drafts"
        yield _Bet(_V1, scores.exact_match, scores.prob, 0, name)


def _consistent_bets(pieces: Sequence[Piece]) -> Iterable[_Bet]:
    probes = [each.head(-(-PROBE // len(pieces))) for each in pieces]
    for contract_id in _V2:
        if _consistent_bet(contract_id, probes).ranked().evidence > 0.0:
            yield _consistent_bet(contract_id, pieces)


def _consistent_bet(contract_id: str, pieces: Sequence[Piece]) -> _Bet:
    scores = TokenScores.join([_consistent(contract_id, each) for each in pieces])
    return _Bet(contract_id, scores.exact_match, scores.prob, 0, "any drafter")


def _texts(pieces: Sequence[Piece]) -> list[TokenSequence]:
    return [each.sample.sequence for each in pieces]


def _ngram(each: Piece, drafter: NgramDrafter) -> TokenScores:
    rules, sample = contract(_V1), each.sample
    assert isinstance(rules, CudaRace)
    return ngram_scores(
        each.logits, sample.sequence.prompt_token_ids, sample.sequence.output_token_ids,
        seed=rules.choice_seed(sample.seed or 0, sample.choice), params=sample.params, contract=rules, drafter=drafter,
    )  # fmt: skip


def _consistent(contract_id: str, each: Piece) -> TokenScores:
    rules, sample = contract(contract_id), each.sample
    assert isinstance(rules, GumbelContract)
    return consistent_scores(
        each.logits, each.claimed, seed=rules.choice_seed(sample.seed or 0, sample.choice),
        positions=rules.positions(len(sample.sequence.prompt_token_ids), len(each.logits)),
        params=clamp_temperature(sample.params, rules.lowest_temperature), contract=rules,
    )  # fmt: skip
