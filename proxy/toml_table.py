"""Reading one table of the configuration: each value checked, each error with its place and the way out. Pure
but for files that hold secrets.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.errors import ConfigError


@dataclass(frozen=True)
class Secrets:
    """Where secrets are found: the environment, and files that count from the configuration's directory."""

    environment: Mapping[str, str]
    directory: Path

    def variable(self, name: str, stem: str, where: str) -> str:
        """The value of an environment variable. Raises ConfigError where it is not set."""
        value = self.environment.get(name, "").strip()
        if not value:
            raise ConfigError(f"{where} takes {stem} from the environment variable {name}, which is not set")
        return value

    def file(self, name: str, key: str, where: str) -> str:
        """The text of a file. Raises ConfigError where there is none."""
        try:
            value = (self.directory / name).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: {key} {name!r} cannot be read") from error
        if not value:
            raise ConfigError(f"{where}: {key} {name!r} is empty")
        return value


class Table:
    """One TOML table and `where` it stands, for messages.

    Raises:
        ConfigError: by every method, for a key that is unknown or a value that is not what it should be.
    """

    def __init__(self, values: Mapping[str, Any], where: str, known: Collection[str]) -> None:
        self._values = values
        self.where = where
        for key in values:
            if key not in known:
                names = ", ".join(known)
                raise ConfigError(f"unknown key {key!r} in {where}{near(key, known)}; known: {names}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def raw(self, key: str) -> Any:
        """The value as TOML gives it; None where there is none."""
        return self._values.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """A string that is not empty."""
        value = self._values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.where} lacks {key!r}")
        if not isinstance(value, str) or (not value and value != default):
            raise ConfigError(f"{key} in {self.where} must be a non-empty string")
        return value

    def choice(self, key: str, known: Collection[str], default: str) -> str:
        """One of the known words."""
        value = self.text(key, default)
        if value not in known:
            raise ConfigError(
                f"{self.where}: unknown {key} {value!r}{near(value, known)}; known: {', '.join(known)}"
            )
        return value

    def number(self, key: str, default: Any = None) -> Any:
        """A number as float, or the default as it is."""
        if key not in self._values:
            return default
        value = self._values[key]
        if type(value) not in (int, float):
            raise ConfigError(f"{key} in {self.where} must be a number")
        return float(value)

    def positive(self, key: str, default: Any, *, or_zero: bool = False) -> Any:
        """A number above 0 (`or_zero`: or 0) of the default's type."""
        value = self.number(key, default)
        if value is None:
            return None
        if value < 0 or (value == 0 and not or_zero):
            raise ConfigError(f"{self.where} {key} must be {'0 or more' if or_zero else 'above 0'}")
        return int(value) if isinstance(default, int) else value

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} must be true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, not empty; None where there is none."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise ConfigError(f'{self.where}: {key} must be a list of names, as in {key} = ["name"]')
        return tuple(value)

    def table(self, key: str) -> Mapping[str, Any]:
        """A table inside this one, empty where there is none."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise ConfigError(f"{key} in {self.where} must be a table")
        return value

    def tables(self, key: str) -> list[Mapping[str, Any]]:
        """An array of tables, empty where there is none."""
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ConfigError(f"{key} in {self.where} must be tables: [[{key}]]")
        return value

    def secret(self, stem: str, secrets: Secrets) -> str | None:
        """The secret that `{stem}_env` or `{stem}_file` names; None if neither does."""
        variable, file = self.text(f"{stem}_env", ""), self.text(f"{stem}_file", "")
        if variable and file:
            raise ConfigError(f"{self.where} sets both {stem}_env and {stem}_file; keep one")
        if variable:
            return secrets.variable(variable, stem, self.where)
        return secrets.file(file, f"{stem}_file", self.where) if file else None


def near(word: str, known: Collection[str]) -> str:
    """` (did you mean 'x'?)`, or nothing where no known word is near."""
    found = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
