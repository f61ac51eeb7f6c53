"""Which sampling an exchange gets and whether it is audited. Pure: the exchange id is the only chance in it.

Seeds and the choice of what is audited come from HMAC-SHA256 under a secret, with a label each, so that a
provider that sees every seed learns nothing about the next one, nor about which answers are checked. What is sent
never depends on that choice.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.errors import RequestError
from proxy.protocol import CHAT, GenerationRequest
from proxy.unverifiable import unmodelled, unsupported
from proxy.upstreams import Mode, Model, Policy, Upstream

_SEED_LABEL = b"seedproof seed\x00"
_AUDIT_LABEL = b"seedproof audit\x00"
_USER_LABEL = b"seedproof user\x00"

NO_TOP_K = 2**31 - 1
"""A bound of top_k that no vocabulary reaches: off is allowed."""

_NEUTRAL: Mapping[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
_ALSO_EFFECTIVE = ("logit_bias", "stop", "stop_token_ids", "min_tokens", "ignore_eos")

@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to one request.

    `changes` replace the client's fields in the provider's body; `forced` is the whole sampling that a
    faithful provider then uses; `overridden` is what the client had asked for and does not get. `unverifiable` is
    the reason why no audit could judge the answer, whether or not it was going to be audited.
    """

    changes: Mapping[str, Any]
    forced: Mapping[str, Any]
    overridden: Mapping[str, Any]
    audit: bool
    unaudited_reason: str | None
    unverifiable: str | None

    def header(self) -> str:
        """What was forced, for the client: `seed, temperature=1.0`. Never the seed's value."""
        return ", ".join(
            name if name == "seed" or isinstance(value, dict) else f"{name}={str(value).lower()}"
            for name, value in self.changes.items()
        )


def decide(
    request: GenerationRequest, upstream: Upstream, model: Model | None, *, exchange_id: str, secret: bytes
) -> Decision:
    """Fix the sampling of one exchange. Without a configured model nothing is forced and nothing is audited."""
    body = request.body
    if model is None:
        reason: str | None = "model_not_configured"
        return Decision(
            changes={}, forced=effective(body), overridden={}, audit=False, unaudited_reason=reason,
            unverifiable=reason,
        )
    changes = _changes(request, upstream, model, seed(exchange_id, secret))
    asked = {name: body.get(name) for name in changes}
    overridden = {name: was for name, was in asked.items() if was is not None and was != changes[name]}
    whole = {**_claimed(model), **_given(body), **changes}
    forced = effective(whole)
    unverifiable = (
        unsupported(request) or unmodelled(model.sampler, forced) or _unknown_sampling(whole, upstream, model)
    )
    reason = unverifiable
    if reason is None and not selected(exchange_id, secret, upstream.audit_rate):
        reason = "not_selected"
    return Decision(
        changes=changes, forced=forced, overridden=overridden,
        audit=reason is None, unaudited_reason=reason, unverifiable=unverifiable,
    )


def refused(decision: Decision, policy: Policy) -> RequestError | None:
    """The answer for a request that cannot be verified, where the policy refuses those."""
    if decision.unverifiable is None or not policy.refuse:
        return None
    message = (
        f"this request cannot be verified ({decision.unverifiable}), and the proxy is configured to refuse such "
        "requests; change the request, or ask the operator for unverifiable = \"forward\""
    )
    return RequestError(message, code="unverifiable_request")


def seed(exchange_id: str, secret: bytes) -> int:
    """A secret seed of 31 bits: every engine takes it, and choice i of vLLM (seed + i) stays a positive
    int64."""
    return int.from_bytes(_hash(_SEED_LABEL, exchange_id, secret)[:4], "big") >> 1


def user_hash(user: object, secret: bytes) -> str | None:
    """A keyed hash of a request's `user`: finds a person's exchanges without naming the person. None for no user."""
    return _hash(_USER_LABEL, user, secret).hex() if isinstance(user, str) and user else None


def selected(exchange_id: str, secret: bytes, rate: float) -> bool:
    """Whether this exchange is among the share `rate` that is audited."""
    return int.from_bytes(_hash(_AUDIT_LABEL, exchange_id, secret)[:8], "big") < rate * 2.0**64


