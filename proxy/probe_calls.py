"""Sends probes through the proxy's own path and remembers which exchanges they became, so that a run can be resumed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from proxy.config import ProxyConfig
from proxy.errors import ConfigError, ProbeError
from proxy.probing import Probe, pause, probe
from proxy.surface import EXCHANGE_HEADER
from proxy.upstreams import Mode, Upstream
from storage.database import open_database
from storage.models import Exchange

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_POLL_SECONDS = 0.2


def for_probes(config: ProxyConfig, upstream: Upstream, model: str, *, temperature: float | None) -> ProxyConfig:
    """The configuration of a proxy for probes alone: one upstream, every exchange audited, on a port of its own.

    Raises:
        ConfigError: the model is not configured.
    """
    if model not in upstream.models:
        raise ConfigError(f"upstream {upstream.name!r} lists no model {model!r}; add its reference and sampler first")
    chosen = upstream.models[model]
    if temperature is not None:
        policy = replace(chosen.policy, mode=Mode.FORCE)
        chosen = replace(chosen, sampling=replace(chosen.sampling, temperature=temperature), policy=policy)
    only = replace(upstream, models={model: chosen}, audit_rate=1.0)
    return replace(
        config, host="127.0.0.1", port=0, upstreams=(only,), clients=(), dashboard=None, metrics=None
    )


@asynccontextmanager
async def own_proxy(config: ProxyConfig) -> AsyncIterator[str]:
    """A proxy in this process; at the end all its records are in the database."""
    from proxy.app import RECORDER, make_app, serving

    app = make_app(config)
    async with serving(app, config) as address:
        yield address
        if not config.journal.writer_apart:
            await app[RECORDER].drained()


async def send(
    address: str, upstream: str, model: str, *, requests: int, max_tokens: int, per_minute: float, state: Path,
    prompts: Sequence[list[dict[str, Any]]] | None, api_key: str, chance: random.Random,
) -> list[str]:
    """Send what is left of `requests`; the ids of all exchanges, also those of earlier runs with this `state` file.

    A request that the provider refuses is an exchange too.

    Raises:
        ProbeError: nobody answers at the address, or who does is no proxy that takes our key.
    """
    from openai import AsyncOpenAI

    done = read_state(state)
    async with AsyncOpenAI(base_url=f"{address}/{upstream}/v1", api_key=api_key, max_retries=0) as client:
        for number in range(len(done), requests):
            if number > len(done) or done:
                await asyncio.sleep(pause(per_minute, chance))
            done.append(await _ask(client, model, probe(prompts, max_tokens, chance)))
            with state.open("a", encoding="utf-8") as file:
                file.write(f"{done[-1]}\n")
    return done


async def recorded(store: str, ids: Sequence[str], *, seconds: float = 30) -> None:
    """Wait until another process's proxy has written these exchanges into the database.

    Raises:
        ProbeError: it does not within `seconds`.
    """
    query = select(func.count()).where(Exchange.id.in_(ids))
    async with open_database(store, upgrade=False) as database:
        for _ in range(int(seconds / _POLL_SECONDS)):
            async with database.reading() as session:
                if await session.scalar(query) == len(ids):
                    return
            await asyncio.sleep(_POLL_SECONDS)
        raise ProbeError(f"the proxy's records do not reach {database.where}: name that proxy's configuration")


def read_state(state: Path) -> list[str]:
    """Ids of the exchanges of earlier runs."""
    return state.read_text(encoding="utf-8").split() if state.exists() else []


async def _ask(client: AsyncOpenAI, model: str, asked: Probe) -> str:
    from openai import APIConnectionError, APIStatusError

    create = client.chat.completions.with_raw_response.create
    messages: Any = asked.messages
    try:
        raw = await create(model=model, messages=messages, max_tokens=asked.max_tokens, stream=asked.stream)
        headers = raw.headers
    except APIStatusError as error:
        headers = error.response.headers
    except APIConnectionError as error:
        raise ProbeError(f"no proxy answers at {client.base_url}: start seedproof serve") from error
    else:
        # an answer that breaks off is an exchange too; the library lets its transport's errors through
        with contextlib.suppress(Exception):
            answer = raw.parse()
            if asked.stream:
                async for _ in answer:  # type: ignore[union-attr]
                    pass
    if EXCHANGE_HEADER not in headers:
        raise ProbeError(f"{client.base_url} recorded nothing: is it a proxy, and OPENAI_API_KEY a key of its clients?")
    return str(headers[EXCHANGE_HEADER])


async def recent_conversations(
    store: str, upstream: str, model: str, *, most: int = 1000
) -> list[list[dict[str, Any]]]:
    """Messages of the newest exchanges of a model: prompts that look like traffic because they were traffic."""
    query = select(Exchange.request).where(Exchange.upstream == upstream, Exchange.model == model)
    query = query.order_by(Exchange.created_at.desc()).limit(most)
    async with open_database(store) as database, database.reading() as session:
        found = (await session.scalars(query)).all()
    kept = [request["messages"] for request in found if isinstance(request.get("messages"), list)]
    if not kept:
        raise ConfigError(f"{upstream!r} has no recorded conversations of {model!r}: leave out --from-traffic")
    return kept
