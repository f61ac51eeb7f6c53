"""What goes into the journal comes out as the row that the database would have got."""

from datetime import timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_rows import NOON, exchange

from storage.errors import CorruptRecord
from storage.exchange_codec import json_text, pack, row_of, unpack

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=9,
)


@given(JSON, st.text(), st.none() | st.floats(0, 1e6))
def test_a_row_survives(value, model, seconds):
    row = row_of(exchange(1, request={"x": value}, model=model, first_byte_seconds=seconds))
    assert unpack(pack(row)) == row


def test_moments_are_kept_to_the_microsecond_in_utc():
    moment = NOON.replace(microsecond=7).astimezone(timezone(timedelta(hours=5)))
    row = unpack(pack(row_of(exchange(1, created_at=moment))))
    assert (row.created_at, row.created_at.utcoffset()) == (moment, timedelta(0))


def test_what_json_cannot_hold_is_still_stored():
    assert json_text({"a": "\ud800", "b": float("nan")}) == '{"a":"\\ud800","b":null}'
    deep: list = []
    for _ in range(1000):
        deep = [deep]
    assert json_text(deep).startswith(("[", '{"unstorable"'))
    assert row_of(exchange(1, model="a\0\ud800")).model == "a\ufffd\ufffd"


def test_contents_are_sealed_and_sampling_is_not():
    row = row_of(exchange(1), seal=lambda text: f'{{"$sealed":{len(text)}}}')
    assert row.request.startswith('{"$sealed"')
    assert row.response.startswith('{"$sealed"')
    assert row.forced == '{"seed":7,"temperature":1.0}'


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_record_that_is_cut_or_damaged_is_refused(cut):
    whole = pack(row_of(exchange(1)))
    with pytest.raises(CorruptRecord):
        unpack(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(CorruptRecord):
        unpack(b"\x02" + whole[1:])
    with pytest.raises(CorruptRecord):
        unpack(whole[:21] + b"\xff" * 9 + whole[30:])