def effective(body: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling that a faithful provider uses for this body, as the verifier needs it."""
    names = ("seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    sampling: dict[str, Any] = {name: body.get(name) for name in names}
    for name, neutral in _NEUTRAL.items():
        sampling[name] = neutral if body.get(name) is None else body[name]
    sampling["n"] = body.get("n") or 1
    sampling["max_tokens"] = _first(body.get("max_completion_tokens"), body.get("max_tokens"))
    sampling.update((name, body.get(name)) for name in _ALSO_EFFECTIVE)
    return {name: value for name, value in sampling.items() if value is not None}


def _changes(request: GenerationRequest, upstream: Upstream, model: Model, new_seed: int) -> dict[str, Any]:
    """What the mode replaces in the provider's body."""
    mode, body, dialect = model.policy.mode, request.body, upstream.dialect
    if mode is Mode.OBSERVE:
        return {}
    changes: dict[str, Any] = {"seed": new_seed}
    if mode is Mode.FORCE:
        changes |= _configured(model)
    elif mode is Mode.BOUND:
        changes |= _bounded(body, model)
    if mode is not Mode.SEED_ONLY:
        for name, value in dialect.pinned.items():
            if name not in changes and body.get(name) is None:
                changes[name] = value
    asked = dialect.asked if request.endpoint == CHAT else dialect.asked_of_text
    changes |= {name: wanted for name, wanted in asked.items() if not _suffices(body.get(name), wanted)}
    return changes | ({"provider": _routing(body, model.policy)} if dialect.routes else {})


def _configured(model: Model) -> dict[str, Any]:
    return {name: value for name, value in vars(model.sampling).items() if value is not None}


def _bounded(body: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The client's values that lie outside the bounds, moved to the nearest edge; configured ones for those that it
    does not name."""
    changes = {name: value for name, value in _configured(model).items() if body.get(name) is None}
    for name, (least, most) in model.policy.bounds.items():
        value = body.get(name)
        if value is not None:
            # 0 and -1 turn top_k off, which allows more tokens than any number
            size = float("inf") if name == "top_k" and value <= 0 else value
            if not (least <= size <= most or (size == float("inf") and most >= NO_TOP_K)):
                changes[name] = min(max(size, least), most)
    return changes


def _routing(body: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """A router's orders: the configured providers and no other, and none that would ignore a parameter such as
    the seed. The client's own wishes stay where they do not contradict."""
    asked = body.get("provider")
    kept = {name: value for name, value in asked.items() if name not in ("order", "sort")} if isinstance(
        asked, dict
    ) else {}
    orders: dict[str, Any] = {"allow_fallbacks": False, "require_parameters": True}
    if policy.providers is not None:
        orders["only"] = list(policy.providers)
    if policy.quantizations is not None:
        orders["quantizations"] = list(policy.quantizations)
    return {**kept, **orders}


def _claimed(model: Model) -> dict[str, Any]:
    """What the provider uses where nobody names a value, by the configuration's word: only in the modes that do
    not send it."""
    if model.policy.mode not in (Mode.SEED_ONLY, Mode.OBSERVE):
        return {}
    return _configured(model)


def _unknown_sampling(body: Mapping[str, Any], upstream: Upstream, model: Model) -> str | None:
    """Why the sampling of a request that we do not fix ourselves cannot be known, or None."""
    if model.policy.mode not in (Mode.SEED_ONLY, Mode.OBSERVE):
        return None
    if any(body.get(name) is None for name in upstream.dialect.pinned):
        # servers fill the gap from the model's generation_config.json: to guess it would accuse the honest
        return "sampling_unknown"
    if body.get("seed") is None and body.get("temperature") != 0:
        return "no_seed"
    return None


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _suffices(value: Any, wanted: bool | int) -> bool:
    """Whether the client's own value does what is wanted: the same switch, or at least as many."""
    if isinstance(wanted, bool):
        return value is wanted
    return type(value) is int and value >= wanted


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _hash(label: bytes, exchange_id: str, secret: bytes) -> bytes:
    return hmac.new(secret, label + exchange_id.encode(), hashlib.sha256).digest()
