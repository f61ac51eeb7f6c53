"""The dashboard's part of the configuration: where it listens and who may look."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.dashboard_login import is_password_hash
from proxy.errors import ConfigError
from proxy.toml_table import Secrets, Table

KEYS = (
    "listen", "password_hash_env", "password_hash_file", "api_token_env", "api_token_file", "hosts", "https",
    "payloads",
)  # fmt: skip
FEWEST_TOKEN_CHARACTERS = 16


@dataclass(frozen=True, kw_only=True)
class DashboardConfig:
    """Where the dashboard listens and who may look."""

    host: str = "127.0.0.1"
    port: int = 8081
    password_hash: str | None = field(default=None, repr=False)
    """From `seedproof dashboard password`; None for no login, which only a loopback address may do without."""
    api_token: str | None = field(default=None, repr=False)
    """Lets scripts read the JSON API by `Authorization: Bearer`."""
    hosts: tuple[str, ...] = ()
    """Names under which browsers reach it, besides its own address: any other Host header is refused."""
    https: bool = False
    """A front proxy ends TLS: cookies travel by https only."""
    payloads: bool = True
    """Whether pages show what was asked and answered."""

    def checked(self) -> DashboardConfig:
        """Itself. Raises ConfigError where others would get in without a login, or a secret is none."""
        if self.password_hash is not None and not is_password_hash(self.password_hash):
            raise ConfigError("[dashboard] password_hash is none; make one with: seedproof dashboard password")
        if self.password_hash is None and not is_loopback(self.host):
            raise ConfigError(
                f"[dashboard] listens on {self.host}, which others reach, without a login: "
                "set password_hash_file (make one with: seedproof dashboard password) or listen on 127.0.0.1"
            )
        if self.api_token is not None and len(self.api_token) < FEWEST_TOKEN_CHARACTERS:
            raise ConfigError("[dashboard] api_token is shorter than 16 characters: openssl rand -hex 32 makes one")
        return self


def read_dashboard(values: Mapping[str, Any], secrets: Secrets) -> DashboardConfig:
    """The table `[dashboard]`.

    Raises:
        ConfigError: an unknown key, a wrong value, or an address that others reach without a login.
    """
    table = Table(values, "[dashboard]", KEYS)
    host, port = listen_address(table.text("listen", "127.0.0.1:8081"), "[dashboard] listen")
    return DashboardConfig(
        host=host, port=port, password_hash=table.secret("password_hash", secrets),
        api_token=table.secret("api_token", secrets), hosts=table.texts("hosts") or (), https=table.flag("https"),
        payloads=table.flag("payloads", True),
    ).checked()  # fmt: skip


def listen_address(text: str, where: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8081` or `[::1]:8081`. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{where} {text!r} must look like 127.0.0.1:8081")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
