"""The configuration: one TOML file and the secrets it names, checked here and nowhere else.

An unknown key is an error that names the nearest known one. Secrets come from the environment or from a file,
never from the TOML itself; what is built here does not show them in its repr.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yarl import URL

from proxy.errors import ConfigError
from proxy.upstreams import DIALECTS, NAME, ForcedSampling, Model, Routes, Upstream

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIN_SECRET_BYTES = 16

_TOP = ("listen", "store", "seed", "limits", "upstreams")
_SEED = ("secret_env", "secret_file")
_UPSTREAM = (
    "name", "base_url", "kind", "api_key_env", "api_key_file", "audit_rate", "prefix_only", "sampling",
    "models",
)
_SAMPLING = ("temperature", "top_p", "top_k")
_MODEL = ("reference", "sampler", "sampling")
_LIMITS = ("request_bytes", "connect_seconds", "idle_seconds", "shutdown_seconds")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what clients and providers may take; there is none on how long an answer may stream."""

    request_bytes: int = 32 * 2**20
    connect_seconds: float = 10.0
    idle_seconds: float = 600.0
    """The longest silence of a provider, before its first byte and between two; the SDK waits as long."""
    shutdown_seconds: float = 30.0
    """How long running answers may go on after SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """Everything `seedproof serve` needs. `store` is a database URL, `seed_secret` keys seeds and audit
    choice."""

    host: str
    port: int
    store: str
    upstreams: tuple[Upstream, ...]
    seed_secret: bytes = field(repr=False)
    limits: Limits = Limits()


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> ProxyConfig:
    """Read a configuration file. Relative paths of secret files count from the file's own directory.

    Raises:
        ConfigError: with the file's name, the key and the way out.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from error
    try:
        return parse_config(tomllib.loads(text), environment, directory=path.parent)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(
    document: Mapping[str, Any], environment: Mapping[str, str] = os.environ, *, directory: Path = Path()
) -> ProxyConfig:
    """Check a parsed document.

    Raises:
        ConfigError: an unknown key, a wrong value, a missing secret, or a model that two upstreams claim.
    """
    _known(document, _TOP, "the top level")
    host, port = _address(_text(document, "listen", "the top level", default="127.0.0.1:8080"))
    tables = document.get("upstreams")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("at least one [[upstreams]] table is needed")
    secrets = _Secrets(environment, directory)
    upstreams = tuple(_upstream(table, secrets) for table in tables)
    Routes(upstreams)
    return ProxyConfig(
        host=host, port=port, upstreams=upstreams,
        limits=_limits(_table(document, "limits", "the top level")),
        store=_text(document, "store", "the top level", default="sqlite:///seedproof.db"),
        seed_secret=_seed_secret(_table(document, "seed", "the top level"), secrets),
    )


@dataclass(frozen=True)
class _Secrets:
    environment: Mapping[str, str]
    directory: Path

    def find(self, table: Mapping[str, Any], stem: str, where: str) -> str | None:
        """The secret that `{stem}_env` or `{stem}_file` names; None if neither does."""
        variable = _text(table, f"{stem}_env", where, default="")
        file = _text(table, f"{stem}_file", where, default="")
        if variable and file:
            raise ConfigError(f"{where} sets both {stem}_env and {stem}_file; keep one")
        if variable:
            value = self.environment.get(variable, "").strip()
            if not value:
                raise ConfigError(
                    f"{where} takes {stem} from the environment variable {variable}, which is not set"
                )
            return value
        return self._read(file, f"{stem}_file", where) if file else None

    def _read(self, file: str, key: str, where: str) -> str:
        try:
            value = (self.directory / file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: {key} {file!r} cannot be read") from error
        if not value:
            raise ConfigError(f"{where}: {key} {file!r} is empty")
        return value


def _seed_secret(table: Mapping[str, Any], secrets: _Secrets) -> bytes:
    _known(table, _SEED, "[seed]")
    value = secrets.find(table, "secret", "[seed]")
    if value is None:
        raise ConfigError("[seed] needs secret_env or secret_file; make a secret with: openssl rand -hex 32")
    if len(value.encode()) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"the seed secret is shorter than {MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32"
        )
    return value.encode()


def _limits(table: Mapping[str, Any]) -> Limits:
    _known(table, _LIMITS, "[limits]")
    default = Limits()
    values = {name: _number(table, name, "[limits]", default=getattr(default, name)) for name in _LIMITS}
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"[limits] {name} must be above 0")
    return Limits(
        request_bytes=int(values["request_bytes"]), connect_seconds=values["connect_seconds"],
        idle_seconds=values["idle_seconds"], shutdown_seconds=values["shutdown_seconds"],
    )


