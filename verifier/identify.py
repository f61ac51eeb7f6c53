"""Which sampler made an output: a few hundred tokens of it under every contract, from one forward pass.

Each contract is a bet against "drawn without this seed" (`lattice.evidence`). Its noise owes nothing to the text, so
under that hypothesis each bet's mean is 1, whatever model or temperature the provider really used: none of C contracts
reaches THRESHOLD = ln C + SURENESS but with probability e^−SURENESS. All are tried on PROBE tokens, and those with a
chance left on the rest. Greedy decoding uses no noise, so its bet is no such thing: it must match nearly always.

The contract that a provider claims, if any, is tried first and keeps its name where another one fits only as well.
Where the best one matches less than TIDY, speculation is looked for (`identify_speculation`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from verifier import bets
from verifier.bets import PROBE, SURENESS, V1, V2, Answer, Identification, Piece, Ranked, Sample, bet, piece, probe
from verifier.identify_speculation import with_speculation, without_drafter
from verifier.processors import History, processed
from verifier.replay import Claim, Reference
from verifier.samplers import candidates
from verifier.sequences import TokenSequence

__all__ = ["PROBE", "Answer", "Identification", "Sample", "identify", "identify_claims", "piece", "rank"]

LIMIT = 300
"""Tokens that are read."""
CERTAIN = 60.0
"""Nats beyond which no other contract can be the one."""
_GREEDY_MATCH = 0.9
_CLEAN = 0.93  # match rate from which on no other contract needs to be looked for
TIDY = 0.96
"""The same, for speculation: of a drafter's proposals most would have been drawn anyway."""
_UNUSUAL = 4.0  # nats
_LEFT_AFTER_PROBE, _HOPELESS = 6, -3.0  # the best this many stay, unless they have lost as many nats
_COMMON = ("greedy", V1, *V2[:2])
_SHIFTED = ((V1, 1), (V1, 2), *((name, shift) for name in V2[:2] for shift in (-1, 1)))


def identify_claims(
    reference: Reference, claims: Sequence[Claim], *, limit: int = LIMIT, claimed: str | None = None
) -> Identification:
    """Identify what made the claims' tokens, whatever contracts they name; give first choices (n > 1: i = 0) only."""
    return identify(reference, [Sample(c.sequence, c.seed, 0, c.params) for c in claims], limit=limit, claimed=claimed)


def identify(
    reference: Reference, answers: Iterable[Answer], *, limit: int = LIMIT, claimed: str | None = None,
    exhaustive: bool = False,
) -> Identification:  # fmt: skip
    """Identify what made answers of one stream, from up to `limit` of their tokens; the rest as for `rank`."""
    usable = [answer for answer in answers if answer.sequence.output_token_ids]
    seeded = [answer for answer in usable if answer.seed is not None or answer.params.is_greedy]
    if not seeded:
        return Identification(None, "no_seed" if usable else "no_tokens", 0)
    pieces = [*pieces_of(reference, cut_down(seeded, limit))]
    return rank(pieces, reference.width, claimed=claimed, exhaustive=exhaustive)


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


def pieces_of(reference: Reference, samples: Sequence[Sample]) -> Iterable[Piece]:
    parts: dict[int, list[NDArray[np.float32]]] = {number: [] for number in range(len(samples))}
    for rows in reference.logits([sample.sequence for sample in samples]):
        parts[rows.sequence].append(rows.logits.numpy())
    for number, sample in enumerate(samples):
        prompt, output = sample.sequence.prompt_token_ids, sample.sequence.output_token_ids
        history = History(prompt, output, reference.end_token_ids)
        yield piece(processed(np.concatenate(parts[number]), 0, history, sample.params), sample)


def rank(
    pieces: Sequence[Piece], width: int, *, claimed: str | None = None, exhaustive: bool = False
) -> Identification:
    """Identify from pieces whose logits are `width` wide. Pure.

    The `claimed` contract and those in common use go first; if one of them explains the tokens beyond doubt, or the
    claimed one cleanly, the others are tried, and ranked, only where `exhaustive` asks for it.
    """
    tokens = sum(len(each.logits) for each in pieces)
    if all(each.sample.params.is_greedy for each in pieces):
        best = bet("greedy", 0, pieces).ranked()
        return _named([best], tokens, 1, claimed)
    trials = _trials(width, claimed)
    usual = [*_COMMON, *([claimed, without_drafter(claimed)] if claimed else [])]
    common = [trial for trial in trials if trial[0] in usual and not trial[1]]
    rare = [trial for trial in trials if trial not in common]
    ranking = _ranking(common, pieces, tokens, claimed)
    clean = ranking[0].contract == claimed and ranking[0].match_rate >= _CLEAN
    if exhaustive or not (clean or ranking[0].evidence >= CERTAIN):
        ranking = _sorted([*ranking, *_ranking(rare, pieces, tokens, claimed)], claimed)
    elif ranking[0].contract.startswith(V1) and not clean:
        # the GPU classes differ on few tokens
        twins = [trial for trial in rare if trial[0].startswith(f"{V1}:gpu=")]
        ranking = _sorted([*ranking, *_ranking(twins, pieces, tokens, claimed)], claimed)
    found = _named(ranking, tokens, len(trials), claimed)
    return found if ranking[0].match_rate >= TIDY else with_speculation(found, pieces, len(trials), claimed)


def _trials(width: int, claimed: str | None) -> list[tuple[str, int]]:
    named = [*([claimed, without_drafter(claimed)] if claimed else []), *candidates(width)]
    return [*dict.fromkeys([*((name, 0) for name in named), *_SHIFTED])]


def _ranking(
    trials: Sequence[tuple[str, int]], pieces: Sequence[Piece], tokens: int, claimed: str | None
) -> list[Ranked]:
    """All on the first PROBE tokens, the claimed one and the best few on all of them."""
    probes = probe(pieces)
    first = _sorted([bet(*trial, probes).ranked() for trial in trials], claimed)
    best = [r for r in first[:_LEFT_AFTER_PROBE] if r.evidence > _HOPELESS]
    left = [r for r in first if r.tokens < tokens and (r in best or (r.contract == claimed and not r.shift))]
    full = [bet(r.contract, r.shift, pieces).ranked() for r in left]
    return _sorted(full, claimed) + [r for r in first if r not in left]


def _sorted(ranking: Sequence[Ranked], claimed: str | None) -> list[Ranked]:
    """The most evidence first, of the most tokens first; what differs on few tokens from the usual must earn it."""

    def worth(r: Ranked) -> float:
        if r.contract == claimed and not r.shift:
            return r.evidence + SURENESS
        return r.evidence - (_UNUSUAL if ":gpu=" in r.contract else 0.0)

    return sorted(ranking, key=lambda r: (-r.tokens, -worth(r)))


def _named(ranking: list[Ranked], tokens: int, tried: int, claimed: str | None) -> Identification:
    best = ranking[0]
    needed = _GREEDY_MATCH if best.contract == "greedy" else 0.0 if best.contract == claimed else bets.IN_STEP
    if best.evidence >= np.log(tried) + SURENESS and best.match_rate >= needed:
        return Identification(best.contract, None, tokens, ranking)
    return Identification(None, "no_contract_fits", tokens, ranking)
