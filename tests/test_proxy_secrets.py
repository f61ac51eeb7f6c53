import pytest

from proxy.secrets import cleared, holds_secret

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
