"""The configuration of one provider: `[[upstreams]]`, its models and their policies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from yarl import URL

from proxy.errors import ConfigError
from proxy.toml_table import Secrets, Table
from proxy.upstreams import DIALECTS, NAME, ForcedSampling, Mode, Model, Policy, Upstream
from storage.retention_rule import Rule

_POLICY = ("policy", "unverifiable", "bounds", "providers", "quantizations", "sampling")
_UPSTREAM = (
    "name", "base_url", "kind", "api_key_env", "api_key_file", "audit_rate", "prefix_only", "models", "retention",
    *_POLICY,
)
_MODEL = ("reference", "sampler", *_POLICY)
_RETENTION = ("payload_days", "verdict_days", "redact_verified")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0), "top_p": (0.01, 1.0), "top_k": (-1, 2**31 - 1), "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 2.0), "presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0),
}
"""What can be verified at all; configured bounds lie inside."""


def read_upstream(values: Mapping[str, Any], secrets: Secrets) -> Upstream:
    """Check one `[[upstreams]]` table.

    Raises:
        ConfigError: an unknown key, a wrong value or a missing secret.
    """
    table = Table(values, f"upstream {values.get('name')!r}", _UPSTREAM)
    name = table.text("name")
    if not NAME.fullmatch(name) or name == "v1":
        raise ConfigError(f"{table.where}: a name stands in paths: use a-z, 0-9, '-' and '_', and not 'v1'")
    kind = table.choice("kind", DIALECTS, "openai")
    rate = table.number("audit_rate", 1.0)
    if not 0 <= rate <= 1:
        raise ConfigError(f"{table.where}: audit_rate must be from 0 to 1")
    sampling = _sampling(table, kind, ForcedSampling())
    policy = _policy(table, kind, Policy())
    models = table.table("models")
    return Upstream(
        name=name, base_url=_base_url(table), kind=kind, audit_rate=rate, prefix_only=table.flag("prefix_only"),
        api_key=_api_key(table, secrets), policy=policy, retention=_retention(table, name),
        models={model: _model(model, models[model], table.where, kind, sampling, policy) for model in models},
    )


def _retention(outer: Table, name: str) -> Rule | None:
    if "retention" not in outer:
        return None
    table = Table(outer.table("retention"), f"{outer.where}, retention", _RETENTION)
    days = {key: table.positive(key, None) for key in ("payload_days", "verdict_days")}
    return Rule(
        upstream=name, redact_verified=table.flag("redact_verified"),
        **{key: None if value is None else math.ceil(value) for key, value in days.items()},
    )


def _model(
    name: str, values: Any, upstream: str, kind: str, sampling: ForcedSampling, policy: Policy
) -> Model:
    if not isinstance(values, dict):
        raise ConfigError(f"{name} in {upstream} must be a table")
    table = Table(values, f"{upstream}, model {name!r}", _MODEL)
    return Model(
        name=name, reference=table.text("reference"), sampler=table.text("sampler"),
        sampling=_sampling(table, kind, sampling), policy=_policy(table, kind, policy),
    )


def _policy(table: Table, kind: str, inherited: Policy) -> Policy:
    mode = Mode(table.choice("policy", [mode.value for mode in Mode], inherited.mode.value))
    default = "refuse" if inherited.refuse else "forward"
    for key in ("providers", "quantizations"):
        if key in table and not DIALECTS[kind].routes:
            raise ConfigError(f"{table.where}: {key} is for routers; kind {kind!r} is none: remove it")
    return Policy(
        mode=mode, bounds=_bounds(table, mode, inherited.bounds),
        refuse=table.choice("unverifiable", ("forward", "refuse"), default) == "refuse",
        providers=table.texts("providers") or inherited.providers,
        quantizations=table.texts("quantizations") or inherited.quantizations,
    )


def _bounds(
    table: Table, mode: Mode, inherited: Mapping[str, tuple[float, float]]
) -> Mapping[str, tuple[float, float]]:
    if "bounds" in table and mode is not Mode.BOUND:
        raise ConfigError(f"{table.where}: bounds count under policy = \"bound\" only; set that or remove them")
    given = Table(table.table("bounds"), f"{table.where}, bounds", tuple(BOUNDS))
    return {name: _bound(given, name) or inherited.get(name) or BOUNDS[name] for name in BOUNDS}


def _bound(table: Table, name: str) -> tuple[float, float] | None:
    value = table.raw(name)
    if value is None:
        return None
    least, most = BOUNDS[name]
    if not (
        isinstance(value, list) and len(value) == 2 and all(type(edge) in (int, float) for edge in value)
        and least <= value[0] <= value[1] <= most
    ):
        raise ConfigError(f"{table.where}: {name} must be [least, most] within [{least:g}, {most:g}]")
    return value[0], value[1]


def _sampling(outer: Table, kind: str, inherited: ForcedSampling) -> ForcedSampling:
    table = Table(outer.table("sampling"), f"{outer.where}, sampling", _SAMPLING)
    if "top_k" in table and not DIALECTS[kind].takes_top_k:
        raise ConfigError(f"{table.where}: kind {kind!r} does not take top_k; remove it or change the kind")
    top_k = table.raw("top_k") if "top_k" in table else inherited.top_k
    if top_k is not None and (type(top_k) is not int or top_k < -1):
        raise ConfigError(f"{table.where}: top_k must be an integer, -1 or 0 for off")
    for name in ("min_p", "repetition_penalty"):
        if name in table and name not in DIALECTS[kind].pinned:
            raise ConfigError(f"{table.where}: kind {kind!r} does not take {name}; remove it or change the kind")
    top_p = table.number("top_p", inherited.top_p)
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"{table.where}: top_p must be above 0 and at most 1 (1 is off)")
    return ForcedSampling(
        temperature=_within(table, "temperature", 0, 2, inherited.temperature), top_p=top_p, top_k=top_k,
        min_p=_within(table, "min_p", 0, 1, inherited.min_p),
        repetition_penalty=_within(table, "repetition_penalty", 0.1, 2, inherited.repetition_penalty),
    )


def _within(table: Table, name: str, least: float, most: float, default: float | None) -> float | None:
    value: float | None = table.number(name, default)
    if value is not None and not least <= value <= most:
        raise ConfigError(f"{table.where}: {name} must be from {least:g} to {most:g}")
    return value


def _base_url(table: Table) -> str:
    text = table.text("base_url")
    try:
        url = URL(text)
    except ValueError as error:
        raise ConfigError(f"{table.where}: base_url {text!r} is not a URL") from error
    if url.user is not None or url.password is not None:
        raise ConfigError(f"{table.where}: base_url must not hold credentials; use api_key_env")
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
        raise ConfigError(f"{table.where}: base_url {text!r} must look like https://host/v1")
    if url.path in ("", "/"):
        example = f"{text.rstrip('/')}/v1"
        raise ConfigError(
            f"{table.where}: base_url {text!r} has no path; write it as for the SDK: {example}"
        )
    return str(url).rstrip("/")


def _api_key(table: Table, secrets: Secrets) -> str | None:
    key = table.secret("api_key", secrets)
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{table.where}: its API key holds characters that no HTTP header can carry")
    return key
