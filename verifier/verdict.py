"""The verdict on a stream: one word, and all that is needed to doubt it. Pure.

    deviates      the e-value reached 1/α: a stream within its band does so with probability at most α, ever
    consistent    it did not, and these tokens, of FEWEST_REQUESTS or more, would have shown the faults of RULED_OUT
                  with probability POWER
    inconclusive  neither: too few tokens or requests, or evidence that is still growing
    unsupported   the sampler contract is not identified, so only seed-free evidence counts and there is not enough;
                  or no answer could be replayed at all

No verdict says that a provider is honest, or how probably. `consistent` says what was not found and how large it would
have to be to be found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from verifier.band import HIGHEST_BOUND, Band
from verifier.detectors import DETECTORS, NAMES, SEED_FREE, in_units
from verifier.drift import Drift
from verifier.evidence import Evidence, Total, confidence_sequence, log_start_prior
from verifier.faults import ANSWER_TOKENS, FAULTS, growth, nearest, power, price, tokens_for

RULED_OUT = ("4-bit weights", "fp8 weights")
POWER = 0.95
FEWEST_REQUESTS = 5
NOT_FOLLOWED, NOISE_LOST = "sampler_not_followed", "noise_lost"
"""Reasons why seeded detectors set an answer, or its end, aside."""
LARGEST_SET_ASIDE = 0.1
"""Share of the requests whose answers follow no noise to their end, and of the tokens that the text leaves open
(honest: 0.0003): a cheat may hide in them."""
INTERVAL_ALPHA = 0.05


@dataclass(frozen=True)
class Effect:
    """One detector's mean beside what is tolerated, in its unit.

    `low` and `high` bound the mean at all times at once (95 %), tokens weighed down by the design effect. `log_e` is
    the detector's evidence alone.
    """

    detector: str
    unit: str
    mean: float
    low: float
    high: float
    honest: float
    tolerated: float
    tokens: int
    log_e: float


@dataclass(frozen=True)
class FaultPower:
    """How probably the tokens so far would have shown a named fault, and how many tokens show it nine times in ten."""

    fault: str
    power: float
    tokens_for_90_percent: int | None
    source: str


@dataclass(frozen=True)
class Verdict:
    """What is known of one stream.

    Args:
        word: consistent, deviates, inconclusive or unsupported.
        reasons: codes, the weightiest first; see docs/verdicts.md.
        log_e: ln of the highest e-value so far; `e_value` is capped at 1e300.
        p_value: 1 / e-value, valid at any time of looking.
        decided_at: token at which `deviates` was reached.
        tokens, requests: used; skipped: requests not used, or for seed-free evidence only, by reason.
        tokens_to_decision: more tokens until `deviates` if the rates stay as they are; None where they lie in the band.
        hint: nearest named explanation of a deviation; not part of the verdict.
    """

    word: str
    reasons: tuple[str, ...]
    alpha: float
    log_e: float
    e_value: float
    p_value: float
    decided_at: int | None
    tokens: int
    requests: int
    skipped: Mapping[str, int]
    effects: tuple[Effect, ...]
    power: tuple[FaultPower, ...]
    tokens_to_decision: int | None
    hint: str | None
    assumptions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def judge(
    evidence: Evidence,
    band: Band,
    *,
    identified: bool,
    unidentified_reason: str = "sampler_unknown",
    skipped: Mapping[str, int] | None = None,
    prompts_differ: int = 0,
    drift: Drift | None = None,
    retokenized: bool = False,
    ambiguous_tokens: int = 0,
) -> Verdict:
    """The verdict on a stream.

    Args:
        evidence: of all its audits.
        band: the one that the evidence was gathered with.
        identified: the stream's sampler contract is known to be the provider's; else seeded detectors accuse no one.
        unidentified_reason: code given with `unsupported`, e.g. ``seed_ignored``, ``sampler_changed``.
        skipped: requests that were not used, or for seed-free evidence only, by reason code.
        prompts_differ: used requests whose prompt tokens were not those of the claimed messages.
        drift: the stream's CUSUM, if it is watched.
        retokenized: token ids were found from the text, not given by the provider.
        ambiguous_tokens: judged by no detector, as the text does not tell which they are.
    """
    skipped = dict(skipped or {})
    total = evidence.all if identified else evidence.seed_free
    used = tuple(name for name in NAMES if evidence.counts[name] and (identified or name in SEED_FREE))
    powers = tuple(_fault_powers(evidence, band, used))
    hidden = ambiguous_tokens > LARGEST_SET_ASIDE * (evidence.tokens + ambiguous_tokens)
    word, reasons = _word(evidence, total, identified, unidentified_reason, skipped, powers, hidden)
    effects = tuple(_effect(name, evidence, band) for name in NAMES if evidence.counts[name])
    if word == "deviates":
        reasons += tuple(e.detector for e in sorted(effects, key=lambda e: -e.log_e) if _speaks(e, used, evidence))
    if prompts_differ and "prompt_tokens_differ" not in reasons:
        reasons += ("prompt_tokens_differ",)
    if drift is not None and drift.alarm_at is not None:
        reasons += ("drift_alarm",)
    return Verdict(
        word=word,
        reasons=reasons,
        alpha=evidence.alpha,
        log_e=total.peak,
        e_value=math.exp(min(total.peak, 690.0)),
        p_value=math.exp(-total.peak),
        decided_at=total.decided_at,
        tokens=evidence.tokens,
        requests=evidence.sequences,
        skipped=skipped,
        effects=effects,
        power=powers,
        tokens_to_decision=None if word == "deviates" else _tokens_to_decision(evidence, band, used),
        hint=_hint(evidence, band, prompts_differ) if word == "deviates" else None,
        assumptions=_assumptions(band, identified, retokenized, evidence),
    )


def _word(
    evidence: Evidence, total: Total, identified: bool, why_not: str, skipped: Mapping[str, int],
    powers: tuple[FaultPower, ...], hidden: bool,
) -> tuple[str, tuple[str, ...]]:  # fmt: skip
    if total.decided_at is not None:
        return "deviates", () if identified else ("seed_free_evidence", why_not)
    if not evidence.tokens:
        by_count = tuple(sorted(skipped, key=lambda reason: (-skipped[reason], reason)))
        return ("unsupported", by_count) if skipped else ("inconclusive", ("no_data",))
    if not identified:
        return "unsupported", (why_not,)
    set_aside = skipped.get(NOT_FOLLOWED, 0) + skipped.get(NOISE_LOST, 0)
    lacking = _lacking(evidence, total, powers, hidden or set_aside > LARGEST_SET_ASIDE * evidence.sequences)
    return ("inconclusive", (lacking,)) if lacking else ("consistent", ("within_band",))


def _lacking(evidence: Evidence, total: Total, powers: tuple[FaultPower, ...], may_hide: bool) -> str | None:
    """Code of what `consistent` still lacks."""
    if total.log_e > -math.log(evidence.alpha) / 2:
        return "evidence_growing"
    if evidence.sequences < FEWEST_REQUESTS:
        return "too_few_requests"
    if may_hide:
        return "too_many_set_aside"
    weak = any(entry.power < POWER for entry in powers if entry.fault in RULED_OUT)
    return "too_few_tokens" if weak else None


def _speaks(effect: Effect, used: tuple[str, ...], evidence: Evidence) -> bool:
    """The detector alone, at its own level, has something to say."""
    return effect.detector in used and effect.log_e > -math.log(evidence.alpha) / 2


def _effect(name: str, evidence: Evidence, band: Band) -> Effect:
    detector = next(detector for detector in DETECTORS if detector.name == name)
    count, width = evidence.counts[name], band.design_effect(name, _answer_tokens(evidence))
    ends = confidence_sequence(evidence.sums[name] / width, count / width, alpha=INTERVAL_ALPHA)
    low, high = sorted(in_units(name, end, band.cuts) for end in ends)
    return Effect(
        detector=name,
        unit=detector.unit,
        mean=in_units(name, evidence.sums[name] / count, band.cuts),
        low=low,
        high=high,
        honest=in_units(name, band.honest[name], band.cuts),
        tolerated=in_units(name, evidence.bounds[name] / count, band.cuts),
        tokens=count,
        log_e=evidence.log_e_of(name),
    )


def _fault_powers(evidence: Evidence, band: Band, used: tuple[str, ...]) -> list[FaultPower]:
    """Of every named fault; before the first token, as if all detectors of the band were used.

    Tokens that only seed-free detectors could judge say little of faults, and are not counted beside the others.
    """
    judged = max((evidence.counts[name] for name in used), default=0)
    if any(name not in SEED_FREE for name in used):
        judged = evidence.counts["mismatch"]
    known: dict[str, Any] = {
        "alpha": evidence.alpha,
        "detectors": used or tuple(name for name in NAMES if band.typical[name] < HIGHEST_BOUND),
        "answer_tokens": _answer_tokens(evidence),
    }
    return [
        FaultPower(
            fault=fault.name,
            power=power(fault, band, judged, **known),
            tokens_for_90_percent=tokens_for(fault, band, **known),
            source=fault.source,
        )
        for fault in FAULTS
    ]


def _answer_tokens(evidence: Evidence) -> float:
    return evidence.tokens / evidence.sequences if evidence.sequences else ANSWER_TOKENS


def _tokens_to_decision(evidence: Evidence, band: Band, used: tuple[str, ...]) -> int | None:
    """More tokens until the quickest bet reaches 1/α alone, were its detector's mean to stay as seen."""
    waits = []
    for name in used:
        count = evidence.counts[name]
        mean = evidence.sums[name] / count
        tolerated = band.bound_on_average(name, mean, _answer_tokens(evidence))
        for k, wealth in enumerate(evidence.log_wealth[name]):
            gain = growth(mean, tolerated, k) * count / evidence.tokens
            if gain > 0:
                waits.append((price(name, k, evidence.alpha) + log_start_prior(0) - wealth) / gain)
    return max(1, math.ceil(min(waits))) if waits else None


