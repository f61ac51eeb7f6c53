"""Rows as a file whose every change shows: a chain of hashes over its lines. Pure.

Each line is a JSON object. The first is `{"format": "seedproof-export/1", "table": …}`, each record is
`{"n": 1, "record": {…}, "hash": "…"}`, the last is `{"count": N, "head": "…"}`. A record's hash is the SHA-256 of the
hash before it (of the first line's text for the first record) and of its own JSON with sorted keys; the head is the
last record's. Whoever keeps the head elsewhere can prove that the file is whole and as it was; a chain alone does not
stop somebody who rewrites all of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import BrokenExport

FORMAT = "seedproof-export/1"


@dataclass(frozen=True)
class Head:
    """What a whole export comes to."""

    table: str
    count: int
    head: str


class Chain:
    """The lines of an export in the making, without line ends; `count` records so far, `head` their last hash."""

    def __init__(self, table: str) -> None:
        self.opening = _canonical({"format": FORMAT, "table": table})
        self.head, self.count = _digest("", self.opening), 0

    def line(self, record: Mapping[str, Any]) -> str:
        """The next record's line; the record must be JSON-ready."""
        self.count += 1
        self.head = _digest(self.head, _canonical(record))
        return _canonical({"n": self.count, "record": record, "hash": self.head})

    def closing(self) -> str:
        """The last line."""
        return _canonical({"count": self.count, "head": self.head})


def verify(lines: Iterable[str]) -> Head:
    """Check an export. Raises BrokenExport that names the first line which is not as it was written."""
    number, table, link, count, end = 0, "", "", 0, None
    for number, line in enumerate(lines, 1):
        value = _parsed(line, number)
        if end is not None:
            raise BrokenExport(f"line {number} stands behind the export's end")
        if number == 1:
            if value.get("format") != FORMAT:
                raise BrokenExport(f"line 1 does not say {FORMAT}: this is no export of ours")
            table, link = str(value.get("table")), _digest("", _canonical(value))
        elif "record" in value:
            count += 1
            link = _digest(link, _canonical(value["record"]))
            if value.get("n") != count or value.get("hash") != link:
                raise BrokenExport(f"line {number} (record {count}) was changed, removed or moved")
        else:
            end = value
    if end is None:
        raise BrokenExport(f"the export breaks off after line {number}: its last line is missing")
    if end != {"count": count, "head": link}:
        raise BrokenExport(f"the last line does not fit the {count} records before it")
    return Head(table, count, link)


def _parsed(line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BrokenExport(f"line {number} is not JSON") from error
    if not isinstance(value, dict):
        raise BrokenExport(f"line {number} is not a JSON object")
    return value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _digest(link: str, text: str) -> str:
    return hashlib.sha256(f"{link}\n{text}".encode()).hexdigest()
