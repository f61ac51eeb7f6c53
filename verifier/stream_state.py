"""Where a stream stands after each of its audits. Pure; its state is JSON, and replaying the audits gives it again.

An audit speaks with the seeded detectors only where it can: its prompt must be the one that the messages give, and its
tokens must follow the contract's noise (`verifier.linkage`), up to where they lose it. The rest speak with the
seed-free ones and are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier import linkage
from verifier.band import Band
from verifier.detectors import SEED_FREE, SequenceScores
from verifier.drift import Drift, watch
from verifier.evidence import Evidence, start
from verifier.linkage import LINKED
from verifier.scoring import TokenScores
from verifier.verdict import NOISE_LOST, NOT_FOLLOWED, Verdict, judge


@dataclass(frozen=True)
class AuditedAnswer:
    """What one audit brings to its stream.

    Args:
        scores: of the tokens that the text leaves no doubt of; None where there is `refusal`.
        prob: of these tokens under the filtered distribution.
        sampling: `verifier.band.distribution` of the request's parameters.
        refusal: code of why nothing could be scored.
        retokenized: the ids were found from the text.
        prompt_differs: the provider's prompt tokens are not those of the messages.
        other_sampler: another sampler than the configured one drew it (`verifier.stream_identity`).
        ambiguous_tokens: those that the text leaves open; they are in no score.
    """

    scores: SequenceScores | None
    prob: NDArray[np.float32]
    sampling: Mapping[str, float] | None = None
    refusal: str | None = None
    retokenized: bool = False
    prompt_differs: bool = False
    other_sampler: bool = False
    ambiguous_tokens: int = 0

    @classmethod
    def of(cls, scores: TokenScores, sampling: Mapping[str, float] | None) -> AuditedAnswer:
        """Of a recorded answer whose ids are all known."""
        fields = (scores.exact_match, scores.margin, scores.logprob, scores.entropy, scores.logit_rank)
        return cls(SequenceScores(*fields), scores.prob, sampling)


@dataclass(frozen=True)
class StreamState:
    """All that is kept of a stream's past.

    Args:
        evidence, drift: of the audits used.
        link: nats for the noise being ours, kept within [−LINKED, 2·LINKED] so that a change of sampler soon shows.
        drawn: answers in which noise had a say.
        ever_linked: `link` once reached LINKED.
        convicted: 1/α was reached while the stream was linked; a later change of sampler does not undo it.
        skipped: audits that gave no or only seed-free evidence, by reason.
        prompts_differ: answers whose prompt tokens were not those of the messages.
        retokenized: some ids were found from the text.
        ambiguous_tokens: those that no detector judged, as the text leaves them open.
    """

    evidence: Evidence = field(default_factory=start)
    drift: Drift = field(default_factory=watch)
    link: float = 0.0
    drawn: int = 0
    ever_linked: bool = False
    convicted: bool = False
    skipped: Mapping[str, int] = field(default_factory=dict)
    prompts_differ: int = 0
    retokenized: bool = False
    ambiguous_tokens: int = 0

    @classmethod
    def begun(cls, alpha: float) -> StreamState:
        """A stream of which nothing has been seen; a stream within its band deviates with probability at most α."""
        return cls(evidence=start(alpha), drift=watch(alpha))

    def after(self, audit: AuditedAnswer, band: Band) -> StreamState:
        """With one more audit; `band` is the same throughout."""
        state = replace(self, ambiguous_tokens=self.ambiguous_tokens + audit.ambiguous_tokens)
        if audit.scores is None or not len(audit.scores.entropy):
            return state._skipping(audit.refusal or "every_token_ambiguous")
        state = replace(state, retokenized=self.retokenized or audit.retokenized)
        detectors = band.applicable(audit.sampling)
        why_not = _why_not_seeded(audit)
        if why_not is not None:
            state = state._skipping(why_not)
            detectors = tuple(name for name in detectors if name in SEED_FREE)
        if audit.prompt_differs:
            state = replace(state, prompts_differ=state.prompts_differ + 1)
        else:
            state = state._linked_by(audit)
        followed = len(audit.prob)
        if why_not is None and linkage.is_drawn(audit.prob):
            followed = linkage.followed_tokens(audit.scores.exact_match, audit.prob)
            state = state if followed == len(audit.prob) else state._skipping(NOISE_LOST)
        evidence = state.evidence.update(audit.scores, band, detectors, followed=followed)
        return replace(
            state,
            evidence=evidence,
            drift=state.drift.update(audit.scores, band, detectors, followed=followed),
            convicted=state.convicted or (state.linked and evidence.all.decided_at is not None),
        )

    @property
    def linked(self) -> bool:
        """The tokens are known to follow the contract's noise, or no noise was needed."""
        return self.link >= LINKED or not (self.drawn or self.prompts_differ)

    def verdict(self, band: Band, identified: Mapping[str, Any] | None = None) -> Verdict:
        """The verdict now; `identified` is what the first answers said of their contract (`storage.models.Stream`)."""
        undecided = -LINKED < self.link < LINKED and self.drawn > 0 and self.evidence.all.decided_at is None
        return judge(
            self.evidence,
            band,
            identified=self.linked or self.convicted or undecided,
            unidentified_reason=self._why_unlinked(identified or {}),
            skipped=self.skipped,
            prompts_differ=self.prompts_differ,
            drift=self.drift,
            retokenized=self.retokenized,
            ambiguous_tokens=self.ambiguous_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamState:
        """What `to_dict` gave, also after JSON; nothing gives a fresh state."""
        if not values:
            return cls()
        parts = {"evidence": Evidence.from_dict(values["evidence"]), "drift": Drift.from_dict(values["drift"])}
        return cls(**{**values, **parts})

    def _skipping(self, reason: str) -> StreamState:
        return replace(self, skipped={**self.skipped, reason: self.skipped.get(reason, 0) + 1})

    def _linked_by(self, audit: AuditedAnswer) -> StreamState:
        assert audit.scores is not None
        if audit.other_sampler:
            return replace(self, link=-LINKED, drawn=self.drawn + 1)
        if not linkage.is_drawn(audit.prob):
            return self
        gained = float(linkage.gains(audit.scores.exact_match, audit.prob).sum())
        link = min(2 * LINKED, max(-LINKED, self.link + gained))
        return replace(self, link=link, drawn=self.drawn + 1, ever_linked=self.ever_linked or link >= LINKED)

    def _why_unlinked(self, identified: Mapping[str, Any]) -> str:
        if self.prompts_differ and not self.drawn:
            return "prompt_tokens_differ"
        found = str(identified.get("reason") or "sampler_unknown")
        return "sampler_changed" if self.ever_linked and found != "speculative_decoding" else found


def _why_not_seeded(audit: AuditedAnswer) -> str | None:
    assert audit.scores is not None
    if audit.prompt_differs:
        return "prompt_tokens_differ"
    if audit.other_sampler:
        return NOT_FOLLOWED
    if linkage.is_drawn(audit.prob) and not linkage.follows(audit.scores.exact_match, audit.prob):
        return NOT_FOLLOWED
    return None
