"""How a tokenizer's ids spell bytes, and how a text is written as the continuation of a prompt.

Tokenizers decode a whole sequence; alignment needs each token alone, in bytes, since one character may be split
between tokens. Two decoders cover today's models: byte-level (GPT-2's alphabet, one character per byte) and
SentencePiece-like ("▁" for a space, `<0xHH>` for a byte that no piece covers).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verifier.errors import Unsupported
from verifier.prefixes import common_prefix

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACES_AWAY = {"Strip", "Fuse"}  # they join a decoded sequence and trim its start; no token's own spelling changes


class Spelling:
    """Bytes of every id, and the encoding of text that the model wrote after a prompt.

    Args:
        backend: a `tokenizers.Tokenizer`; it is copied, never changed.

    Raises:
        Unsupported: reason `tokenizer_not_spellable`, the decoder is of another kind.
    """

    def __init__(self, backend: Any) -> None:
        from tokenizers import Tokenizer

        description = json.loads(backend.to_str())
        self.special_ids = frozenset(
            token["id"] for token in description.get("added_tokens") or [] if token["special"]
        )
        decoder = description.get("decoder")
        self.pieces: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.token_bytes = _spelled_vocabulary(self.pieces, decoder)
        # Llama 2's and Mistral's: what a text's first token spells is shown without its space
        self.drops_first_space = any(step["type"] == "Strip" and step["start"] for step in _flat(decoder, "decoders"))
        self._encoder: Any = Tokenizer.from_str(json.dumps(_continuing(description)))
        # a special token is dropped from the text that clients see: what looks like one was written in plain tokens
        self._encoder.encode_special_tokens = True

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of bytes that each id spells."""
        return np.array([len(spelled) for spelled in self.token_bytes], np.int64)

    @cached_property
    def ids_by_bytes(self) -> dict[bytes, int]:
        """The id that spells these bytes, by preference one that is neither special nor a bare-byte piece."""
        plain = [i for i in range(len(self.token_bytes)) if i not in self.special_ids]
        ordered = sorted(self.special_ids) + sorted(plain, key=self._is_byte_piece, reverse=True)
        return {self.token_bytes[token]: token for token in ordered if self.token_bytes[token]}

    @cached_property
    def _byte_pieces(self) -> frozenset[int]:
        found = (self._encoder.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token for token in found if token is not None)

    def _is_byte_piece(self, token: int) -> bool:
        return token in self._byte_pieces

    @cached_property
    def longest(self) -> int:
        """Number of bytes of the longest spelling."""
        return int(self.lengths.max(initial=1))

    def spell(self, token_ids: Sequence[int], *, special: bool = True) -> bytes:
        """Bytes of the ids; ids beyond the vocabulary spell nothing, nor do special ones unless asked for."""
        table, size = self.token_bytes, len(self.token_bytes)
        if special:
            return b"".join([table[token] if 0 <= token < size else b"" for token in token_ids])
        hidden = self.special_ids
        return b"".join([table[t] if 0 <= t < size and t not in hidden else b"" for t in token_ids])

    def ends(self, token_ids: Sequence[int]) -> NDArray[np.int64]:
        """Number of bytes spelled up to and including each id."""
        return np.cumsum(self.lengths[np.asarray(token_ids, np.int64)], dtype=np.int64)

    def encode(self, text: str) -> list[int]:
        """Ids by which a model would write `text` after a prompt. Raises Unsupported("text_not_spellable")."""
        return self.encode_bytes(utf8(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        data = [utf8(text) for text in texts]
        encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [
            self._checked(encoding.ids, spelled) for encoding, spelled in zip(encodings, data, strict=True)
        ]

    def encode_bytes(self, data: bytes) -> list[int]:
        """As `encode`, of bytes that may begin or end inside a character."""
        head, text, tail = _whole_characters(data)
        ids: list[int] = list(self._cover(head))
        if text:
            encoded = self._encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids
            ids += self._checked(encoded, data[len(head) : len(data) - len(tail)])
        return ids + list(self._cover(tail))

    def _checked(self, token_ids: list[int], data: bytes) -> list[int]:
        """The ids as far as they spell the data; what the tokenizer would change or drop is covered otherwise."""
        spelled = self.spell(token_ids)
        if spelled == data:
            return token_ids
        ends = self.ends(token_ids)
        kept = int(np.searchsorted(ends, common_prefix(spelled, data), "right"))
        return token_ids[:kept] + list(self._cover(data[int(ends[kept - 1]) if kept else 0 :]))

    def _cover(self, data: bytes) -> Iterator[int]:
        """The longest piece at each place: for bytes that the tokenizer itself cannot take or would change."""
        known, place = self.ids_by_bytes, 0
        while place < len(data):
            longest = min(self.longest, len(data) - place)
            size = next((n for n in range(longest, 0, -1) if data[place : place + n] in known), 0)
            if not size:
                raise Unsupported("text_not_spellable", "the tokenizer has no tokens for a part of the text")
            yield known[data[place : place + size]]
            place += size


def utf8(text: str) -> bytes:
    """UTF-8 of a text. Raises Unsupported("text_not_unicode") where it holds lone surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Unsupported("text_not_unicode", "the text holds lone surrogates, which no token spells") from error


def _whole_characters(data: bytes) -> tuple[bytes, str, bytes]:
    """The bytes of a cut character in front, the text, and what cannot be decoded behind it."""
    start = next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), min(4, len(data)))
    try:
        return data[:start], data[start:].decode(), b""
    except UnicodeDecodeError as error:
        end = start + error.start
        return data[:start], data[start:end].decode(), data[end:]


def _spelled_vocabulary(vocabulary: dict[str, int], decoder: dict[str, Any] | None) -> list[bytes]:
    steps = {step["type"]: step for step in _flat(decoder, "decoders")}
    replaced = [step for step in _flat(decoder, "decoders") if step["type"] == "Replace"]
    unknown = steps.keys() - {"ByteLevel", "ByteFallback", "Replace", "Metaspace"} - _SPACES_AWAY
    if unknown or not steps.keys() & {"ByteLevel", "ByteFallback", "Replace", "Metaspace"}:
        kinds = ", ".join(sorted(unknown)) or "none"
        raise Unsupported("tokenizer_not_spellable", f"no rule for how its tokens spell bytes (decoder: {kinds})")
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    alphabet = _byte_alphabet()
    for piece, token in vocabulary.items():
        if "ByteLevel" in steps:
            table[token] = _of_alphabet(piece, alphabet)
        else:
            table[token] = _of_pieces(piece, steps, replaced)
    return table


def _of_alphabet(piece: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:
        return piece.encode()


def _of_pieces(piece: str, steps: dict[str, dict[str, Any]], replaced: list[dict[str, Any]]) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte and "ByteFallback" in steps:
        return bytes([int(byte[1], 16)])
    for step in replaced:
        pattern, content = step["pattern"], step["content"]
        piece = (
            piece.replace(pattern["String"], content)
            if "String" in pattern
            else re.sub(pattern["Regex"], content, piece)
        )
    if "Metaspace" in steps:
        piece = piece.replace(steps["Metaspace"]["replacement"], " ")
    return piece.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable ones are themselves, the rest follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def _continuing(description: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without what belongs to a text's beginning or changes its characters."""
    normalizers = [step for step in _flat(description.get("normalizer"), "normalizers") if step["type"] == "Replace"]
    tokens = [{**token, "lstrip": False, "rstrip": False} for token in description.get("added_tokens") or []]
    return {
        **description,
        "added_tokens": tokens,
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": _without_prefix_space(description.get("pre_tokenizer")),
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _without_prefix_space(step: dict[str, Any] | None) -> dict[str, Any] | None:
    if step is None:
        return None
    if step["type"] == "Sequence":
        return {**step, "pretokenizers": [_without_prefix_space(inner) for inner in step["pretokenizers"]]}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if "add_prefix_space" in step else step


def _flat(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """Steps of a component that may be a sequence of sequences."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [found for inner in step[name] for found in _flat(inner, name)]
    return [step]
