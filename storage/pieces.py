"""Texts of an answer's tokens as one compressed blob, and back. Pure.

Kept apart from the scores, since they are what the answer says: they go when the answer goes. The layout is that of
`storage.scores`: for the tokens that were claimed and for those that the sampler contract drew, all bytes in one array
and where each token's bytes end in another.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

from storage.errors import CorruptScores
from storage.scores import pack_scores, unpack_scores

_KINDS = ("claimed", "predicted")


def pack_pieces(claimed: Sequence[bytes], predicted: Sequence[bytes]) -> bytes:
    """The bytes of each claimed and of each predicted token; a token may hold part of a character."""
    arrays: dict[str, Any] = {}
    for kind, pieces in zip(_KINDS, (claimed, predicted), strict=True):
        arrays[kind] = memoryview(b"".join(pieces))
        arrays[f"{kind}_ends"] = list(accumulate(len(piece) for piece in pieces))
    return pack_scores(arrays)


def unpack_pieces(blob: bytes) -> tuple[list[bytes], list[bytes]]:
    """What `pack_pieces` was given. Raises CorruptScores."""
    arrays = unpack_scores(blob)
    try:
        claimed, predicted = (list(_cut(arrays[kind].tobytes(), arrays[f"{kind}_ends"])) for kind in _KINDS)
    except KeyError as error:
        raise CorruptScores(f"stored pieces lack the array {error}") from error
    return claimed, predicted


def _cut(data: bytes, ends: Sequence[int]) -> Iterator[bytes]:
    for start, end in pairwise([0, *ends]):
        if not 0 <= start <= end <= len(data):
            raise CorruptScores("stored pieces end outside their bytes")
        yield data[start:end]
