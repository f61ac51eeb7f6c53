"""What a dishonest provider may do, as switches of the demo provider: for demos, calibration and tests.

Each spelling of ``--cheat``:

======================  ==============================================================================
``int4``                linear weights rounded to 4 bits (groups of 64, asymmetric, round to nearest)
``temperature=1.1``     samples at this temperature, whatever the request asks for
``system-prompt=TEXT``  a hidden system prompt before the messages; the prompt ids it reports lack it
``ignore-seed``         draws its own seed
``model=DIR``           serves another model under the claimed name
======================  ==============================================================================
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.errors import InputError

if TYPE_CHECKING:
    import torch

GROUP_SIZE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cheats:
    """The switches that are on; the default is an honest provider."""

    int4: bool = False
    temperature: float | None = None
    system_prompt: str | None = None
    ignore_seed: bool = False
    model: Path | None = None

    def label(self) -> str | None:
        """How the command line spells these cheats, joined by commas; None for an honest provider."""
        fields = dataclasses.asdict(self)
        on = [(name.replace("_", "-"), value) for name, value in fields.items() if value not in (None, False)]
        return ",".join(name if value is True else f"{name}={value}" for name, value in on) or None


def parse_cheats(texts: Sequence[str]) -> Cheats:
    """Read the values of ``--cheat``.

    Raises:
        InputError: no such cheat (the sentence names the nearest), or its value is missing or wrong.
    """
    return Cheats(**dict(_parse(text) for text in texts))


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if name not in _VALUES:
        near = difflib.get_close_matches(name, _VALUES, n=1) or ["one of " + ", ".join(_VALUES)]
        raise InputError(f"unknown cheat {name!r}: did you mean {near[0]}?")
    read = _VALUES[name]
    if bool(equals and value) is (read is None):
        wanted = f"takes no value: write {name}" if read is None else f"needs a value: write {name}=…"
        raise InputError(f"cheat {name} {wanted}")
    return name.replace("-", "_"), True if read is None else read(value)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InputError(f"cheat temperature={text} is not a temperature: write a number such as 1.1")
    return value


def _directory(text: str) -> Path:
    if not (Path(text) / "config.json").is_file():
        raise InputError(f"cheat model={text} is not a model's directory: it has no config.json")
    return Path(text)


_VALUES: dict[str, Callable[[str], Any] | None] = {
    "int4": None,
    "temperature": _temperature,
    "system-prompt": str,
    "ignore-seed": None,
    "model": _directory,
}


def with_hidden_prompt(messages: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The messages a provider with a hidden system prompt really feeds to its model."""
    first, rest = (messages[0], messages[1:]) if messages else ({}, [])
    if first.get("role") == "system":
        return [{**first, "content": f"{text}\n\n{first.get('content') or ''}"}, *rest]
    return [{"role": "system", "content": text}, *messages]


def round_to_int4(model: Any) -> None:
    """Round every linear weight but the output head's to 4 bits, in place.

    Rows are cut into groups of 64 input features, each with its own scale and zero point (asymmetric), and
    rounded to the nearest level, as the golden files' ``int4`` provider did.
    """
    import torch

    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head:
                for group in torch.split(module.weight, GROUP_SIZE, dim=1):
                    group.copy_(rounded(group, levels=16))


def rounded(group: torch.Tensor, levels: int) -> torch.Tensor:
    """Each row of ``group`` ``[rows, features]`` on its own grid of ``levels`` even steps."""
    low, high = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
    scale = ((high - low) / (levels - 1)).clamp(min=1e-9)
    zero = (-low / scale).round()
    level = ((group / scale).round() + zero).clamp(0, levels - 1)
    return (level - zero) * scale
