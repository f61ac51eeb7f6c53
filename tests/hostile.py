"""A provider and a client that send exactly the bytes that a test gives them: what aiohttp would not let through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class RawUpstream:
    """Answers the n-th connection with the n-th script (the last one for all later ones), then closes or holds."""

    def __init__(self, scripts: Sequence[Sequence[bytes]], *, hold: bool = False, pause: float = 0) -> None:
        self.scripts, self.hold, self.pause = scripts, hold, pause
        self.connections = 0
        self.url = ""
        self._writers: list[asyncio.StreamWriter] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        self._writers.append(writer)
        try:
            await self._request(reader)
            for part in script:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(self.pause)
            if self.hold:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _request(reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        place = head.lower().find(b"content-length:")
        if place >= 0:
            await reader.readexactly(int(head[place + 15:].split(b"\r\n", 1)[0]))

    def stop(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def raw_upstream(
    *scripts: Sequence[bytes], hold: bool = False, pause: float = 0
) -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream(scripts, hold=hold, pause=pause)
    server = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()
        upstream.stop()
        await server.wait_closed()


async def say(address: str, data: bytes, *, seconds: float = 10.0) -> bytes:
    """Send bytes to `http://host:port`, and all that comes back until the other side closes."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), seconds)
    finally:
        writer.close()


def http(body: bytes, *headers: bytes, status: bytes = b"200 OK", length: bool = True) -> bytes:
    """A whole response."""
    lines = [b"HTTP/1.1 " + status, *headers, *([b"Content-Length: %d" % len(body)] if length else [])]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Parts in chunked coding."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + end
