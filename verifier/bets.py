"""Bets on sampler contracts: how the tokens of some answers stand under one, from logits that all of them share. Pure.

A bet's evidence (`lattice.evidence`) speaks for "drawn by this contract" against "drawn without this seed"; its mean
under the latter is 1, whatever model or temperature the provider really used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from verifier.lattice import evidence
from verifier.masses import masses
from verifier.samplers import contract, stands_for
from verifier.samplers.contract import Draws, SamplerContract
from verifier.samplers.greedy import GREEDY
from verifier.sampling_params import SamplingParams
from verifier.scoring import clamp_temperature
from verifier.sequences import TokenSequence
from verifier.speculation import is_speculating, speculated

PROBE = 64
"""Tokens on which all contracts are tried."""
SURENESS = 9.0
"""Nats; one stream in 8,000 that ignores its seed is given a contract."""
IN_STEP = 0.6
"""Lowest match rate of a contract that is followed: heavy quantization leaves 0.7."""
_LEAST_CHANCE = 1e-6
V1, V2 = "vllm@0.26.0/v1", ("vllm@0.26.0/v2", "vllm@0.33.0/v2", "vllm@0.23.0/v2", "vllm@0.21.0/v2")


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
    """

    contract: str
    evidence: float
    match_rate: float
    tokens: int
    shift: int = 0
    covers: str | None = None

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


def piece(logits: NDArray[np.float32], sample: Sample) -> Piece:
    """A piece of processed logits [R, V] of the first R output tokens."""
    claimed = np.asarray(sample.sequence.output_token_ids[: len(logits)], np.int64)
    heat = 1.0 if sample.params.is_greedy else sample.params.temperature
    log_mass = masses(logits, heat, claimed).log_mass
    logprob = logits[np.arange(len(logits)), claimed] / heat - log_mass
    return Piece(sample, logits, log_mass, logprob)


def probe(pieces: Sequence[Piece]) -> list[Piece]:
    """The heads of all pieces that together hold about PROBE tokens."""
    return [each.head(-(-PROBE // len(pieces))) for each in pieces]


@dataclass(frozen=True)
class Bet:
    """Of each token: whether a contract draws it too, and with what chance it would without the seed."""

    contract_id: str
    match: NDArray[np.bool_]
    chances: NDArray[Any]
    shift: int = 0

    def ranked(self) -> Ranked:
        """What it came to."""
        rate, nats = float(self.match.mean()), ratio(self.match, self.chances)
        return Ranked(self.contract_id, nats, rate, len(self.match), self.shift, stands_for(self.contract_id))


def ratio(match: NDArray[np.bool_], chances: NDArray[Any]) -> float:
    """Nats of matches [n] of these chances, for "they follow the seed"."""
    return evidence(match, np.clip(chances.astype(np.float64), _LEAST_CHANCE, 1.0))


def bet(contract_id: str, shift: int, pieces: Sequence[Piece]) -> Bet:
    """How the pieces' tokens stand under a contract, with `shift` added to its positions."""
    rules = contract(contract_id)
    if is_speculating(rules):
        return _speculating_bet(rules, pieces)
    draws = [_draws(rules, shift, each) for each in pieces]
    match = np.concatenate([own.winners == each.claimed for own, each in zip(draws, pieces, strict=True)])
    chances = np.concatenate([_chances(rules, own, each) for own, each in zip(draws, pieces, strict=True)])
    return Bet(contract_id, match, chances, shift)


def _speculating_bet(rules: SamplerContract, pieces: Sequence[Piece]) -> Bet:
    scores = [
        speculated(
            each.logits, 0, each.sample.sequence.prompt_token_ids, each.sample.sequence.output_token_ids,
            seed=seed_of(rules, each), params=each.sample.params, contract=rules,
        )
        for each in pieces
    ]  # fmt: skip
    match, chances = (np.concatenate([getattr(one, name) for one in scores]) for name in ("exact_match", "prob"))
    return Bet(rules.id, match, chances)


def seed_of(rules: SamplerContract, each: Piece) -> int:
    """The seed that a piece's choice is drawn with."""
    return rules.choice_seed(each.sample.seed or 0, each.sample.choice)


def _draws(rules: SamplerContract, shift: int, each: Piece) -> Draws:
    sample = each.sample
    params = clamp_temperature(sample.params, rules.lowest_temperature)
    positions = rules.positions(len(sample.sequence.prompt_token_ids), len(each.logits)) + shift
    sampler = GREEDY if params.is_greedy else rules
    return sampler.draw(
        each.logits, each.log_mass, each.claimed, seed=seed_of(rules, each), positions=positions, params=params
    )


def _chances(rules: SamplerContract, draws: Draws, each: Piece) -> NDArray[np.float64]:
    if rules.id == "greedy":
        return np.exp(each.logprob)
    # `auto` tries two noises on every token
    ways = 2.0 if getattr(rules, "index", None) == "auto" else 1.0
    return np.minimum(ways * draws.prob, 1.0)
