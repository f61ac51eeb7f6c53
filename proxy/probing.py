"""Private prompts that look like traffic: what is asked, and when; all chance comes from the caller's generator.

A provider that knows a probe when it sees one serves it faithfully. So probes take the proxy's own path, come from the
same client library as traffic, at times that nobody can foresee, and with lengths and streaming that vary.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from proxy.errors import ConfigError

_ASKS = (
    "Explain {} to a child.", "Write a short story about {}.", "What are the pros and cons of {}?", "Summarise {}.",
    "Give me a plan for a weekend around {}.", "Write an email to a colleague about {}.", "How did {} begin?",
    "List ten facts on {}.", "What do people get wrong about {}?", "Compare {} with its best alternative.",
    "Write a poem on {}.", "How would I teach {} in one hour?", "Draft a blog post on {}.", "What is next for {}?",
)  # fmt: skip
_THINGS = (
    "bread", "tides", "chess openings", "beekeeping", "container ships", "sourdough", "the violin", "compound interest",
    "volcanoes", "bicycle gears", "Roman roads", "coral reefs", "night trains", "sign language", "typography", "salt",
    "weather maps", "urban gardens", "the printing press", "sleep", "glaciers", "probability", "lighthouses", "tea",
    "recursion", "old clocks", "solar panels", "cheese", "map projections", "public libraries", "kites", "soil",
)  # fmt: skip
_WAYS = ("", " Be brief.", " Use plain words.", " Answer in three paragraphs.", " Give one example.", " Add a title.")


@dataclass(frozen=True)
class Probe:
    """One request."""

    messages: list[dict[str, Any]]
    max_tokens: int
    stream: bool


def generated(chance: random.Random) -> list[dict[str, Any]]:
    """A conversation of one message that nobody has seen before, or that many might send."""
    text = chance.choice(_ASKS).format(chance.choice(_THINGS)) + chance.choice(_WAYS)
    return [{"role": "user", "content": text}]


def read_prompts(lines: Iterable[str], where: str) -> list[list[dict[str, Any]]]:
    """A user's prompts: a line is a text, or a JSON object with `messages`.

    Raises:
        ConfigError: a line is no conversation, or there is none.
    """
    found = [_conversation(line, f"{where}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"{where} holds no prompts: write one a line")
    return found


def _conversation(line: str, where: str) -> list[dict[str, Any]]:
    if not line.lstrip().startswith("{"):
        return [{"role": "user", "content": line.strip()}]
    try:
        messages = json.loads(line)["messages"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is no JSON object with messages") from error
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ConfigError(f"{where}: messages must be a list of objects")
    return messages


def probe(prompts: Sequence[list[dict[str, Any]]] | None, max_tokens: int, chance: random.Random) -> Probe:
    """The next request: a prompt of the user's, or a generated one; half to all of `max_tokens`, streamed or not."""
    messages = chance.choice(prompts) if prompts else generated(chance)
    return Probe(messages, chance.randint(max(1, max_tokens // 2), max_tokens), chance.random() < 0.5)


def pause(per_minute: float, chance: random.Random) -> float:
    """Seconds until the next request: exponential, as calls of independent people are, at most ten times the mean."""
    return min(chance.expovariate(per_minute / 60), 600 / per_minute)
