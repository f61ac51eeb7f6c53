"""Requests and answers sealed at rest: AES-256-GCM under named keys, of which the first seals and all open.

A sealed value is the JSON object `{"$sealed": "KEY-ID:base64 of nonce, ciphertext and tag"}` in place of the plain one;
the text is deflated first. Keys come from the environment variable SEEDPROOF_PAYLOAD_KEYS, or from the file that
SEEDPROOF_PAYLOAD_KEYS_FILE names: `ID:BASE64` pairs, separated by commas, blanks or lines. To rotate, put a new key
first and keep the old ones as long as rows are sealed under them (`seedproof db reseal` renews those).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.errors import BadKeys

KEYS = "SEEDPROOF_PAYLOAD_KEYS"
KEYS_FILE = "SEEDPROOF_PAYLOAD_KEYS_FILE"
FIELD = "$sealed"
BLOB = b"SPK1"
KEY_BYTES = 32
_NONCE_BYTES = 12
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LARGEST = 2**30
_HINT = "write ID:KEY with 32 random bytes as the key, as in: k1:$(openssl rand -base64 32)"


class KeyRing:
    """The keys by id. Raises BadKeys where there is none, or one is not 32 bytes long."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if not keys or any(len(key) != KEY_BYTES for key in keys.values()):
            raise BadKeys(f"a key of payloads has {KEY_BYTES} bytes: {_HINT}")
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self.newest = next(iter(keys))

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """The keys that `ID:BASE64` pairs name. Raises BadKeys; its text repeats no key."""
        keys: dict[str, bytes] = {}
        for number, pair in enumerate(re.split(r"[\s,]+", text.strip()), 1):
            key_id, _, encoded = pair.partition(":")
            if not _ID.fullmatch(key_id) or key_id in keys:
                raise BadKeys(f"key {number} of the payload keys has no id of its own: {_HINT}")
            try:
                keys[key_id] = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError) as error:
                raise BadKeys(f"payload key {key_id!r} is not base64: {_HINT}") from error
        return cls(keys)

    def seal(self, text: str) -> str:
        """JSON text as the JSON text of a sealed value, under the newest key."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self.newest].encrypt(nonce, zlib.compress(text.encode(), 1), self.newest.encode())
        return f'{{"{FIELD}":"{self.newest}:{base64.b64encode(nonce + sealed).decode()}"}}'

    def seal_bytes(self, data: bytes) -> bytes:
        """Bytes sealed under the newest key: `SPK1`, the key's id after its length, nonce, ciphertext and tag."""
        nonce, key_id = os.urandom(_NONCE_BYTES), self.newest.encode()
        sealed = self._ciphers[self.newest].encrypt(nonce, data, key_id)
        return BLOB + bytes([len(key_id)]) + key_id + nonce + sealed

    def open_bytes(self, blob: bytes) -> bytes:
        """What was sealed; the blob itself where it is plain, or no key of this ring opens it."""
        from cryptography.exceptions import InvalidTag

        key_id = bytes_sealed_under(blob)
        if key_id is None or key_id not in self._ciphers:
            return blob
        start = len(BLOB) + 1 + len(key_id)
        nonce, sealed = blob[start : start + _NONCE_BYTES], blob[start + _NONCE_BYTES :]
        try:
            return self._ciphers[key_id].decrypt(nonce, sealed, key_id.encode())
        except (InvalidTag, ValueError):
            return blob

    def loads(self, text: str) -> Any:
        """JSON text as a value, opened if it is sealed under a key of this ring; else the value as it stands."""
        value = json.loads(text)
        key_id = sealed_under(value)
        if key_id is None or key_id not in self._ciphers:
            return value
        plain = self._opened(key_id, value[FIELD].partition(":")[2])
        return value if plain is None else json.loads(plain)

    def _opened(self, key_id: str, encoded: str) -> bytes | None:
        """None for what no key of this ring sealed: a client may send an object of that very shape."""
        from cryptography.exceptions import InvalidTag

        try:
            data = base64.b64decode(encoded, validate=True)
            packed = self._ciphers[key_id].decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], key_id.encode())
        except (InvalidTag, ValueError):
            return None
        return zlib.decompressobj().decompress(packed, _LARGEST)


def bytes_sealed_under(blob: bytes) -> str | None:
    """The id of the key that bytes are sealed under; None for plain ones."""
    if not blob.startswith(BLOB):
        return None
    length = blob[len(BLOB)]
    return blob[len(BLOB) + 1 : len(BLOB) + 1 + length].decode(errors="replace")


def sealed_under(value: Any) -> str | None:
    """The id of the key that a value looks sealed under; None for a plain one."""
    if not isinstance(value, dict) or len(value) != 1 or not isinstance(value.get(FIELD), str):
        return None
    key_id: str = value[FIELD].partition(":")[0]
    return key_id


def keys_from(environment: Mapping[str, str] = os.environ) -> KeyRing | None:
    """The key ring that the environment names; None where it names none. Raises BadKeys."""
    text, file = environment.get(KEYS, "").strip(), environment.get(KEYS_FILE, "").strip()
    if text and file:
        raise BadKeys(f"both {KEYS} and {KEYS_FILE} are set: keep one")
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadKeys(f"the file of payload keys {file} cannot be read") from error
    return KeyRing.parse(text) if text or file else None
