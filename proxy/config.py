"""The configuration: one TOML file and the secrets it names, checked here, in `config_upstreams` and nowhere else.

An unknown key is an error that names the nearest known one. Secrets come from the environment or from a file,
never from the TOML itself; what is built here does not show them in its repr.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

from proxy.clients import Client
from proxy.config_upstreams import read_upstream
from proxy.dashboard_config import DashboardConfig, read_dashboard
from proxy.errors import ConfigError
from proxy.limits import Limits
from proxy.metrics_config import MetricsConfig, read_metrics
from proxy.toml_table import Secrets, Table
from proxy.upstreams import NAME, Routes, Upstream
from storage.journal import default_directory

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIN_SECRET_BYTES = 16
DEFAULT_LIMITS = Limits()

MIN_JOURNAL_BYTES = 1 << 20

_TOP = ("listen", "store", "seed", "limits", "journal", "clients", "dashboard", "metrics", "upstreams")
_SEED = ("secret_env", "secret_file")
_CLIENT = ("name", "key_sha256", "upstreams", "models", "requests_per_minute", "concurrent_requests", "expires")
_JOURNAL = ("directory", "mode", "when_full", "max_bytes", "writer")
_LIMITS = tuple(limit.name for limit in fields(Limits))


@dataclass(frozen=True, kw_only=True)
class JournalSettings:
    """Where finished exchanges are kept until the database has them, and what must wait for that."""

    directory: Path
    max_bytes: int = 2 * 2**30
    strict: bool = True
    """The last bytes of an answer wait until its record is on disk."""
    fail_closed: bool = False
    """What cannot be recorded is not answered; otherwise it is answered and counted as lost."""
    writer_apart: bool = False
    """`seedproof writer` empties the journal, not this process."""


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """Everything `seedproof serve` needs. `store` is a database URL, `seed_secret` keys seeds and audit
    choice; without `clients` everyone who reaches the address is served."""

    host: str
    port: int
    store: str
    upstreams: tuple[Upstream, ...]
    journal: JournalSettings
    seed_secret: bytes = field(repr=False)
    limits: Limits = DEFAULT_LIMITS
    clients: tuple[Client, ...] = ()
    dashboard: DashboardConfig | None = None
    """None for no dashboard."""
    metrics: MetricsConfig | None = None
    """None for no metrics."""


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
    top = Table(document, "the top level", _TOP)
    host, port = _address(top.text("listen", "127.0.0.1:8080"))
    if not top.raw("upstreams"):
        raise ConfigError("at least one [[upstreams]] table is needed")
    secrets = Secrets(environment, directory)
    upstreams = tuple(read_upstream(table, secrets) for table in top.tables("upstreams"))
    Routes(upstreams)
    store = top.text("store", "sqlite:///seedproof.db")
    return ProxyConfig(
        host=host, port=port, upstreams=upstreams, limits=_limits(top.table("limits")),
        store=store, journal=_journal(top.table("journal"), store),
        seed_secret=_seed_secret(top.table("seed"), secrets),
        clients=_clients(top.tables("clients"), {upstream.name for upstream in upstreams}),
        dashboard=read_dashboard(top.table("dashboard"), secrets) if "dashboard" in top else None,
        metrics=read_metrics(top.table("metrics"), secrets) if "metrics" in top else None,
    )


def _seed_secret(values: Mapping[str, Any], secrets: Secrets) -> bytes:
    value = Table(values, "[seed]", _SEED).secret("secret", secrets)
    if value is None:
        raise ConfigError("[seed] needs secret_env or secret_file; make a secret with: openssl rand -hex 32")
    if len(value.encode()) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"the seed secret is shorter than {MIN_SECRET_BYTES} bytes; make one with: openssl rand -hex 32"
        )
    return value.encode()


def _limits(values: Mapping[str, Any]) -> Limits:
    table, default = Table(values, "[limits]", _LIMITS), DEFAULT_LIMITS
    return Limits(**{
        name: table.positive(name, getattr(default, name), or_zero=name == "drain_seconds") for name in _LIMITS
    })


def _journal(values: Mapping[str, Any], store: str) -> JournalSettings:
    table = Table(values, "[journal]", _JOURNAL)
    max_bytes = table.positive("max_bytes", JournalSettings.max_bytes)
    if max_bytes < MIN_JOURNAL_BYTES:
        raise ConfigError(f"[journal] max_bytes must be at least {MIN_JOURNAL_BYTES}")
    return JournalSettings(
        directory=Path(table.text("directory", str(default_directory(store)))).expanduser(), max_bytes=max_bytes,
        strict=table.choice("mode", ("strict", "fast"), "strict") == "strict",
        fail_closed=table.choice("when_full", ("fail_open", "fail_closed"), "fail_open") == "fail_closed",
        writer_apart=table.choice("writer", ("inside", "apart"), "inside") == "apart",
    )


def _clients(tables: list[Mapping[str, Any]], upstreams: set[str]) -> tuple[Client, ...]:
    clients = tuple(_client(values, upstreams) for values in tables)
    names = [client.name for client in clients]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two clients are named {name!r}; rename one")
    return clients


def _client(values: Mapping[str, Any], upstreams: set[str]) -> Client:
    table = Table(values, f"client {values.get('name')!r}", _CLIENT)
    name, digest = table.text("name"), table.text("key_sha256").lower()
    if not NAME.fullmatch(name):
        raise ConfigError(f"{table.where}: a client's name stands in its key: use a-z, 0-9, '-' and '_'")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(f"{table.where}: key_sha256 must be 64 hexadecimal digits, as seedproof key NAME gives them")
    allowed, models, expires = table.texts("upstreams"), table.texts("models"), table.raw("expires")
    for upstream in allowed or ():
        if upstream not in upstreams:
            raise ConfigError(f"{table.where}: no upstream is named {upstream!r}")
    if expires is not None and type(expires) is not date:
        raise ConfigError(f"{table.where}: expires must be a date, as in expires = 2027-12-31")
    concurrent = table.positive("concurrent_requests", None)
    return Client(
        name=name, key_sha256=digest, upstreams=None if allowed is None else frozenset(allowed),
        models=None if models is None else frozenset(models), expires=expires,
        requests_per_minute=table.positive("requests_per_minute", None),
        concurrent_requests=None if concurrent is None else int(concurrent),
    )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"listen {text!r} must look like 127.0.0.1:8080")
    return host.strip("[]"), int(port)
