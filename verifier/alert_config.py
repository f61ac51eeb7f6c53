"""The alerts' TOML file: receivers, with their secrets from the environment or from files, and rules."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from verifier.alert_delivery import Receiver, check_url
from verifier.alert_payloads import KINDS
from verifier.alerts import BOUNDS, CONDITIONS, Rule
from verifier.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TOP = ("every", "dashboard_url", "receivers", "rules")
_COMMON = ("kind", "name")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "webhook": ("url", "url_env", "url_file", "secret_env", "secret_file", "allow_private"),
    "slack": ("url", "url_env", "url_file", "allow_private"),
    "pagerduty": ("routing_key_env", "routing_key_file", "url", "allow_private"),
    "email": ("host", "port", "from", "to", "user", "password_env", "password_file", "tls"),
    "command": ("argv",),
}
_RULE = (
    "name", "when", "receivers", "severity", "verdicts", "threshold", "bound", "window", "labels", "holds",
    "resolve_after", "repeat_after", "cooldown",
)  # fmt: skip
_SEVERITIES = ("critical", "warning", "info")
_TLS = ("starttls", "tls", "none")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
VERDICTS = ("consistent", "deviates", "inconclusive", "unsupported")
PAGERDUTY = "https://events.pagerduty.com/v2/enqueue"


@dataclass(frozen=True)
class AlertConfig:
    """What `--alerts FILE` says. `dashboard_url` is what messages link to."""

    receivers: Mapping[str, Receiver]
    rules: tuple[Rule, ...]
    every: timedelta = timedelta(seconds=15)
    dashboard_url: str = ""
    path: str = field(default="", compare=False)


def load_alerts(path: Path, environment: Mapping[str, str] = os.environ) -> AlertConfig:
    """Read the file. Relative paths of secret files count from its own directory.

    Raises:
        InputError: with the file's name, the key and the way out.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the alerts {path}: {error}") from error
    try:
        return parse_alerts(document, environment, directory=path.parent, path=str(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_alerts(
    document: Mapping[str, Any], environment: Mapping[str, str], *, directory: Path = Path(), path: str = ""
) -> AlertConfig:
    """Check a parsed document. Raises InputError."""
    _known(document, _TOP, "the top level")
    secrets = _Secrets(environment, directory)
    receivers = [_receiver(table, secrets) for table in _tables(document, "receivers")]
    rules = [_rule(table) for table in _tables(document, "rules")]
    for kind, names in (("receiver", [r.name for r in receivers]), ("rule", [r.name for r in rules])):
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two {kind}s are named {name!r}; rename one")
    named = {receiver.name: receiver for receiver in receivers}
    for rule in rules:
        for receiver in rule.receivers:
            if receiver not in named:
                raise InputError(f"rule {rule.name!r} names the receiver {receiver!r}{_near(receiver, named)}")
    every = _duration(document, "every", "the top level", timedelta(seconds=15))
    if every <= timedelta():
        raise InputError("every must be longer than 0")
    url = document.get("dashboard_url", "")
    return AlertConfig(named, tuple(rules), every, str(url).rstrip("/"), path)


@dataclass(frozen=True)
class _Secrets:
    environment: Mapping[str, str]
    directory: Path

    def find(self, table: Mapping[str, Any], stem: str, where: str) -> str | None:
        variable, file = table.get(f"{stem}_env"), table.get(f"{stem}_file")
        if variable is not None:
            value = self.environment.get(str(variable), "").strip()
            if not value:
                raise InputError(f"{where} takes its {stem} from the variable {variable}, which is not set")
            return value
        if file is None:
            return None
        try:
            value = (self.directory / str(file)).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: {stem}_file {file!r} cannot be read") from error
        if not value:
            raise InputError(f"{where}: {stem}_file {file!r} is empty")
        return value


def _receiver(table: Mapping[str, Any], secrets: _Secrets) -> Receiver:
    name, kind = _text(table, "name", "a receiver"), _text(table, "kind", "a receiver")
    where = f"receiver {name!r}"
    if kind not in KINDS:
        raise InputError(f"{where}: unknown kind {kind!r}{_near(kind, KINDS)}; known: {', '.join(KINDS)}")
    _known(table, (*_COMMON, *_KEYS[kind]), where)
    if kind == "email":
        return _email(name, table, secrets, where)
    if kind == "command":
        argv = table.get("argv")
        if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
            raise InputError(f'{where}: argv must be the program and its arguments, as in argv = ["/bin/page", "ops"]')
        return Receiver(name=name, kind=kind, argv=tuple(argv))
    default = PAGERDUTY if kind == "pagerduty" else None
    url = secrets.find(table, "url", where) or table.get("url", default)
    if not isinstance(url, str):
        raise InputError(f"{where} lacks its url (or url_env, url_file)")
    stem = "routing_key" if kind == "pagerduty" else "secret"
    secret = None if kind == "slack" else secrets.find(table, stem, where)
    if kind == "pagerduty" and secret is None:
        raise InputError(f"{where} lacks routing_key_env or routing_key_file")
    private = _flag(table, "allow_private", where)
    check_url(url, allow_private=private, where=where)
    return Receiver(name=name, kind=kind, url=url, secret=secret, allow_private=private)


def _email(name: str, table: Mapping[str, Any], secrets: _Secrets, where: str) -> Receiver:
    to, tls = table.get("to"), table.get("tls", "starttls")
    addresses = [to] if isinstance(to, str) else to
    if not isinstance(addresses, list) or not addresses or not all(isinstance(a, str) and "@" in a for a in addresses):
        raise InputError(f'{where}: to must be addresses, as in to = ["ops@example.com"]')
    if tls not in _TLS:
        raise InputError(f"{where}: tls must be one of {', '.join(_TLS)}")
    port = table.get("port", {"starttls": 587, "tls": 465, "none": 25}[tls])
    if type(port) is not int or not 0 < port < 65536:
        raise InputError(f"{where}: port must be a port number")
    password, user = secrets.find(table, "password", where), table.get("user")
    if (password is None) != (user is None):
        raise InputError(f"{where}: user and password belong together")
    return Receiver(
        name=name, kind="email", host=_text(table, "host", where), port=port, sender=_text(table, "from", where),
        to=tuple(addresses), user=user, secret=password, tls=tls,
    )  # fmt: skip


def _rule(table: Mapping[str, Any]) -> Rule:
    name = _text(table, "name", "a rule")
    where = f"rule {name!r}"
    _known(table, _RULE, where)
    when = _choice(table, "when", CONDITIONS, where)
    receivers, labels = table.get("receivers"), table.get("labels", {})
    if not isinstance(receivers, list) or not all(isinstance(receiver, str) for receiver in receivers):
        raise InputError(f'{where}: receivers must be a list of names, as in receivers = ["ops"]')
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise InputError(f'{where}: labels must be texts, as in labels = {{ upstream = "prod-*" }}')
    verdicts = table.get("verdicts", ["deviates"])
    if not isinstance(verdicts, list) or not verdicts or not set(verdicts) <= set(VERDICTS):
        raise InputError(f"{where}: verdicts must be a list of {', '.join(VERDICTS)}")
    default = Rule(name=name, when=when, receivers=())
    durations = {n: _duration(table, n, where, getattr(default, n)) for n in _RULE[-4:]}
    window = _duration(table, "window", where, timedelta()) or None
    return Rule(
        name=name, when=when, receivers=tuple(receivers), labels=labels, verdicts=tuple(verdicts), window=window,
        severity=_choice(table, "severity", _SEVERITIES, where, "warning"), threshold=_threshold(table, when, where),
        bound=_choice(table, "bound", BOUNDS, where, "upper"), **durations,
    )  # fmt: skip


def _threshold(table: Mapping[str, Any], when: str, where: str) -> float:
    if when == "lag_above":
        return _duration(table, "threshold", where, None).total_seconds()
    value = table.get("threshold", None if when == "match_rate_below" else 0)
    if type(value) not in (int, float):
        raise InputError(f"{where}: threshold must be a number")
    if when == "match_rate_below" and not 0 < value <= 1:
        raise InputError(f"{where}: threshold must be a match rate above 0 and at most 1")
    return float(value)


def _duration(table: Mapping[str, Any], key: str, where: str, default: timedelta | None) -> timedelta:
    value = table.get(key)
    if value is None and default is not None:
        return default
    found = re.fullmatch(r"(\d+)([smhd])", value) if isinstance(value, str) else None
    if found is None:
        raise InputError(f'{where}: {key} must be a duration like "90s", "15m", "4h" or "1d"')
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def _tables(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    tables = document.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{key} must be tables: [[{key}]]")
    return tables


def _choice(table: Mapping[str, Any], key: str, known: Collection[str], where: str, default: str | None = None) -> str:
    value = table.get(key, default)
    if value not in known:
        raise InputError(f"{where}: {key} {value!r}{_near(str(value), known)} must be one of {', '.join(known)}")
    return str(value)


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} lacks {key!r}")
    return value


def _flag(table: Mapping[str, Any], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {key} must be true or false")
    return value


def _known(table: Mapping[str, Any], keys: Collection[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise InputError(f"unknown key {key!r} in {where}{_near(key, keys)}; known: {', '.join(keys)}")


def _near(word: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
