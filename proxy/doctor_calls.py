"""Puts `proxy.doctor`'s questions straight to a provider, one after the other."""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime, timezone
from typing import Any

import aiohttp

from proxy.dashboard_format import visible
from proxy.doctor import QUESTIONS, Answer, body
from proxy.policy import effective
from proxy.protocol import CHAT
from proxy.transcript import Transcript
from proxy.upstreams import Model, Upstream
from storage.models import Exchange, Outcome

SECONDS = 300.0
MAX_BYTES = 8 << 20


async def ask_all(
    upstream: Upstream, model: Model, *, max_tokens: int
) -> tuple[dict[str, Answer], list[Exchange]]:
    """The answers by question, and those of chosen seeds as exchanges, which the verifier can replay."""
    answers: dict[str, Answer] = {}
    exchanges: list[Exchange] = []
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session:
        for question in QUESTIONS:
            sent = body(question, upstream, model, max_tokens)
            answers[question.name] = answer = await ask(session, upstream, sent)
            if answer.error is None and question.name in ("seed", "other seed"):
                exchanges.append(_exchange(upstream, model, sent, answer))
            if answer.error is not None and question.name == "seed":
                break
    return answers, exchanges


async def ask(session: aiohttp.ClientSession, upstream: Upstream, sent: dict[str, Any]) -> Answer:
    """One question's answer; whatever goes wrong is its error."""
    credentials = {} if upstream.api_key is None else {"Authorization": f"Bearer {upstream.api_key}"}
    url = upstream.base_url + CHAT.removeprefix("/v1")
    try:
        async with session.post(url, json=sent, headers=credentials, allow_redirects=False) as reply:
            copy = Transcript(event_stream=reply.content_type == "text/event-stream", choices=1, max_bytes=MAX_BYTES)
            data = bytearray()
            async for chunk in reply.content.iter_any():
                data += chunk
                copy.feed(chunk)
                if len(data) > MAX_BYTES:
                    break
            copy.end()
            status = reply.status
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        return Answer({}, f"{upstream.base_url} cannot be asked: {_line(str(error) or 'no answer in time', upstream)}")
    response = copy.finish()
    if status >= 300 or copy.error is not None:
        told = (copy.error or {}).get("message") or bytes(data[:200]).decode(errors="replace")
        return Answer(response, f"refused with {status}: {_line(str(told), upstream)}")
    if copy.malformed or copy.truncated:
        return Answer(response, "the answer is not what OpenAI's protocol says")
    return Answer(response)


def _line(text: str, upstream: Upstream) -> str:
    """A stranger's words in one short line; providers quote the key that they refuse."""
    if upstream.api_key:
        text = text.replace(upstream.api_key, "***")
    return visible(" ".join(text.split())[:200])


def _exchange(upstream: Upstream, model: Model, sent: dict[str, Any], answer: Answer) -> Exchange:
    return Exchange(
        id=str(uuid.uuid4()), created_at=datetime.now(timezone.utc), upstream=upstream.name, endpoint=CHAT,
        model=model.name, streamed=False, status=200, outcome=Outcome.COMPLETE, total_seconds=0.0, audit=True,
        reference=model.reference, sampler=model.sampler or "greedy", request=sent, forced=effective(sent),
        overridden={}, response=dict(answer.response),
    )  # fmt: skip
