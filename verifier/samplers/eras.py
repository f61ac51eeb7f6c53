"""Which version of an engine draws by which rules: the one table of version boundaries.

An era holds from its first version up to the next one's. The files of the engines say what each era's rules are and
from which sources they were read; `verifier.samplers.assumption` tells of versions that nobody has read.
"""

from __future__ import annotations

from collections.abc import Mapping

Version = tuple[int, ...]

ERAS: Mapping[str, Mapping[Version, str]] = {
    "vllm": {(0, 8, 5): "v1", (0, 25): "v2"},  # the runner of dense models where an id names none
    "vllm/v2": {(0, 12): "A", (0, 17): "B", (0, 19): "C", (0, 22): "D", (0, 24): "E", (0, 31): "F"},
    "vllm/cpu": {(0, 11): "exponential", (0, 32): "splitmix"},
    "sglang": {(0, 5, 3): "0.5.3", (0, 5, 4): "0.5.4", (0, 5, 9): "0.5.9", (0, 5, 18): "0.5.18"},
    # builds; the last two boundaries are our placing of dated changes, within some weeks
    "llama.cpp": {(0,): "sorts", (6335,): "single pass", (9900,): "always draws"},
    "llama-cpp-python": {(0,): "sorts", (0, 3, 17): "single pass", (0, 3, 34): "always draws"},
    "ollama": {(0,): "go", (0, 30): "llama.cpp"},
    "mlx": {(0,): "gumbel", (0, 32, 1): "inverse cdf"},
}


def era(engine: str, version: Version | None) -> str | None:
    """The era of an engine's version, the newest without one or for a later one; None before the first."""
    eras = ERAS[engine]
    if version is None:
        return eras[max(eras)]
    reached = [start for start in eras if version >= start]
    return eras[max(reached)] if reached else None
