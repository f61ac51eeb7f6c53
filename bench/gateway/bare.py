"""The cheapest proxy that aiohttp makes: bytes in, bytes out, nothing read, nothing recorded. The yardstick.

    usage: python -m bench.gateway.bare --port PORT --to NAME=URL …
"""

from __future__ import annotations

import argparse

import aiohttp
from aiohttp import web
from yarl import URL


def app_to(bases: dict[str, str]) -> web.Application:
    """An application that passes every POST to /NAME/… on to the base URL of that name."""
    app = web.Application(client_max_size=32 << 20)
    session: list[aiohttp.ClientSession] = []

    async def sessions(_: web.Application):
        session.append(aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
        ))
        yield
        await session[0].close()

    async def handle(request: web.Request) -> web.StreamResponse:
        url = URL(bases[request.match_info["name"]] + "/" + request.match_info["path"], encoded=True)
        body = await request.read()
        headers = {"Content-Type": request.headers.get("Content-Type", ""), "Accept-Encoding": "identity"}
        async with session[0].post(url, data=body, headers=headers) as answer:
            kept = {"Content-Type": answer.headers["Content-Type"]}
            response = web.StreamResponse(status=answer.status, headers=kept)
            if "Content-Length" in answer.headers:
                response.content_length = answer.content_length
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    app.cleanup_ctx.append(sessions)
    app.router.add_post("/{name}/{path:.*}", handle)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", action="append", required=True)
    args = parser.parse_args()
    app = app_to(dict(pair.split("=", 1) for pair in args.to))
    web.run_app(app, host="127.0.0.1", port=args.port, access_log=None, handler_cancellation=True, print=None)


if __name__ == "__main__":
    main()
