"""Named per-token arrays as one compressed blob, and back. Pure; standard library only.

Layout, little-endian: `b"SPS1"`, then one zlib stream of

    u16 number of arrays, then for each:
        u8 length of its name, the name in UTF-8, one ASCII type code, u32 number of items, the items

Type codes are those of `array` and `struct` with their standard sizes: b B (8 bits), h H (16), i I (32),
q Q (64), f (float32), d (float64). The layout names all that it holds, so that any language
reads it without this file.
"""

import struct
import sys
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from storage.errors import CorruptScores

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"SPS1"
_SIZES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8, "f": 4, "d": 8}
# what one machine calls "long" another calls "int"; booleans travel as bytes
_SAME_AS = {"?": "B", "c": "B", "l": "iq", "L": "IQ"}
# 16 float32 scores for each of a million tokens; far below what would fill a machine's memory
_UNPACKED_LIMIT = 64 * 2**20


def pack_scores(arrays: "Mapping[str, Sequence[float] | Buffer]") -> bytes:
    """The arrays as one blob.

    A list of bool becomes u8, of int i32 (i64 where a value needs it), of float f32; anything with the buffer
    protocol (array.array, a NumPy array of one dimension) keeps its own type. Raises ValueError or TypeError
    for what fits none.
    """
    body = bytearray(struct.pack("<H", len(arrays)))
    for name, values in arrays.items():
        items = _as_array(values)
        label = name.encode()
        body += struct.pack("<B", len(label)) + label
        body += struct.pack("<cI", items.typecode.encode(), len(items))
        body += _little_endian(items).tobytes()
    return MAGIC + zlib.compress(bytes(body), 6)


def unpack_scores(blob: bytes) -> "dict[str, array[Any]]":
    """The arrays of `pack_scores`, by name, in their order. Raises CorruptScores."""
    body = _inflate(blob)
    try:
        (count,) = struct.unpack_from("<H", body)
        offset = 2
        arrays: dict[str, array[Any]] = {}
        for _ in range(count):
            name, items, offset = _read_array(body, offset)
            arrays[name] = items
    except (struct.error, ValueError, KeyError) as error:
        raise CorruptScores(f"stored scores do not follow their layout ({error})") from error
    if offset != len(body):
        raise CorruptScores("stored scores go on after their last array")
    return arrays


def _as_array(values: "Sequence[float] | Buffer") -> "array[Any]":
    try:
        view = memoryview(values)  # type: ignore[arg-type]
    except TypeError:
        return _array_of_sequence(values)  # type: ignore[arg-type]
    if view.ndim != 1:
        raise ValueError(f"an array of scores has one dimension, not {view.ndim}")
    items: array[Any] = array(_typecode(view.format, view.itemsize))
    items.frombytes(view.tobytes())
    return items


def _array_of_sequence(values: Sequence[float]) -> "array[Any]":
    if all(isinstance(value, bool) for value in values) and values:
        return array("B", [int(value) for value in values])
    if all(isinstance(value, int) for value in values) and values:
        integers = [int(value) for value in values]
        small = all(-(2**31) <= value < 2**31 for value in integers)
        return array("i" if small else "q", integers)
    return array("f", values)


def _typecode(format: str, itemsize: int) -> str:  # noqa: A002 (memoryview's word)
    for code in _SAME_AS.get(format, format):
        if _SIZES.get(code) == itemsize:
            return code
    raise ValueError(f"scores of type {format!r} ({itemsize} bytes) cannot be packed; use float32 or int32")


def _little_endian(items: "array[Any]") -> "array[Any]":
    if sys.byteorder == "little":
        return items
    swapped = items[:]
    swapped.byteswap()
    return swapped


def _inflate(blob: bytes) -> bytes:
    if blob[:4] != MAGIC:
        raise CorruptScores("stored scores do not start with SPS1")
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(blob[4:], _UNPACKED_LIMIT)
    except zlib.error as error:
        raise CorruptScores(f"stored scores cannot be decompressed ({error})") from error
    if not inflater.eof:
        raise CorruptScores("stored scores are cut off or larger than any answer")
    return body


def _read_array(body: bytes, offset: int) -> "tuple[str, array[Any], int]":
    (length,) = struct.unpack_from("<B", body, offset)
    name = body[offset + 1 : offset + 1 + length].decode()
    code, count = struct.unpack_from("<cI", body, offset + 1 + length)
    start = offset + 1 + length + 5
    end = start + count * _SIZES[code.decode()]
    if end > len(body):
        raise ValueError(f"array {name!r} is cut off")
    items: array[Any] = array(code.decode())
    items.frombytes(body[start:end])
    return name, _little_endian(items), end


def without_ids(blob: bytes) -> bytes:
    """The same scores without what the answer said: of the token ids only whether they were equal is left (0 or 1)."""
    arrays = unpack_scores(blob)
    if "token_ids" in arrays and "predicted_ids" in arrays:
        pairs = zip(arrays["token_ids"], arrays["predicted_ids"], strict=True)
        arrays["token_ids"] = array("B", [int(claimed != predicted) for claimed, predicted in pairs])
        arrays["predicted_ids"] = array("B", bytes(len(arrays["token_ids"])))
    return pack_scores(arrays)