def _upstream(table: Mapping[str, Any], secrets: _Secrets) -> Upstream:
    name = _text(table, "name", "[[upstreams]]")
    where = f"upstream {name!r}"
    if not NAME.fullmatch(name) or name == "v1":
        raise ConfigError(f"{where}: a name stands in paths: use a-z, 0-9, '-' and '_', and not 'v1'")
    _known(table, _UPSTREAM, where)
    kind = _text(table, "kind", where, default="openai")
    if kind not in DIALECTS:
        known = ", ".join(DIALECTS)
        raise ConfigError(f"{where}: unknown kind {kind!r}{_near(kind, DIALECTS)}; known: {known}")
    rate = _number(table, "audit_rate", where, default=1.0)
    if not 0 <= rate <= 1:
        raise ConfigError(f"{where}: audit_rate must be from 0 to 1")
    prefix_only = table.get("prefix_only", False)
    if not isinstance(prefix_only, bool):
        raise ConfigError(f"{where}: prefix_only must be true or false")
    sampling = _sampling(_table(table, "sampling", where), where, kind, ForcedSampling())
    models = _table(table, "models", where)
    return Upstream(
        name=name, base_url=_base_url(table, where), kind=kind, audit_rate=rate, prefix_only=prefix_only,
        api_key=_api_key(table, where, secrets),
        models={
            model: _model(model, _table(models, model, where), where, kind, sampling) for model in models
        },
    )


def _model(
    name: str, table: Mapping[str, Any], upstream: str, kind: str, inherited: ForcedSampling
) -> Model:
    where = f"{upstream}, model {name!r}"
    _known(table, _MODEL, where)
    return Model(
        name=name, reference=_text(table, "reference", where), sampler=_text(table, "sampler", where),
        sampling=_sampling(_table(table, "sampling", where), where, kind, inherited),
    )


def _sampling(table: Mapping[str, Any], where: str, kind: str, inherited: ForcedSampling) -> ForcedSampling:
    where = f"{where}, sampling"
    _known(table, _SAMPLING, where)
    if "top_k" in table and not DIALECTS[kind].takes_top_k:
        raise ConfigError(f"{where}: kind {kind!r} does not take top_k; remove it or change the kind")
    temperature = _number(table, "temperature", where, default=inherited.temperature)
    top_p = _number(table, "top_p", where, default=inherited.top_p)
    top_k = table.get("top_k", inherited.top_k)
    if temperature is not None and not 0 <= temperature <= 2:
        raise ConfigError(f"{where}: temperature must be from 0 to 2")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"{where}: top_p must be above 0 and at most 1 (1 is off)")
    if top_k is not None and (type(top_k) is not int or top_k < -1):
        raise ConfigError(f"{where}: top_k must be an integer, -1 or 0 for off")
    return ForcedSampling(temperature=temperature, top_p=top_p, top_k=top_k)


def _base_url(table: Mapping[str, Any], where: str) -> str:
    text = _text(table, "base_url", where)
    try:
        url = URL(text)
    except ValueError as error:
        raise ConfigError(f"{where}: base_url {text!r} is not a URL") from error
    if url.user is not None or url.password is not None:
        raise ConfigError(f"{where}: base_url must not hold credentials; use api_key_env")
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
        raise ConfigError(f"{where}: base_url {text!r} must look like https://host/v1")
    if url.path in ("", "/"):
        example = f"{text.rstrip('/')}/v1"
        raise ConfigError(f"{where}: base_url {text!r} has no path; write it as for the SDK: {example}")
    return str(url).rstrip("/")


def _api_key(table: Mapping[str, Any], where: str, secrets: _Secrets) -> str | None:
    key = secrets.find(table, "api_key", where)
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{where}: its API key holds characters that no HTTP header can carry")
    return key


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"listen {text!r} must look like 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def _known(table: Mapping[str, Any], keys: Collection[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise ConfigError(f"unknown key {key!r} in {where}{_near(key, keys)}; known: {', '.join(keys)}")


def _near(key: str, keys: Collection[str]) -> str:
    near = difflib.get_close_matches(key, keys, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _table(table: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{key} in {where} must be a table")
    return value


def _text(table: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if value is None:
        raise ConfigError(f"{where} lacks {key!r}")
    if not isinstance(value, str) or (not value and value != default):
        raise ConfigError(f"{key} in {where} must be a non-empty string")
    return value


def _number(table: Mapping[str, Any], key: str, where: str, default: Any) -> Any:
    value = table.get(key, default)
    if value is default:
        return default
    if type(value) not in (int, float):
        raise ConfigError(f"{key} in {where} must be a number")
    return float(value) if key != "request_bytes" else value
