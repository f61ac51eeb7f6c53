"""Texts of tokens: every byte comes back, and a damaged blob is an error of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CorruptScores
from storage.pieces import pack_pieces, unpack_pieces
from storage.scores import pack_scores

PIECES = st.lists(st.binary(max_size=9), max_size=30)


@given(PIECES, PIECES)
def test_what_was_packed_comes_back(claimed, predicted):
    assert unpack_pieces(pack_pieces(claimed, predicted)) == (claimed, predicted)


@pytest.mark.parametrize(
    "arrays",
    [
        {"claimed": memoryview(b"ab"), "claimed_ends": [1, 3], "predicted": memoryview(b""), "predicted_ends": []},
        {"claimed": memoryview(b"ab"), "claimed_ends": [2, 1], "predicted": memoryview(b""), "predicted_ends": []},
        {"claimed": memoryview(b"ab"), "claimed_ends": [1, 2]},
    ],
)
def test_pieces_that_end_nowhere_are_an_error(arrays):
    with pytest.raises(CorruptScores):
        unpack_pieces(pack_scores(arrays))
