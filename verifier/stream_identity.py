"""Which sampler a stream really follows: asked of its first answers, and of all that match less than honest ones do.

A contract that does not fit looks just like an ignored seed or a cheat. So before such answers are weighed, they are
asked which contract drew them (`identify`). The configured one: they are judged by it. The same engine with a drafter:
they are verified again by that. Anything else: they bring seed-free evidence only, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.audits import NewAudit, unpack_scores
from storage.models import Exchange
from verifier.audit import TrustedModel
from verifier.identify import LIMIT, TIDY, identify_claims
from verifier.identify_speculation import REASON, without_drafter
from verifier.questions import questions_of
from verifier.replay import Claim, Reference
from verifier.samplers import contract

DIFFERS = "sampler_differs"
KEPT = 5
"""Ranked contracts that a stream's record keeps."""


def is_suspicious(audits: Sequence[NewAudit]) -> bool:
    """Whether answers on the right prompt match less than an honest provider's do."""
    clear = [_matches(audit) for audit in audits if audit.scores is not None and not audit.notes.get("prompt_differs")]
    return matches_too_little(np.concatenate([np.zeros(0, np.bool_), *clear]))


def matches_too_little(exact_match: NDArray[np.bool_]) -> bool:
    """Whether tokens match less than an honest provider's do, by more than one token."""
    return int((~exact_match).sum()) > (1.0 - TIDY) * len(exact_match) + 1


def _matches(audit: NewAudit) -> NDArray[np.bool_]:
    arrays = {name: np.asarray(values) for name, values in unpack_scores(audit.scores or b"").items()}
    clear = arrays["ambiguous"] == 0
    matches: NDArray[np.bool_] = arrays["token_ids"][clear] == arrays["predicted_ids"][clear]
    return matches


def identity(exchanges: Sequence[Exchange], model: TrustedModel) -> Mapping[str, Any] | None:
    """What `storage.models.Stream.identified` holds, from exchanges of one stream; None where nothing can be asked.

    `reason` is None where the tokens follow the configured contract or the same engine's with another drafter, else the
    code that an unsupported verdict gives: `sampler_differs` where another contract explains the tokens, or
    `verifier.identify`'s own where none does.
    """
    claims = [claim for exchange in exchanges for claim in _claims(exchange, model)]
    return identity_of(model.reference, claims, contract(exchanges[0].sampler or "").id)


def identity_of(reference: Reference, claims: Sequence[Claim], configured: str) -> Mapping[str, Any] | None:
    """The same, from claims of first choices."""
    if not claims:
        return None
    found = identify_claims(reference, claims, limit=2 * LIMIT, claimed=configured)
    told = {**found.to_dict(), "ranking": [entry.to_dict() for entry in found.ranking[:KEPT]]}
    if found.contract is None:
        return told
    same = without_drafter(found.contract) == without_drafter(configured)
    return {**told, "reason": None if same else DIFFERS}


def _claims(exchange: Exchange, model: TrustedModel) -> list[Claim]:
    """The first choice's claim, where it was drawn by noise, on the right prompt, and its ids are known."""
    questions = questions_of(exchange, model.tokenizer, model.reference)
    first = [q.claim for q in questions if q.choice_index == 0 and not q.notes.get("prompt_differs")]
    return [claim for claim in first if isinstance(claim, Claim) and not claim.params.is_greedy]


def accuses_nobody(found: Mapping[str, Any]) -> bool:
    """Whether answers of this identity must not be weighed by the configured contract."""
    return found["reason"] in (DIFFERS, REASON)


def annotated(audits: Sequence[NewAudit], **notes: Any) -> list[NewAudit]:
    """The audits with more notes."""
    return [replace(audit, notes={**audit.notes, **notes}) for audit in audits]
