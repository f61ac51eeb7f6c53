"""One message to one receiver. Every kind either succeeds, or raises Undelivered with whether another try can help.

Addresses come from the configuration only. Names are resolved here and nowhere else, and an address that is not public
is refused unless the receiver says `allow_private`: a name that someone else controls must not lead into this network.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import smtplib
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from verifier.errors import InputError

SEND_SECONDS = 15.0
COMMAND_SECONDS = 60.0
MOST_ANSWERED = 2000
"""Bytes of an answer that are kept of a failure."""
PATH = "/usr/local/bin:/usr/bin:/bin"
"""All that a command sees of the worker's environment, which holds secrets."""
_TRY_AGAIN = {408, 425, 429}


class Undelivered(Exception):  # noqa: N818 (named for what is wrong)
    """The receiver did not take it; `again` tells whether it may another time."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """Where messages go; which fields count follows from `kind`. `secret` signs (webhook), routes (pagerduty) or
    logs in (email)."""

    name: str
    kind: str
    url: str = field(default="", repr=False)
    secret: str | None = field(default=None, repr=False)
    allow_private: bool = False
    host: str = ""
    port: int = 0
    sender: str = ""
    to: tuple[str, ...] = ()
    user: str | None = None
    tls: str = "starttls"
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message; `id` is the same however often it is sent."""

    id: str
    payload: Mapping[str, Any]
    timestamp: int


async def deliver(receiver: Receiver, message: Message) -> None:
    """Send it. Raises Undelivered."""
    try:
        if receiver.kind == "email":
            await asyncio.wait_for(asyncio.to_thread(_mail, receiver, message), 2 * SEND_SECONDS)
        elif receiver.kind == "command":
            await _command(receiver, message)
        else:
            await _post(receiver, message)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise Undelivered("it did not answer in time", again=True) from error


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """`sha256=` and the HMAC-SHA-256 of `timestamp.body`, as the header X-Signature-256 has it."""
    return "sha256=" + hmac.digest(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hex()


def check_url(url: str, *, allow_private: bool, where: str) -> None:
    """What can be told without asking a name server. Raises InputError."""
    try:
        parsed = URL(url)
    except ValueError as error:
        raise InputError(f"{where}: its url is no URL") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"{where}: its url must begin with https://")
    if parsed.user is not None or parsed.password is not None:
        raise InputError(f"{where}: its url must hold no user and no password")
    if parsed.scheme == "http" and not allow_private:
        raise InputError(f"{where}: use https; http is for private addresses (allow_private = true)")
    with contextlib.suppress(ValueError):
        reason = _refusal(ipaddress.ip_address(parsed.host), allow_private)
        if reason is not None:
            raise InputError(f"{where}: {reason}")


class GuardedResolver(AbstractResolver):
    """Resolves names, and refuses those that lead to an address which the receiver may not have."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises Undelivered where any address of the name is refused: a mixed answer is an attack."""
        found = await self._inner.resolve(host, port, family)
        for result in found:
            reason = _refusal(ipaddress.ip_address(result["host"]), self._allow_private)
            if reason is not None:
                raise Undelivered(f"{host} resolves to an address that is not allowed: {reason}", again=True)
        return found

    async def close(self) -> None:
        """Nothing is held."""
        await self._inner.close()


def _refusal(address: ipaddress.IPv4Address | ipaddress.IPv6Address, allow_private: bool) -> str | None:
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if mapped is not None:
        return _refusal(mapped, allow_private)
    if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved:
        # link-local: where clouds keep their credentials
        return f"{address} is no address to send to"
    if not address.is_global and not allow_private:
        return f"{address} is private (allow_private = true allows it)"
    return None


async def _post(receiver: Receiver, message: Message) -> None:
    payload = dict(message.payload)
    if receiver.kind == "pagerduty":
        payload["routing_key"] = receiver.secret
    body = orjson.dumps(payload)
    headers = {"Content-Type": "application/json", "User-Agent": "seedproof", "X-Seedproof-Delivery": message.id}
    if receiver.kind == "webhook" and receiver.secret is not None:
        headers["X-Seedproof-Timestamp"] = str(message.timestamp)
        headers["X-Signature-256"] = signature(receiver.secret, message.timestamp, body)
    connector = aiohttp.TCPConnector(resolver=GuardedResolver(allow_private=receiver.allow_private))
    timeout = aiohttp.ClientTimeout(total=SEND_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
            session.post(receiver.url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            if 200 <= answer.status < 300:
                return
            told = (await answer.content.read(MOST_ANSWERED)).decode(errors="replace")
    except aiohttp.ClientError as error:
        # the error's own text may hold the URL, which may be a secret
        raise Undelivered(f"it cannot be reached ({type(error).__name__})", again=True) from error
    again = answer.status >= 500 or answer.status in _TRY_AGAIN
    raise Undelivered(f"it answered {answer.status}: {' '.join(told.split())[:200]}", again=again)


def _mail(receiver: Receiver, message: Message) -> None:
    mail = EmailMessage()
    mail["Subject"], mail["From"] = message.payload["subject"], receiver.sender
    mail["To"] = ", ".join(receiver.to)
    mail["Message-ID"] = f"<{message.id}@seedproof>"
    mail.set_content(message.payload["text"])
    context = ssl.create_default_context()
    try:
        if receiver.tls == "tls":
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                receiver.host, receiver.port, timeout=SEND_SECONDS, context=context
            )
        else:
            server = smtplib.SMTP(receiver.host, receiver.port, timeout=SEND_SECONDS)
        with server:
            if receiver.tls == "starttls":
                server.starttls(context=context)
            if receiver.user is not None and receiver.secret is not None:
                server.login(receiver.user, receiver.secret)
            server.send_message(mail)
    except smtplib.SMTPResponseException as error:
        raise Undelivered(f"the mail server answered {error.smtp_code}", again=error.smtp_code < 500) from error
    except smtplib.SMTPRecipientsRefused as error:
        raise Undelivered("the mail server refuses the recipients", again=False) from error
    except (OSError, smtplib.SMTPException) as error:
        raise Undelivered(f"the mail server cannot be used ({type(error).__name__})", again=True) from error


async def _command(receiver: Receiver, message: Message) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *receiver.argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE, env={"PATH": PATH, "SEEDPROOF_DELIVERY": message.id},
        )  # fmt: skip
    except OSError as error:
        raise Undelivered(f"the command cannot be started: {error.strerror}", again=True) from error
    try:
        _, told = await asyncio.wait_for(process.communicate(orjson.dumps(message.payload)), COMMAND_SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        said = " ".join(told.decode(errors="replace").split())[:200]
        raise Undelivered(f"the command ended with {process.returncode}: {said}", again=True)
