"""The answers that the proxy itself gives, in OpenAI's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web

from proxy.errors import RequestError, UpstreamError


def json_reply(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """`value` as JSON."""
    return web.Response(
        body=orjson.dumps(value), status=status, headers=headers, content_type="application/json"
    )


def request_error(error: RequestError) -> web.Response:
    """The client's fault, or ours for now (429, 503), as OpenAI would say it."""
    body = {"message": str(error), "type": _type(error.status), "param": error.param, "code": error.code}
    headers = {}
    if error.retry_after is not None:
        headers = {
            "Retry-After": str(math.ceil(error.retry_after)), "retry-after-ms": str(math.ceil(error.retry_after * 1000))
        }
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_reply({"error": body}, status=error.status, headers=headers)


def upstream_error(error: UpstreamError, own_headers: Mapping[str, str], exchange_id: str) -> web.Response:
    """The provider's failure before its answer began."""
    body = {"message": str(error), "type": "upstream_error", "param": None, "code": error.code}
    # the SDK replays a 5xx on its own: harmless if nothing was sent, a second bill if the provider has worked
    retry = {"x-should-retry": "false"} if error.reached else {}
    headers = {**own_headers, "x-request-id": exchange_id, **retry}
    return json_reply({"error": body}, status=error.status, headers=headers)


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
