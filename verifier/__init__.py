"""The trusted side: replays what a provider claims to have sampled and weighs what does not match.

    claimed answer → tokenize, align → TokenSequence → reference model → logits → score → evidence → verdict

A verdict is about a stream of answers under stated assumptions (reference, sampler contract, token source). It never
proves a provider honest, and a single mismatch proves nothing: floating point decides near-ties differently.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifier.api import verify_outputs
    from verifier.provider_audit import AuditResult, audit_provider
    from verifier.sequences import SamplingMethod, TokenMetrics, TokenSequence, compute_metrics_summary

__all__ = [
    "AuditResult", "SamplingMethod", "TokenMetrics", "TokenSequence", "audit_provider", "compute_metrics_summary",
    "verify_outputs",
]  # fmt: skip
_HOMES = {
    "verify_outputs": "verifier.api", "audit_provider": "verifier.provider_audit",
    "AuditResult": "verifier.provider_audit",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Found on first use: importing torch takes seconds, and the command line's help must not wait for it.
    if name not in __all__:
        raise AttributeError(f"module 'verifier' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "verifier.sequences")), name)
