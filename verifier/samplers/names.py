"""Contract ids: `ENGINE[@VERSION][/RUNNER][:key=value,…]`, e.g. `vllm@0.26.0/v2`, `vllm@0.26.0/v1:gpu=A10`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from verifier.errors import UnknownContract

_ID = re.compile(
    r"(?P<engine>[a-z][a-z0-9.-]*)(@(?P<version>\d+(\.\d+)*))?(/(?P<runner>[a-z0-9-]+))?(:(?P<options>.+))?"
)


@dataclass(frozen=True)
class ContractName:
    """A parsed contract id."""

    engine: str
    version: tuple[int, ...] | None = None
    runner: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def take_options(self, *allowed: str) -> dict[str, str]:
        """The options, or UnknownContract naming the first that this engine does not have."""
        for key in self.options:
            if key not in allowed:
                known = ", ".join(allowed) or "none"
                raise UnknownContract(f"{self.engine} has no option {key!r}: use one of {known}")
        return dict(self.options)


def parse(text: str) -> ContractName:
    """Split an id into its parts; raises UnknownContract when it does not have the form."""
    match = _ID.fullmatch(text.strip())
    if match is None:
        raise UnknownContract(f"{text!r} is no contract id: write ENGINE[@VERSION][/RUNNER][:key=value]")
    version = match["version"]
    return ContractName(
        engine=match["engine"],
        version=tuple(int(part) for part in version.split(".")) if version else None,
        runner=match["runner"],
        options=_options(text, match["options"]),
    )


def render(name: ContractName) -> str:
    """The id that `parse` would read back."""
    version = "@" + ".".join(map(str, name.version)) if name.version else ""
    runner = f"/{name.runner}" if name.runner else ""
    options = ":" + ",".join(f"{k}={v}" for k, v in sorted(name.options.items())) if name.options else ""
    return f"{name.engine}{version}{runner}{options}"


def _options(text: str, listed: str | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in (listed or "").split(",") if item]
    if any(not separator or not value for _, separator, value in pairs):
        raise UnknownContract(f"{text!r}: options are written key=value, separated by commas")
    return {key: value for key, _, value in pairs}
