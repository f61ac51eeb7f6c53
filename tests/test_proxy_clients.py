from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.clients import Bucket, Client, Gate, compose_key, hash_key
from proxy.errors import RequestError

TODAY = date(2026, 11, 24)
KEY = compose_key("team_a", "0" * 64)


def client(**changes):
    return Client(name="team_a", key_sha256=hash_key(KEY), **changes)


def admit(gate, key=KEY, now=0.0, today=TODAY, address="1.2.3.4"):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return gate.admit(headers, address=address, now=now, today=today)


def test_without_clients_everybody_is_admitted():
    admission = admit(Gate(()), key=None)
    admission.check("any", None)
    admission.leave()
    assert admission.client is None


def test_key_admits_its_client():
    assert admit(Gate([client()])).client.name == "team_a"


@pytest.mark.parametrize("key", [
    None, "", "x", KEY + "0", KEY[:-1], KEY.replace("team_a", "team_b"), "sp_team_a_", "sp__", KEY.upper(), "\udcff",
])
def test_every_wrong_key_gets_the_same_answer(key):
    with pytest.raises(RequestError) as error:
        admit(Gate([client()]), key=key)
    with pytest.raises(RequestError) as expired:
        admit(Gate([client(expires=date(2026, 11, 23))]))
    assert (error.value.status, error.value.code) == (401, "invalid_api_key")
    assert str(error.value) == str(expired.value)


def test_key_is_good_on_its_last_day():
    assert admit(Gate([client(expires=TODAY)])).client is not None


@pytest.mark.parametrize(("scope", "upstream", "model", "reached"), [
    ({}, "u", "m", True), ({"upstreams": frozenset({"u"})}, "u", None, True),
    ({"upstreams": frozenset({"v"})}, "u", "m", False), ({"models": frozenset({"m"})}, "u", "m", True),
    ({"models": frozenset({"m"})}, "u", "n", False), ({"models": frozenset({"m"})}, "u", None, False),
])
def test_scope(scope, upstream, model, reached):
    admission = admit(Gate([client(**scope)]))
    if reached:
        admission.check(upstream, model)
    else:
        with pytest.raises(RequestError) as error:
            admission.check(upstream, model)
        assert error.value.status == 404


def test_concurrent_requests_are_counted_until_they_leave():
    gate = Gate([client(concurrent_requests=2)])
    first, _ = admit(gate), admit(gate)
    with pytest.raises(RequestError) as error:
        admit(gate)
    assert (error.value.status, error.value.retry_after) == (429, 1.0)
    first.leave()
    admit(gate)


def test_rate_tells_when_to_come_back():
    gate = Gate([client(requests_per_minute=2)])
    admit(gate)
    admit(gate)
    with pytest.raises(RequestError) as error:
        admit(gate, now=10.0)
    assert error.value.status == 429
    admit(gate, now=10.0 + error.value.retry_after)


def test_wrong_keys_are_slowed_down_by_address_but_right_ones_pass():
    gate = Gate([client()])
    statuses = []
    for _ in range(40):
        with pytest.raises(RequestError) as error:
            admit(gate, key="wrong")
        statuses.append(error.value.status)
    assert statuses == [401] * 30 + [429] * 10
    admit(gate)
    with pytest.raises(RequestError) as other:
        admit(gate, key="wrong", address="5.6.7.8")
    assert other.value.status == 401


def test_addresses_are_forgotten_before_they_fill_the_memory():
    gate = Gate([client()])
    for number in range(10_050):
        with pytest.raises(RequestError):
            admit(gate, key="wrong", address=str(number))
    assert len(gate._failures) == 10_000


def test_reload_keeps_what_runs_and_what_was_taken():
    old = Gate([client(concurrent_requests=1, requests_per_minute=1)])
    admission = admit(old)
    new = Gate([client(concurrent_requests=1, requests_per_minute=1)])
    new.carry_over(old)
    with pytest.raises(RequestError, match="at the same time"):
        admit(new)
    admission.leave()
    with pytest.raises(RequestError, match="a minute"):
        admit(new)


@given(st.floats(1, 1e4), st.lists(st.floats(0, 5), max_size=200))
def test_bucket_never_gives_more_than_its_rate(per_minute, pauses):
    bucket, now, taken = Bucket(per_minute, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.wait(now) == 0
    assert taken <= per_minute + now * per_minute / 60 + 1e-6
