"""Who may look: password hashes, session cookies and form tokens. Pure: clock and randomness are arguments.

A session is a signed cookie, so that any number of processes honour it and none has to remember it. Its key follows
from the seed secret and the password hash: a new password ends every session.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

SESSION_SECONDS = 12 * 3600
# OWASP's second choice after Argon2id; 2**15 * 8 * 128 bytes = 32 MiB and about 0.1 s
_COST, _BLOCK, _PARALLEL = 2**15, 8, 3
_HASH = re.compile(r"scrypt\$\d+\$\d+\$\d+\$[A-Za-z0-9_-]{22,}\$[A-Za-z0-9_-]{43}")


def password_hash(password: str, salt: bytes) -> str:
    """`scrypt$N$r$p$salt$hash`; the salt is 16 random bytes."""
    digest = _scrypt(password, salt, _COST, _BLOCK, _PARALLEL)
    return f"scrypt${_COST}${_BLOCK}${_PARALLEL}${_text(salt)}${_text(digest)}"


def is_password_hash(text: str) -> bool:
    """Whether `password_hash` may have written it."""
    return _HASH.fullmatch(text) is not None


def password_matches(password: str, stored: str) -> bool:
    """Takes about 0.1 s: call it in a thread."""
    _, cost, block, parallel, salt, wanted = stored.split("$")
    found = _scrypt(password, _bytes(salt), int(cost), int(block), int(parallel))
    return hmac.compare_digest(found, _bytes(wanted))


def session_key(seed_secret: bytes, stored: str) -> bytes:
    """The key that signs sessions."""
    return hmac.digest(seed_secret, b"seedproof dashboard session\0" + stored.encode(), "sha256")


def new_session(key: bytes, *, now: float, nonce: bytes) -> str:
    """The cookie's value: when the session ends, a nonce, their signature."""
    body = f"{int(now) + SESSION_SECONDS}.{_text(nonce)}"
    return f"{body}.{_signature(key, body)}"


def session_is_valid(key: bytes, cookie: str, *, now: float) -> bool:
    """Whether the cookie is ours and has not ended."""
    if not cookie.isascii():
        return False
    body, _, signature = cookie.rpartition(".")
    end, _, _ = body.partition(".")
    is_ours = hmac.compare_digest(signature.encode(), _signature(key, body).encode())
    return is_ours and end.isdecimal() and int(end) > now


def form_token(key: bytes, session: str) -> str:
    """What a form of this session must bring back: no other site can know it."""
    return _signature(key, f"form\0{session}")


def form_token_matches(key: bytes, session: str, token: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(form_token(key, session).encode(), token.encode())


def _scrypt(password: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    memory = 2 * 128 * cost * block
    return hashlib.scrypt(password.encode(), salt=salt, n=cost, r=block, p=parallel, maxmem=memory, dklen=32)


def _signature(key: bytes, body: str) -> str:
    return _text(hmac.digest(key, body.encode(), "sha256"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
