"""Password hashes, sessions and form tokens."""

import pytest

from proxy import dashboard_login as login

KEY = login.session_key(b"seed secret", "scrypt$1")


def test_a_password_matches_its_hash_and_no_other():
    stored = login.password_hash("päss word", b"0123456789abcdef")
    assert login.is_password_hash(stored)
    assert login.password_matches("päss word", stored)
    assert not login.password_matches("pass word", stored)
    assert login.password_hash("päss word", b"fedcba9876543210") != stored


@pytest.mark.parametrize("text", ["", "secret", "scrypt$32768$8$3$short$short", "$2b$12$abcdefghijklmnopqrstuv"])
def test_what_is_no_hash_is_seen(text):
    assert not login.is_password_hash(text)


def test_a_session_ends_and_cannot_be_made_up():
    cookie = login.new_session(KEY, now=1000.0, nonce=b"n" * 16)
    assert login.session_is_valid(KEY, cookie, now=1000.0 + login.SESSION_SECONDS - 1)
    assert not login.session_is_valid(KEY, cookie, now=1000.0 + login.SESSION_SECONDS)
    assert not login.session_is_valid(login.session_key(b"seed secret", "another password"), cookie, now=1000.0)
    later = str(int(cookie.split(".")[0]) + 1) + cookie[cookie.index("."):]
    for forged in ("", ".", "..", "9999999999.x.y", later, cookie[:-1], "９" * 10 + ".n.s", "1.n.\udcff"):
        assert not login.session_is_valid(KEY, forged, now=1000.0)


def test_a_form_token_belongs_to_its_session():
    one, other = (login.new_session(KEY, now=0, nonce=bytes([n]) * 16) for n in (1, 2))
    assert login.form_token_matches(KEY, one, login.form_token(KEY, one))
    assert not login.form_token_matches(KEY, one, login.form_token(KEY, other))
    assert not login.form_token_matches(KEY, one, "")
