"""Which headers cross the proxy, each way. Pure.

Hop-by-hop headers (RFC 9110 §7.6.1) and those that `Connection` names end here; so do cookies and, where the
upstream has a key of its own, every credential of the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from multidict import CIMultiDict

from proxy.secrets import SHORTEST

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade",
})
CREDENTIALS = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key"})
# content-encoding: the server has decoded the request's body already; expect: it has answered that, too
_REQUEST_ONLY_HERE = frozenset({
    "host", "content-length", "content-encoding", "accept-encoding", "expect", "cookie", "forwarded", "via",
    "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip",
})
_RESPONSE_ONLY_HERE = frozenset({
    "server", "date", "set-cookie", "set-cookie2", "alt-svc", "strict-transport-security",
})
OWN_PREFIX = "x-seedproof-"
"""A provider must not speak in our name, nor learn the client's words to us."""


def to_upstream(
    headers: Mapping[str, str], *, api_key: str | None, keep_credentials: bool = True
) -> CIMultiDict[str]:
    """The client's headers for the provider. Compression is declined, so that what is recorded can be
    read. Its credentials stay only where they are meant for the provider: where we have no key of our own and
    (`keep_credentials`) the client's is none of ours."""
    dropped = HOP_BY_HOP | _REQUEST_ONLY_HERE | _named_by_connection(headers)
    if api_key is not None or not keep_credentials:
        dropped |= CREDENTIALS
    kept = _kept(headers.items(), dropped)
    kept["Accept-Encoding"] = "identity"
    if api_key is not None:
        kept["Authorization"] = f"Bearer {api_key}"
    return kept


def to_client(headers: Mapping[str, str], own: Mapping[str, str], *, secret: str | None = None) -> CIMultiDict[str]:
    """The provider's headers for the client, and our own; none that tells our `secret`, the key for the provider.
    Content-Encoding stays: the bytes stay as they are."""
    if secret is not None and len(secret) >= SHORTEST:
        headers = CIMultiDict((name, value) for name, value in headers.items() if secret not in value)
    kept = _kept(headers.items(), HOP_BY_HOP | _RESPONSE_ONLY_HERE | _named_by_connection(headers))
    kept.update(own)
    if kept.get("Content-Type", "").startswith("text/event-stream"):
        # nginx and its kin would otherwise collect the stream into lumps
        kept["X-Accel-Buffering"] = "no"
    return kept


def credentials(headers: Mapping[str, str]) -> list[str]:
    """The secrets in a client's headers, without their scheme, for redaction."""
    values = [value for name, value in headers.items() if name.lower() in CREDENTIALS]
    return [secret for value in values if (secret := value.rpartition(" ")[2])]


def _kept(items: Iterable[tuple[str, str]], dropped: frozenset[str]) -> CIMultiDict[str]:
    return CIMultiDict(
        (name, value) for name, value in items
        if name.lower() not in dropped and not name.lower().startswith(OWN_PREFIX) and _encodable(value)
    )


def _named_by_connection(headers: Mapping[str, str]) -> frozenset[str]:
    return frozenset(
        token.strip().lower()
        for name, value in headers.items() if name.lower() == "connection"
        for token in value.split(",")
    )


def _encodable(value: str) -> bool:
    # aiohttp reads bytes that are no UTF-8 as lone surrogates, which cannot be written again
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
