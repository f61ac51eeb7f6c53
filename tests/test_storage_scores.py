"""Per-token arrays come back as they were packed; broken ones are refused with one error."""

import zlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CorruptScores, StorageError
from storage.scores import MAGIC, pack_scores, unpack_scores

NAMES = st.text(min_size=1, max_size=20)
FLOATS = st.lists(st.floats(width=32, allow_nan=False))
INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1))


@given(st.dictionaries(NAMES, st.one_of(FLOATS, INTEGERS), max_size=5))
def test_values_names_and_order_come_back(arrays):
    unpacked = unpack_scores(pack_scores(arrays))
    assert {name: list(items) for name, items in unpacked.items()} == arrays
    assert list(unpacked) == list(arrays)


def test_each_kind_of_value_has_its_type():
    packed = pack_scores({
        "exact_match": [True, False],
        "token_id": [3, -1],
        "large": [2**40],
        "margin": [0.5, 1],
        "raw": b"\x00\x01",
        "double": array("d", [1e300]),
    })
    types = {name: items.typecode for name, items in unpack_scores(packed).items()}
    assert list(types) == ["exact_match", "token_id", "large", "margin", "raw", "double"]
    assert list(types.values()) == ["B", "i", "q", "f", "B", "d"]


DTYPES = ["bool", "uint8", "int16", "int32", "int64", "uint64", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_arrays_keep_their_type(dtype):
    numpy = pytest.importorskip("numpy")
    values = numpy.arange(6).astype(dtype)[::2]
    items = unpack_scores(pack_scores({"x": values}))["x"]
    assert items.tolist() == values.tolist()
    assert items.itemsize == values.itemsize


def test_what_has_no_type_of_ours_is_refused():
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ValueError, match="one dimension"):
        pack_scores({"x": numpy.zeros((2, 2))})
    with pytest.raises(ValueError, match="use float32"):
        pack_scores({"x": numpy.zeros(2, dtype="float16")})


def test_repetitive_scores_are_small():
    assert len(pack_scores({"exact_match": [True] * 4096, "margin": [0.0] * 4096})) < 200


@given(st.binary(max_size=60), st.integers(0, 400))
def test_broken_bytes_give_one_error(noise, cut):
    blob = pack_scores({"margin": [float(i) ** 0.5 for i in range(50)]})
    broken = [noise, MAGIC + noise, blob[: min(cut, len(blob) - 1)], MAGIC + zlib.compress(noise + b"\x01")]
    for candidate in broken:
        with pytest.raises(CorruptScores):
            unpack_scores(candidate)


def test_a_small_blob_cannot_fill_the_memory():
    bomb = MAGIC + zlib.compress(bytes(65 * 2**20), 9)
    with pytest.raises(StorageError, match="larger than any answer"):
        unpack_scores(bomb)
