"""An answer's tokens as its page shows them: each with its text, its scores and the shade of its margin. Pure."""

from __future__ import annotations

import codecs
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from storage.pieces import unpack_pieces
from storage.scores import unpack_scores

SHADES = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)
"""Upper bounds of the shades 0 to 5, in logits; 6 is beyond, 7 outside the support."""
OUTSIDE = 7
COLUMNS = (
    "position", "token_id", "text", "predicted_id", "predicted_text", "exact_match", "prob", "logprob", "entropy",
    "margin", "logit_rank", "gumbel_rank", "inside_support", "ambiguous",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Token:
    """One output token. `margin` is ∞ outside the support; texts are None where they are not kept (any more)."""

    position: int
    token_id: int | None
    """None, as `predicted_id`, where retention has taken the ids away."""
    text: str | None
    predicted_id: int | None
    predicted_text: str | None
    exact_match: bool
    prob: float
    logprob: float
    entropy: float
    margin: float
    logit_rank: int
    gumbel_rank: float
    inside_support: bool
    ambiguous: bool

    @property
    def shade(self) -> int:
        """0 for the token that was drawn, up to 6 by margin, 7 outside the support."""
        return bisect_left(SHADES, self.margin) if self.inside_support else OUTSIDE

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: an infinite margin or rank is null."""
        values = {name: getattr(self, name) for name in COLUMNS}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def tokens(scores: bytes, pieces: bytes | None, *, texts: bool = True) -> list[Token]:
    """The tokens of an audit's stored arrays (`storage.audits.NewAudit`); without `texts` only their numbers.

    Raises:
        storage.errors.CorruptScores: the arrays cannot be read.
    """
    arrays = unpack_scores(scores)
    count = len(arrays["token_ids"])
    claimed, predicted = _texts(pieces if texts else None, count)
    ambiguous = arrays.get("ambiguous") or [0] * count
    claims, draws = arrays["token_ids"], arrays["predicted_ids"]
    stripped = claims.typecode == "B"
    return [
        Token(
            position=i, token_id=None if stripped else claims[i], text=claimed[i],
            predicted_id=None if stripped else draws[i], predicted_text=predicted[i],
            exact_match=claims[i] == draws[i], prob=arrays["prob"][i],
            logprob=arrays["logprob"][i], entropy=arrays["entropy"][i], margin=arrays["margin"][i],
            logit_rank=arrays["logit_rank"][i], gumbel_rank=arrays["gumbel_rank"][i],
            inside_support=math.isfinite(arrays["margin"][i]), ambiguous=bool(ambiguous[i]),
        )
        for i in range(count)
    ]  # fmt: skip


def _texts(pieces: bytes | None, count: int) -> tuple[Sequence[str | None], Sequence[str | None]]:
    if pieces is None:
        return [None] * count, [None] * count
    claimed, predicted = unpack_pieces(pieces)
    if not len(claimed) == len(predicted) == count:
        return [None] * count, [None] * count
    return list(_readable(claimed)), [_alone(piece) for piece in predicted]


def _readable(pieces: Sequence[bytes]) -> Iterator[str]:
    """Each piece's text in its answer; a character whose bytes several tokens share stands at the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        text = decoder.decode(piece)
        yield text if text or not piece else _hex(piece)


def _alone(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return _hex(piece)


def _hex(piece: bytes) -> str:
    return f"⟨{piece.hex(' ')}⟩"
