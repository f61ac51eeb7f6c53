"""The journal's framing: payloads as bytes that survive a torn write, and back. Pure.

A record, little-endian: the segment's mark (8 random bytes, which its file's name tells), u32 length of the payload,
u32 CRC-32 of length and payload, the payload. A segment is records, and zeros behind them while its owner lives or
after it died. What a crash left half written at its end is no record; what was damaged before a later record is
skipped and counted, up to the next whole record.
Nobody who sends text to the proxy knows the mark, so no text can pose as a record after a crash.
"""

import struct
import zlib

MARK_BYTES = 8
MAX_PAYLOAD = 256 * 2**20
"""No exchange is larger: the proxy bounds a request and the copy of an answer far below."""
_HEAD = struct.Struct(f"<{MARK_BYTES}sII")
MAX_RECORD = _HEAD.size + MAX_PAYLOAD
_LENGTH = struct.Struct("<I")


def frame(payload: bytes, mark: bytes) -> bytes:
    """One record of the segment with that mark. Raises ValueError for a payload above MAX_PAYLOAD bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a record of {len(payload)} bytes is larger than the journal takes ({MAX_PAYLOAD})")
    return _HEAD.pack(mark, len(payload), _checksum(payload)) + payload


def leading(data: bytes, mark: bytes) -> tuple[list[bytes], int]:
    """The payloads of the whole records that the data begins with, and how many bytes those take."""
    payloads, start = [], 0
    while (payload := _record_at(data, start, mark)) is not None:
        payloads.append(payload)
        start += _HEAD.size + len(payload)
    return payloads, start


class Scanner:
    """Finds the records in the bytes of the segment with that mark, in whatever pieces they come.

    `damaged` counts the bytes that were skipped because a whole record followed them: lost records, where it is
    not 0. `pending` counts those that are no record yet.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._buffer = bytearray()
        self._doubtful = 0
        self.damaged = 0

    @property
    def pending(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are complete now."""
        self._buffer += data
        return self._found(at_end=False)

    def finish(self) -> list[bytes]:
        """All bytes have come: what a broken length had hidden. What stays `pending` was torn off."""
        return self._found(at_end=True)

    def _found(self, *, at_end: bool) -> list[bytes]:
        payloads, start = [], 0
        while True:
            payload = _record_at(self._buffer, start, self._mark)
            if payload is not None:
                payloads.append(payload)
                self.damaged += self._doubtful
                self._doubtful = 0
                start += _HEAD.size + len(payload)
            elif self._may_still_come(start) and not at_end:
                break
            else:
                skipped = self._next_mark(start + 1) - start
                if skipped <= 0:
                    break
                self._doubtful += skipped
                start += skipped
        del self._buffer[:start]
        return payloads

    def _may_still_come(self, start: int) -> bool:
        """Whether more bytes could make a record out of what stands here."""
        head = self._buffer[start : start + _HEAD.size]
        if len(head) < _HEAD.size:
            return self._mark.startswith(bytes(head[:MARK_BYTES]))
        mark, length, _ = _HEAD.unpack(head)
        incomplete = start + _HEAD.size + length > len(self._buffer)
        return bool(mark == self._mark) and length <= MAX_PAYLOAD and incomplete

    def _next_mark(self, start: int) -> int:
        """Where the next record may begin at the earliest; the end where it cannot."""
        found = self._buffer.find(self._mark, start)
        if found >= 0:
            return found
        # the mark itself may be cut
        return max(min(start, len(self._buffer)), len(self._buffer) - MARK_BYTES + 1)


def _record_at(data: bytes | bytearray, start: int, mark: bytes) -> bytes | None:
    if len(data) - start < _HEAD.size:
        return None
    found, length, checksum = _HEAD.unpack_from(data, start)
    end = start + _HEAD.size + length
    if found != mark or length > MAX_PAYLOAD or end > len(data):
        return None
    payload = bytes(memoryview(data)[start + _HEAD.size : end])
    return payload if _checksum(payload) == checksum else None


def _checksum(payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))
