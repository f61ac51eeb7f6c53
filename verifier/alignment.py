"""From an answer back to the ids that were sampled, by the best source there is.

1. `given`: ids that the server sent. They are claims: they must spell the text that the client saw.
2. `logprobs`: the answer's logprob entries, by their ids or by the exact bytes of each token.
3. `retokenized`: the text alone; the tokenizer's own encoding, which `verifier.lattice` then improves on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verifier.answers import REPLACEMENT, AnswerText, answer_texts, ends_by_token
from verifier.errors import Unsupported
from verifier.spelling import Spelling
from verifier.tokenization import ChatTokenizer
from verifier.tool_calls import spellings

_UNSEEN = 120  # characters of markers and syntax around each part of an answer that a client sees
_TOKEN_ID = re.compile(r"token_id:(\d{1,9})")  # vLLM's return_tokens_as_token_ids


@dataclass(frozen=True)
class Alignment:
    """Output ids and where they came from: "given", "logprobs" or "retokenized".

    `texts` are what `verifier.lattice` searches where only the text is known, the likeliest first; else empty.
    """

    token_ids: list[int]
    source: str
    texts: Sequence[AnswerText] = field(default=(), repr=False)


def align(
    choice: Mapping[str, Any], tokenizer: ChatTokenizer, *, complete: bool, prompt: str = "",
    stop: Sequence[str] = (), special: bool = False,
) -> Alignment:  # fmt: skip
    """Output ids of one folded choice.

    Args:
        choice: as `proxy.transcript` folds it.
        tokenizer: of the reference.
        complete: the answer was recorded to its end.
        prompt: text of the prompt, which may open the reasoning.
        stop: the request's stop strings, for servers that do not say which one ended the answer.
        special: special tokens were left in the text.

    Raises:
        Unsupported: `ids_do_not_match_text`, `tool_call_text`, `reasoning_text`, `text_not_unicode`,
            `text_not_spellable`, `tokenizer_not_spellable`.
    """
    if choice.get("token_ids"):
        check_spelling(choice["token_ids"], choice, tokenizer, complete=complete, stop=stop)
        return Alignment(list(choice["token_ids"]), "given")
    read = _ids_of_logprobs(choice, tokenizer, complete=complete, stop=stop)
    if read is not None:
        return Alignment(read, "logprobs")
    texts = answer_texts(choice, tokenizer, prompt=prompt, complete=complete, stop=stop, special=special)
    return Alignment(texts[0].token_ids(tokenizer.spelling), "retokenized", texts)


def check_spelling(
    token_ids: Sequence[int], choice: Mapping[str, Any], tokenizer: ChatTokenizer, *, complete: bool,
    stop: Sequence[str] = (),
) -> None:  # fmt: skip
    """Raise Unsupported("ids_do_not_match_text") unless the ids spell what the client saw.

    Allowed for: special tokens that were dropped, whitespace trimmed at the ends, a last character that is not
    complete, text cut at a stop string or by a lost connection, and markers around reasoning and tool calls.
    """
    spelling = tokenizer.spelling
    if max(token_ids) >= 2**31 or min(token_ids) < 0:
        raise Unsupported("ids_do_not_match_text", "a token id lies outside every vocabulary")
    if choice.get("reasoning") or choice.get("tool_calls"):
        spelled = _spells_parts(spelling.spell(token_ids).decode(errors="replace"), choice)
    else:
        stops = _stops(choice, stop)
        spelled = any(
            _spells(token_ids, choice.get("text") or "", spelling, special, stops, complete)
            for special in (False, True)
        )
    if not spelled:
        raise Unsupported("ids_do_not_match_text", "the provider's token ids do not spell the text it sent")


def _spells(
    token_ids: Sequence[int], text: str, spelling: Spelling, special: bool, stops: Sequence[str], complete: bool
) -> bool:
    shown = spelling.spell(token_ids, special=special).decode(errors="replace")
    if shown == text or _trimmed(shown) == _trimmed(text):
        return True
    if not complete:
        shown, text = shown.rstrip(REPLACEMENT), text.rstrip(REPLACEMENT)
        return shown.startswith(text) or text.startswith(shown)
    last = len(spelling.spell(token_ids[-1:]))
    return any(_cut_at(stop, shown, text, last) for stop in stops)


def _cut_at(stop: str, shown: str, text: str, last: int) -> bool:
    """Whether `text` is `shown` up to (or with) a stop string, which the last token, of `last` bytes, completed."""
    shown, body = shown.lstrip(), text.removesuffix(stop).strip()
    between, found, beyond = shown[len(body) :].partition(stop)
    whole = shown.startswith(body) and bool(found) and not between.strip()
    return whole and len(beyond.encode()) < max(last, 1)


def _spells_parts(shown: str, choice: Mapping[str, Any]) -> bool:
    """Whether reasoning, text and the tool calls' names and values stand in `shown`, in this order, and little else."""
    calls = choice.get("tool_calls") or []
    place = 0
    for piece in (choice.get("reasoning"), choice.get("text")):
        wanted = _trimmed(piece or "")
        found = shown.find(wanted, place)
        if found < 0:
            return False
        place = found + len(wanted)
    told = list(_told_by(calls))
    seen = sum(len(choice.get(name) or "") for name in ("reasoning", "text"))
    # the model may have spelled a character of the arguments as six: \u00fc
    arguments = sum(6 * len((call.get("function") or {}).get("arguments") or "") for call in calls)
    if len(shown.strip()) - seen - arguments > _UNSEEN * (1 + len(told)):
        return False
    return all(any(form in shown for form in spellings(value)) for value in told)


