import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.secrets import Mask, cleared, holds_secret

KEY = "sk-canary-0123456789"


@pytest.mark.parametrize("value", [
    KEY, f"Bearer {KEY}!", {"a": [{"b": f"x{KEY}"}]}, {KEY: 1}, [0, [KEY]], {"logprobs": [{"token": KEY}]},
])
def test_a_key_is_found_and_cleared_wherever_it_stands(value):
    assert holds_secret(value, [KEY])
    assert not holds_secret(cleared(value, [KEY]), [KEY])
    assert KEY not in str(cleared(value, [KEY]))


def test_what_is_no_secret_stays():
    value = {"text": "none of these", "token_ids": [1, 2], "n": None, "x": 1.5}
    assert cleared(value, [KEY, "none"]) == value
    assert not holds_secret(value, [KEY, "none"])


def masked(*pieces, key=KEY):
    mask = Mask(key)
    return [*(mask.feed(piece) for piece in pieces), mask.end()]


@pytest.mark.parametrize("text", [
    f"wrong key: {KEY}", f"{KEY}{KEY}", f"sk-canary{KEY}sk", f"sk-canary-sk-canary-{KEY}", "sk-canary-012345678", "sk",
])
def test_a_key_is_masked_wherever_the_bytes_are_cut(text):
    whole = text.replace(KEY, "*" * len(KEY)).encode()
    for at in range(len(text) + 1):
        for to in range(at, len(text) + 1):
            told = masked(text[:at].encode(), text[at:to].encode(), text[to:].encode())
            assert b"".join(told) == whole
            assert KEY.encode() not in b"".join(told[:-1])


@given(st.lists(st.sampled_from([b"s", b"sk", b"sk-canary", KEY[3:].encode(), KEY.encode(), b"\n\n", b""]), max_size=9))
def test_masking_in_pieces_is_masking_the_whole(pieces):
    assert b"".join(masked(*pieces)) == b"".join(pieces).replace(KEY.encode(), b"*" * len(KEY))


def test_nothing_waits_that_is_no_beginning_of_the_key():
    pieces = [b'data: {"a": "s"}\n\n', b"data: [DONE]\n\n", b"\x00\xff"]
    assert masked(*pieces) == [*pieces, b""]
    assert masked(*pieces, key=None) == masked(*pieces, key="none") == [*pieces, b""]
    assert masked(b"none of these", key="none") == [b"none of these", b""]
