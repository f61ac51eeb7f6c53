"""Requests at a fixed concurrency over kept-alive connections; prints one JSON line of what was seen.

    usage: python -m bench.gateway.load URL --concurrency N (--seconds S | --requests N) [--header NAME:VALUE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Seen:
    """Seconds of each whole answer and of its first byte, and how many reads brought body bytes."""

    totals: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    reads: int = 0
    errors: int = 0


def request_bytes(url: str, *, model: str, stream: bool, headers: list[str]) -> bytes:
    """A chat request of about 1 KB."""
    parts = urlsplit(url)
    body = json.dumps({
        "model": model, "messages": [{"role": "user", "content": "word " * 160}], "max_tokens": 64, "stream": stream,
    }).encode()
    lines = [
        f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json",
        "Accept: application/json", "User-Agent: OpenAI/Python 3.54.0", "Accept-Encoding: gzip, deflate, br",
        f"Content-Length: {len(body)}", *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Client(asyncio.Protocol):
    """One connection: the next request goes out when the last answer is whole."""

    def __init__(self, request: bytes, seen: Seen, more: asyncio.Event, left: list[int]) -> None:
        self._request, self._seen, self._stop, self._left = request, seen, more, left
        self._buffer = bytearray()
        self._body: int | None = None  # bytes still to come; -1: chunked; None: still in the head
        self._tail = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.done.done():
            self._seen.errors += 1
            self.done.set_result(None)

    def _next(self) -> None:
        if self._stop.is_set() or self._left[0] <= 0:
            if not self.done.done():
                self.done.set_result(None)
            self._transport.close()
            return
        self._left[0] -= 1
        self._body, self._tail, self._first = None, b"", 0.0
        self._started = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._body is None:
            self._first = self._first or time.perf_counter()
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = bytes(self._buffer[:end]).lower(), bytes(self._buffer[end + 4:])
            self._buffer.clear()
            if not head.startswith(b"http/1.1 200"):
                self._seen.errors += 1
            place = head.find(b"content-length:")
            self._body = int(head[place + 15:].split(b"\r\n", 1)[0]) if place >= 0 else -1
        if data:
            self._seen.reads += 1
        if self._body >= 0:
            self._body -= len(data)
            whole = self._body <= 0
        else:
            self._tail = (self._tail + data)[-5:]
            whole = self._tail == b"0\r\n\r\n"
        if whole:
            now = time.perf_counter()
            self._seen.totals.append(now - self._started)
            self._seen.firsts.append(self._first - self._started)
            self._next()


async def run(
    url: str, *, concurrency: int, seconds: float, requests: int, headers: list[str], model: str, stream: bool
) -> Seen:
    """Load `url` for `seconds`, or with `requests` in all."""
    parts = urlsplit(url)
    loop, seen, stop, left = asyncio.get_running_loop(), Seen(), asyncio.Event(), [requests or 10**12]
    request = request_bytes(url, model=model, stream=stream, headers=headers)
    clients = []
    for _ in range(concurrency):
        _, client = await loop.create_connection(
            lambda: Client(request, seen, stop, left), parts.hostname, parts.port
        )
        clients.append(client)
    if not requests:
        loop.call_later(seconds, stop.set)
    await asyncio.gather(*(client.done for client in clients))
    return seen


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--model", default="m")
    parser.add_argument("--stream", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    seen = asyncio.run(run(
        args.url, concurrency=args.concurrency, seconds=args.seconds, requests=args.requests, headers=args.header,
        model=args.model, stream=args.stream,
    ))
    print(json.dumps({
        "requests": len(seen.totals), "errors": seen.errors, "reads": seen.reads,
        "seconds": time.perf_counter() - started,
        "p50_ms": 1e3 * quantile(seen.totals, 0.5), "p99_ms": 1e3 * quantile(seen.totals, 0.99),
        "first_p50_ms": 1e3 * quantile(seen.firsts, 0.5), "first_p99_ms": 1e3 * quantile(seen.firsts, 0.99),
    }))


if __name__ == "__main__":
    main()