def _told_by(calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Strings that a model must have written to make these tool calls."""
    for call in calls:
        function = call.get("function") or {}
        yield str(function.get("name") or "")
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (ValueError, RecursionError):
            yield function["arguments"]
            continue
        yield from (key for key in arguments if isinstance(arguments, dict))


def _ids_of_logprobs(
    choice: Mapping[str, Any], tokenizer: ChatTokenizer, *, complete: bool, stop: Sequence[str]
) -> list[int] | None:
    """Ids by the logprob entries; None where an entry does not name one token, or they cover only a part."""
    entries = choice.get("logprobs") or []
    if entries and not entries[-1]["token"] and not entries[-1].get("bytes"):
        entries = entries[:-1]  # the end token, shown as clients see it
    ids = [_ids_of_entry(entry, tokenizer.spelling) for entry in entries]
    if not ids or None in ids:
        return None
    read = [token for tokens in ids for token in tokens or ()]
    if ends_by_token(choice, complete=complete, stop=stop) and read[-1] not in tokenizer.end_token_ids:
        read += tokenizer.end_token_ids[:1]
    try:
        check_spelling(read, choice, tokenizer, complete=complete, stop=stop)
    except Unsupported:
        if all(_names_a_token(entry) for entry in entries):
            raise
        return None  # texts without bytes are no claim of ids
    return read


def _names_a_token(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("bytes")) or type(entry.get("id")) is int or _TOKEN_ID.fullmatch(entry["token"]) is not None


def _ids_of_entry(entry: Mapping[str, Any], spelling: Spelling) -> list[int] | None:
    """The entry's token, behind a character's first byte if that was held back; None where it names no token.

    llama.cpp (server, streamed) sends nothing for a token that ends within a character: its bytes come with the next.
    """
    token = _id_of_entry(entry, spelling)
    if token is None:
        return None
    held = _held_back(entry, token, spelling)
    if not held:
        return [token]
    # more bytes than one may have been one token or several
    first = spelling.ids_by_bytes.get(held) if len(held) == 1 else None
    return None if first is None else [first, token]


def _held_back(entry: Mapping[str, Any], token: int, spelling: Spelling) -> bytes:
    own = spelling.token_bytes[token] if 0 <= token < len(spelling.token_bytes) else b""
    octets = bytes(entry.get("bytes") or ())
    before = octets.removesuffix(own)
    try:
        before.decode()
    except UnicodeDecodeError:
        return before if len(before) < len(octets) else b""
    return b""


def _id_of_entry(entry: Mapping[str, Any], spelling: Spelling) -> int | None:
    if type(entry.get("id")) is int:
        return int(entry["id"])
    token = entry["token"]
    named = _TOKEN_ID.fullmatch(token)
    if named:
        return int(named[1])
    octets = entry.get("bytes")
    spelled = bytes(octets) if octets else token.encode(errors="replace")
    if REPLACEMENT.encode() in spelled:  # part of a character: the server wrote it as text, and its bytes are lost
        return None
    found = spelling.ids_by_bytes.get(spelled)
    return spelling.pieces.get(token) if found is None and not octets else found  # some servers send bare pieces


def _stops(choice: Mapping[str, Any], stop: Sequence[str]) -> list[str]:
    told = choice.get("stop_reason")
    if isinstance(told, str):
        return [told]
    return [text for text in stop if text] if told is None and choice.get("finish_reason") == "stop" else []


def _trimmed(text: str) -> str:
    return text.rstrip(REPLACEMENT).strip()

