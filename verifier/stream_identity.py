"""Which sampler a stream really follows, looked for once, where its answers do not follow the configured one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from storage.audits import NewAudit, unpack_scores
from storage.models import Exchange
from verifier import linkage
from verifier.audit import TrustedModel
from verifier.identify import identify_claims
from verifier.questions import questions_of
from verifier.replay import Claim
from verifier.samplers import contract


def is_followed(audit: NewAudit) -> bool:
    """Whether an audit's tokens follow the configured noise; one without scores, or on another prompt, says nothing."""
    if audit.scores is None or audit.notes.get("prompt_differs"):
        return True
    arrays = {name: np.asarray(values) for name, values in unpack_scores(audit.scores).items()}
    return linkage.follows(arrays["token_ids"] == arrays["predicted_ids"], arrays["prob"])


def identity(exchanges: Sequence[Exchange], model: TrustedModel) -> Mapping[str, Any] | None:
    """What `storage.models.Stream.identified` holds, from a stream's exchanges; None where no ids are known.

    `reason` is the code that an unsupported verdict gives: `sampler_differs` where another contract explains the
    tokens, or `verifier.identify`'s own where none does.
    """
    questions = [question for one in exchanges for question in questions_of(one, model.tokenizer, model.reference)]
    first = [question.claim for question in questions if question.choice_index == 0]
    claims = [claim for claim in first if isinstance(claim, Claim)]
    if not claims:
        return None
    found = identify_claims(model.reference, claims)
    differs = found.contract is not None and found.contract != contract(exchanges[0].sampler or "").id
    return {**found.to_dict(), "reason": "sampler_differs" if differs else found.reason}
