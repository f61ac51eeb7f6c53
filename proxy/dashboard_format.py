"""How values read on a page and in a CSV file. Pure.

Everything that a client or a provider wrote passes `visible`: control characters, bidirectional overrides and other
characters without a glyph appear as their code points, so that no text can pretend to be another.
"""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

_SHOWN_AS_IT_IS = {"\n", "\t", "\u200d"}  # joiners make one glyph of several emoji
_HIDDEN = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
NONE = "–"


def visible(text: str) -> str:
    """The text with every character that has no glyph, or that moves others, as ⟨U+XXXX⟩."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_glyph(character) for character in text)


def _glyph(character: str) -> str:
    hidden = unicodedata.category(character) in _HIDDEN and character not in _SHOWN_AS_IT_IS
    return f"⟨U+{ord(character):04X}⟩" if hidden else character


def moment(value: datetime | None) -> str:
    """2026-11-24 23:59:59 UTC."""
    return NONE if value is None else f"{value.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def reference_name(reference: str) -> str:
    """What a page calls a reference: its directory's own name, or the whole name of one in a model hub."""
    if not reference.startswith(("/", "~", ".")):
        return reference
    return reference.rstrip("/").rpartition("/")[2] or reference


def duration(seconds: float | None) -> str:
    """Two units at most: 850 ms, 12.3 s, 4 min 5 s, 3 h 20 min, 9 d 4 h."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = int(seconds % size // small)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {small_unit}" if rest else "")
    raise AssertionError("the last unit begins at 60 s")


def number(value: float | None, digits: int = 3) -> str:
    """1,234 for a whole number; else with so many digits after the point."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞" if value > 0 else "−∞"


def e_value(log_e: float | None) -> str:
    """12, or 3e+08, of an e-value's natural logarithm."""
    if log_e is None:
        return NONE
    if log_e < math.log(1e5):
        return f"{math.exp(log_e):.3g}"
    exponent = log_e / math.log(10)
    digit, carried = round(10 ** (exponent % 1)), 0
    if digit == 10:
        digit, carried = 1, 1
    return f"{digit}e+{int(exponent) + carried:02}"


def quoted(text: str | None) -> str:
    """A text in quotation marks, with its line breaks as escapes; nothing for None."""
    return "" if text is None else json.dumps(text, ensure_ascii=False)


def as_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A CSV file (RFC 4180) whose cells no spreadsheet runs: what begins like a formula gets an apostrophe."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return output.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat()
    if isinstance(value, dict):
        return _cell([f"{name}={item}" for name, item in value.items()])
    if isinstance(value, (list, tuple)):
        return _cell(" ".join(str(item) for item in value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}" if value.lstrip(" ").startswith(_FORMULA) else value
    return value
