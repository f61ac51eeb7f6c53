"""Clients that note which answers they received in full, and some that leave in the middle of one."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field

import aiohttp

EXCHANGE = "x-seedproof-exchange"
PATHS = {"json": 0.7, "stream": 0.25, "paced": 0.05}
"""Upstreams, each a path prefix, and how often it is asked."""
LEAVE = 0.03
"""Share of the clients that leave before the end."""
SECONDS = 60.0


@dataclass
class Seen:
    """Ids by how their answers ended; `refused` answers had none."""

    acknowledged: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    refused: int = 0
    unreachable: int = 0

    @property
    def count(self) -> int:
        return len(self.acknowledged)


def body(kind: str) -> bytes:
    """A request of about 1 KB."""
    return json.dumps({
        "model": "m", "messages": [{"role": "user", "content": "word " * 160}], "max_tokens": 64,
        "stream": kind != "json",
    }).encode()


BODIES = {kind: body(kind) for kind in PATHS}


async def ask_until(wanted: int, addresses: list[str], seen: Seen, rng: random.Random) -> None:
    """One client after another until `wanted` answers have been received in full by all of them together."""
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while seen.count < wanted:
            kind = rng.choices(list(PATHS), list(PATHS.values()))[0]
            leaves = rng.random() < LEAVE
            await ask(session, f"{rng.choice(addresses)}/{kind}/v1/chat/completions", kind, leaves, seen, rng)


async def ask(
    session: aiohttp.ClientSession, url: str, kind: str, leaves: bool, seen: Seen, rng: random.Random
) -> None:
    """One request; a client that leaves does so after some bytes of the answer."""
    exchange_id = None
    try:
        async with session.post(url, data=BODIES[kind]) as answer:
            exchange_id = answer.headers.get(EXCHANGE)
            if exchange_id is None:
                await answer.read()
                seen.refused += 1
                await asyncio.sleep(0.05)
            elif leaves:
                await answer.content.read(rng.randrange(1, 4000))
                answer.close()
                seen.left.append(exchange_id)
            else:
                whole = await answer.read()
                # a stream's client is content when it has read [DONE]; its connection's end tells it nothing more
                ended = kind == "json" or answer.status != 200 or whole.rstrip().endswith(b"data: [DONE]")
                (seen.acknowledged if ended else seen.broken).append(exchange_id)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
        if exchange_id is not None:
            seen.broken.append(exchange_id)
        else:
            seen.unreachable += 1
            await asyncio.sleep(0.05)


async def leave_at_each_byte(host: str, port: int, seen: Seen, *, step: int) -> int:
    """For each length of an answer, head included, a client that reads so much and then breaks the connection off.

    Returns how many there were. The last one of each kind reads everything.
    """
    asked = 0
    for kind in ("json", "stream"):
        whole = await _raw(host, port, kind, None)
        seen.acknowledged.append(_id(whole))
        for length in range(0, len(whole), step):
            part = await _raw(host, port, kind, length)
            asked += 1
            if EXCHANGE.encode() in part.lower() and b"\r\n\r\n" in part:
                seen.left.append(_id(part))
    return asked


async def _raw(host: str, port: int, kind: str, length: int | None) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    data = BODIES[kind]
    writer.write(
        f"POST /{kind}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    )
    try:
        return await (reader.read() if length is None else reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.transport.abort()


def _id(answer: bytes) -> str:
    for line in answer.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == EXCHANGE.encode():
            return value.strip().decode()
    raise ValueError(answer[:200])
