"""How long an upstream's rows are kept. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One upstream's; days of None are for ever. `redact_verified` empties an exchange once it is audited."""

    upstream: str
    payload_days: int | None = None
    verdict_days: int | None = None
    redact_verified: bool = False
