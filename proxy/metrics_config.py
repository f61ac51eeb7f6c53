"""The configuration of `/metrics`: where it listens and who may read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.dashboard_config import listen_address
from proxy.toml_table import Secrets, Table

KEYS = ("listen", "token_env", "token_file")


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """An address that Prometheus reaches, and the bearer token that it sends; without one everybody may read."""

    host: str = "127.0.0.1"
    port: int = 9464
    token: str | None = field(default=None, repr=False)


def read_metrics(values: Mapping[str, Any], secrets: Secrets) -> MetricsConfig:
    """The table `[metrics]`. Raises ConfigError."""
    table = Table(values, "[metrics]", KEYS)
    host, port = listen_address(table.text("listen", "127.0.0.1:9464"), "[metrics] listen")
    return MetricsConfig(host=host, port=port, token=table.secret("token", secrets))