def _hint(evidence: Evidence, band: Band, prompts_differ: int) -> str:
    if prompts_differ:
        return "another chat template or a hidden system prompt: the provider's prompt tokens differ"
    means = {name: evidence.sums[name] / evidence.counts[name] for name in NAMES if evidence.counts[name]}
    return f"nearest named fault: {' or '.join(nearest(means, band))}"


def _assumptions(band: Band, identified: bool, retokenized: bool, evidence: Evidence) -> tuple[str, ...]:
    scope = ", ".join(f"{key} {value}" for key, value in band.scope.items())
    size = f"{band.sequences} honest sequences, {band.tokens} tokens"
    unused = [name for name in NAMES if evidence.tokens and not evidence.counts[name]]
    lines = [
        f"band calibrated on {size}" + (f" ({scope})" if scope else "")
        if band.calibrated
        else "uncalibrated: the shipped conservative band is used; run seedproof calibrate",
        "given its past, no honest token exceeds the band on average; sequences depend as in calibration",
        "sampler contract identified" if identified else "sampler contract not identified: seed-free detectors only",
    ]
    if retokenized:
        alike = not band.calibrated or band.scope.get("token_source") == "retokenized"
        calibration = "" if alike else "; the band was calibrated on given ones"
        lines.append(f"some token ids were found from the text, not given by the provider{calibration}")
    if unused:
        lines.append(f"not judged, as sampling differs from the calibration's: {', '.join(unused)}")
    return tuple(lines)
