"""A provider that costs next to nothing: canned answers over a hand-written HTTP/1.1.

Three ports: JSON answers, streams as fast as they go, and streams of one chunk every `--pace` seconds.

    usage: python -m bench.gateway.provider --json PORT --stream PORT --paced PORT [--pace SECONDS] [--chunks N]
"""

from __future__ import annotations

import argparse
import asyncio
import json

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def completion() -> bytes:
    """About 1 KB, as vLLM answers with token ids."""
    body = json.dumps({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "word " * 64}, "finish_reason": "stop",
            "logprobs": None, "stop_reason": None, "token_ids": list(range(1000, 1064)),
        }],
        "prompt_token_ids": list(range(32)),
        "usage": {"prompt_tokens": 32, "completion_tokens": 64, "total_tokens": 96},
    }).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def chunks(count: int) -> list[bytes]:
    """`count` events in chunked coding, the last one with its finish reason and `[DONE]`."""
    sent = []
    for number in range(count):
        last = number == count - 1
        choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": "stop" if last else None,
                  "token_ids": [1000 + number]}
        event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        data = b"data: " + json.dumps(event).encode() + b"\n\n" + (b"data: [DONE]\n\n" if last else b"")
        sent.append(b"%x\r\n%s\r\n" % (len(data), data))
    return sent


class Provider(asyncio.Protocol):
    """One connection; the bodies of requests are skipped by their Content-Length."""

    def __init__(self, answer: list[bytes], pace: float) -> None:
        self._answer, self._pace = answer, pace
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            place = head.find(b"content-length:")
            length = int(head[place + 15:].split(b"\r\n", 1)[0]) if place >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length:]
            self._send(0)

    def _send(self, number: int) -> None:
        if self._transport is None:
            return
        if not self._pace:
            for part in self._answer:
                self._transport.write(part)
        elif number < len(self._answer):
            self._transport.write(self._answer[number])
            asyncio.get_running_loop().call_later(self._pace, self._send, number + 1)


async def serve(ports: dict[str, int], count: int, pace: float) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    stream = chunks(count)
    answers = {
        "json": ([completion()], 0.0),
        "stream": ([HEAD, *stream, END], 0.0),
        "paced": ([HEAD + stream[0], *stream[1:-1], stream[-1] + END], pace),
    }
    for name, port in ports.items():
        answer, delay = answers[name]
        await loop.create_server(lambda answer=answer, delay=delay: Provider(answer, delay), "127.0.0.1", port,
                                 backlog=1024)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("json", "stream", "paced"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--pace", type=float, default=0.005)
    args = parser.parse_args()
    ports = {"json": args.json, "stream": args.stream, "paced": args.paced}
    asyncio.run(serve(ports, args.chunks, args.pace))


if __name__ == "__main__":
    main()
