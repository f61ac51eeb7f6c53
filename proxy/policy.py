"""Which sampling an exchange gets and whether it is audited. Pure: the exchange id is the only chance in it.

Seeds and the choice of what is audited come from HMAC-SHA256 under a secret, with a label each, so that a
provider that sees every seed learns nothing about the next one, nor about which answers are checked.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.protocol import ChatRequest
from proxy.upstreams import Model, Upstream

_SEED_LABEL = b"seedproof seed\x00"
_AUDIT_LABEL = b"seedproof audit\x00"

_NEUTRAL: Mapping[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
_ALSO_EFFECTIVE = ("logit_bias", "stop", "stop_token_ids", "min_tokens", "ignore_eos")

_NOT_REPLAYABLE: Mapping[str, str] = {
    "functions": "legacy_functions",
    "audio": "audio_output",
    "prediction": "predicted_output",
    "web_search_options": "web_search",
    "structured_outputs": "structured_output",
    "guided_json": "structured_output",
    "guided_regex": "structured_output",
    "guided_choice": "structured_output",
    "guided_grammar": "structured_output",
    "use_beam_search": "beam_search",
    "logits_processors": "custom_logits",
    "bad_words": "custom_logits",
    "allowed_token_ids": "custom_logits",
    # llama.cpp's own
    "grammar": "structured_output",
    "json_schema": "structured_output",
    **dict.fromkeys(
        ("samplers", "mirostat", "repeat_penalty", "typical_p", "top_n_sigma", "xtc_probability", "dry_multiplier",
         "dynatemp_range"),
        "custom_logits",
    ),
}
"""Request fields that change the sampler in ways that no contract replays yet, and the reason recorded for
them."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What happens to one request.

    `changes` replace the client's fields in the provider's body; `forced` is the whole sampling that a
    faithful provider then uses; `overridden` is what the client had asked for and does not get.
    """

    changes: Mapping[str, Any]
    forced: Mapping[str, Any]
    overridden: Mapping[str, Any]
    audit: bool
    unaudited_reason: str | None

    def header(self) -> str:
        """What was forced, for the client: `seed, temperature=1.0`. Never the seed's value."""
        return ", ".join(
            name if name == "seed" else f"{name}={str(value).lower()}" for name, value in self.changes.items()
        )


def decide(
    request: ChatRequest, upstream: Upstream, model: Model | None, *, exchange_id: str, secret: bytes
) -> Decision:
    """Fix the sampling of one exchange. Without a configured model nothing is forced and nothing is audited.

    Whether it is audited does not change what is sent, so the provider cannot tell.
    """
    if model is None:
        return Decision(
            changes={}, forced=effective(request.body), overridden={}, audit=False,
            unaudited_reason="model_not_configured",
        )
    changes = _changes(request.body, upstream, model, seed(exchange_id, secret))
    asked = {name: request.body.get(name) for name in changes}
    overridden = {name: was for name, was in asked.items() if was is not None and was != changes[name]}
    reason = unsupported(request.body)
    if reason is None and not selected(exchange_id, secret, upstream.audit_rate):
        reason = "not_selected"
    return Decision(
        changes=changes, forced=effective({**request.body, **changes}), overridden=overridden,
        audit=reason is None, unaudited_reason=reason,
    )


def seed(exchange_id: str, secret: bytes) -> int:
    """A secret seed of 31 bits: every engine takes it, and choice i of vLLM (seed + i) stays a positive
    int64."""
    return int.from_bytes(_hash(_SEED_LABEL, exchange_id, secret)[:4], "big") >> 1


def selected(exchange_id: str, secret: bytes, rate: float) -> bool:
    """Whether this exchange is among the share `rate` that is audited."""
    return int.from_bytes(_hash(_AUDIT_LABEL, exchange_id, secret)[:8], "big") < rate * 2.0**64


def unsupported(body: Mapping[str, Any]) -> str | None:
    """Why no contract can replay this request, or None. Whatever a reference can still judge is left to the
    verifier."""
    for name, reason in _NOT_REPLAYABLE.items():
        if body.get(name):
            return reason
    response_format = body.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        return "structured_output"
    if body.get("tool_choice") not in (None, "none", "auto"):
        return "forced_tool_choice"
    if not all(_is_text(message) for message in body["messages"]):
        return "multimodal_content"
    return None


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


def _changes(body: Mapping[str, Any], upstream: Upstream, model: Model, new_seed: int) -> dict[str, Any]:
    sampling = model.sampling
    forced = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    changes: dict[str, Any] = {"seed": new_seed}
    changes.update((name, value) for name, value in forced.items() if value is not None)
    for name, value in upstream.dialect.pinned.items():
        if name not in changes and body.get(name) is None:
            changes[name] = value
    asked = upstream.dialect.asked.items()
    return changes | {name: wanted for name, wanted in asked if not _suffices(body.get(name), wanted)}


def _suffices(value: Any, wanted: bool | int) -> bool:
    """Whether the client's own value does what is wanted: the same switch, or at least as many."""
    if isinstance(wanted, bool):
        return value is wanted
    return type(value) is int and value >= wanted


def _is_text(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return True
    return all(isinstance(part, dict) and part.get("type") in ("text", "refusal") for part in content)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _hash(label: bytes, exchange_id: str, secret: bytes) -> bytes:
    return hmac.new(secret, label + exchange_id.encode(), hashlib.sha256).digest()
