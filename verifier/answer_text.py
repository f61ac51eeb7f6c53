"""The text of an answer while its tokens come: whole characters only, cut before the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Detokenizes one answer step by step, as vLLM does.

    Bytes of a character that is not complete yet are held back (and dropped if the answer ends there). Text
    that may be the beginning of a stop string is held back too, until the next tokens decide it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        self._context = 0  # decoding restarts here: a token's text can depend on the token before it
        self._read = 0
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int) -> str:
        """Take the next token; return the text now certain. ``stopped_by`` names a stop string that came."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._context : self._read])
        now = self._decode(self._ids[self._context :])
        if len(now) > len(before) and not now.endswith(REPLACEMENT):
            self._held += now[len(before) :]
            self._context, self._read = self._read, len(self._ids)
        return self._release()

    def finish(self) -> str:
        """The text still held back for a stop string that did not come."""
        rest, self._held = self._held, ""
        return rest

    def _release(self) -> str:
        places = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if places:
            place, self.stopped_by = min(places)
            text, self._held = self._held[:place], ""
            return text
        keep = max((overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop`` (less than all of it)."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
