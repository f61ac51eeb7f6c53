"""Tool calls in the syntax that a model writes them in: the inverse of what servers' tool parsers do.

The syntax is the model's own template's: an answer with and without the calls is rendered, and what the calls added is
what the model was trained to write. Names, keys and values stand in what clients saw; all that stands between them is
inferred. Servers parse the arguments and print them anew, so their spacing is not known either: several are offered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verifier.errors import Unsupported
from verifier.prefixes import common_prefix, common_suffix
from verifier.tokenization import ChatTokenizer

Pieces = list[tuple[str, bool]]
"""A text in pieces, each with whether the client saw it."""

_ASKED, _SAID = "seedproof-asked", "seedproof-said"
_CALL_ID = "seedproof"  # nine letters, as Mistral's template demands; what it adds to a call is no part of the answer
_HERMES = ("<tool_call>", "</tool_call>")


@dataclass(frozen=True)
class _Call:
    name: str
    arguments: Any
    sent: str

    @classmethod
    def of(cls, call: Mapping[str, Any]) -> _Call:
        function = call.get("function") or {}
        sent = function.get("arguments") or "{}"
        if not function.get("name"):
            raise Unsupported("tool_call_text", "a tool call has no name")
        try:
            return cls(str(function["name"]), json.loads(sent), sent)
        except ValueError as error:
            raise Unsupported("tool_call_text", "the arguments of a tool call are not JSON") from error

    def spacings(self) -> list[str]:
        """The arguments as templates print them, as they were sent, and without spaces."""
        compact = json.dumps(self.arguments, ensure_ascii=False, separators=(",", ":"))
        return list(dict.fromkeys([_dumped(self.arguments), self.sent, compact]))


def written_calls(calls: Sequence[Mapping[str, Any]], text: str, model: ChatTokenizer) -> list[Pieces]:
    """What the model wrote behind `text` to make these calls, the likeliest first.

    Raises Unsupported("tool_call_text") where neither template nor vocabulary shows it.
    """
    try:
        return _written_calls(calls, text, model)
    except RecursionError as error:
        raise Unsupported("tool_call_text", "the arguments of a tool call are nested too deeply") from error


def _written_calls(calls: Sequence[Mapping[str, Any]], text: str, model: ChatTokenizer) -> list[Pieces]:
    told = [_Call.of(call) for call in calls]
    syntax = _syntax(told, text, model)
    variants = []
    for n in range(3):
        varied = syntax
        for call in told:
            spacings = call.spacings()
            varied = varied.replace(_dumped(call.arguments), spacings[min(n, len(spacings) - 1)])
        variants += [varied] if varied not in variants else []
    return [_pieces(varied, told) for varied in variants]


def _syntax(calls: Sequence[_Call], text: str, model: ChatTokenizer) -> str:
    tools = [_tool(call) for call in calls]
    for offered in (None, tools):  # some templates cannot do without tools
        try:
            shown = _shown_by_template(calls, bool(text), offered, model)
        except Unsupported:
            continue
        if all(call.name in shown for call in calls):
            return shown
    if all(marker in model.marker_ids for marker in _HERMES):
        blocks = [f"{_HERMES[0]}\n{_hermes(call)}\n{_HERMES[1]}" for call in calls]
        return ("\n" if text else "") + "\n".join(blocks)
    raise Unsupported("tool_call_text", "the chat template does not show how the model writes tool calls")


def _shown_by_template(
    calls: Sequence[_Call], after_text: bool, tools: list[dict[str, Any]] | None, model: ChatTokenizer
) -> str:
    asked = {"role": "user", "content": _ASKED}
    said = {"role": "assistant", "content": _SAID}
    called = {**said, "tool_calls": [_template_call(call) for call in calls]}
    plain = model.render([asked, said], tools=tools, add_generation_prompt=False)
    whole = model.render([asked, called], tools=tools, add_generation_prompt=False)
    head = common_prefix(plain, whole)
    tail = common_suffix(plain, whole, min(len(plain), len(whole)) - head)
    added = whole[head : len(whole) - tail]
    follows = plain[:head].endswith(_SAID)
    if after_text and not follows:
        raise Unsupported("tool_call_text", "the template does not write tool calls behind a text")
    for end in model.end_token_ids:
        marker = model.spelling.token_bytes[end].decode(errors="replace")
        added = added.partition(marker)[0] if marker else added
    if _SAID in added:
        raise Unsupported("tool_call_text", "the template writes a text with tool calls otherwise than one without")
    added = added.replace(f', "id": "{_CALL_ID}"', "")
    return added if after_text else added.lstrip()


def _template_call(call: _Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": _CALL_ID, "type": "function", "function": function}


def _tool(call: _Call) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}, "required": []}
    return {"type": "function", "function": {"name": call.name, "description": "", "parameters": parameters}}


def _hermes(call: _Call) -> str:
    return _dumped({"name": call.name, "arguments": call.arguments})


def _pieces(syntax: str, calls: Sequence[_Call]) -> Pieces:
    pieces: Pieces = []
    place = 0
    for value in (value for call in calls for value in (call.name, *_leaves(call.arguments)) if value):
        spelled = next((form for form in spellings(value) if syntax.find(form, place) >= 0), None)
        if spelled is None:
            raise Unsupported("tool_call_text", "the template writes the arguments otherwise than they were sent")
        found = syntax.find(spelled, place)
        pieces += [(syntax[place:found], False), (spelled, True)]
        place = found + len(spelled)
    return [*pieces, (syntax[place:], False)]


def spellings(value: str) -> tuple[str, str, str]:
    """How a name, key or string may be written inside a call: in JSON, in ASCII JSON, in XML."""
    return _dumped(value)[1:-1], json.dumps(value)[1:-1], value


def _leaves(value: Any) -> Iterator[str]:
    """Keys and strings of an arguments object in order; other values have no one spelling."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)

