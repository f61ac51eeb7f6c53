"""`audit_provider`, with the names and arguments of token-difr 0.1.2's function (its `audit.py`).

That one asks OpenRouter and has Fireworks' log-probabilities verify; this one asks any OpenAI-compatible address and
verifies on a local copy of the model. It is for a quick look by hand: a provider can tell its requests from traffic,
and the seed is known. `seedproof probe` and the proxy leave no such mark.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import aiohttp

from verifier.alignment import align
from verifier.audit import TrustedModel
from verifier.errors import InputError, Unsupported
from verifier.models import load_model
from verifier.prompts import prompt_token_ids
from verifier.replay import Claim, replay
from verifier.samplers import contract
from verifier.sampling_params import SamplingParams
from verifier.sequences import TokenMetrics, TokenSequence, compute_metrics_summary, token_metrics

OPENROUTER = "https://openrouter.ai/api/v1"
SECONDS = 600.0

Conversation = Sequence[Mapping[str, Any]]


@dataclass
class AuditResult:
    """Result of auditing a provider's outputs; `avg_margin` is of the finite margins, as in token-difr 0.1.2."""

    exact_match_rate: float
    avg_prob: float
    avg_margin: float
    avg_logit_rank: float
    avg_gumbel_rank: float
    infinite_margin_rate: float
    total_tokens: int
    n_sequences: int

    def __repr__(self) -> str:
        rate = f"{self.exact_match_rate:.1%} match rate"
        return f"AuditResult({rate}, {self.total_tokens} tokens across {self.n_sequences} sequences)"


def audit_provider(
    conversations: Sequence[Conversation],
    model: str,
    provider: str | None = None,
    temperature: float = 0.0,
    max_tokens: int = 100,
    seed: int = 42,
    top_k: int = 50,
    top_p: float = 0.95,
    concurrency: int = 20,
    *,
    reference: str | None = None,
    base_url: str = OPENROUTER,
    api_key: str | None = None,
    sampler: str = "vllm@0.26.0/v2",
    extra_body: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> AuditResult:
    """Ask a provider to continue conversations and verify its answers on a trusted copy of the model.

    Args:
        conversations: lists of messages.
        model: as the provider names it.
        provider: of a router, the only one that may answer.
        temperature, max_tokens, seed, top_k, top_p: sent, and replayed.
        concurrency: requests at the same time.
        reference: directory of the trusted model, or `demo`; `model` itself unless told.
        base_url: of any OpenAI-compatible API.
        api_key: OPENROUTER_API_KEY or OPENAI_API_KEY of the environment unless told.
        sampler: contract id; at temperature 0 `greedy` is used.
        extra_body: more fields to send, for example {"return_token_ids": True} for vLLM.

    Raises:
        InputError: the provider refuses, or there is no answer that can be verified.
        ReferenceModelError: the reference cannot be loaded.
    """
    trusted = load_model(reference or model, directories={}, device=device)
    fields = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    routing = {"provider": {"only": [provider], "allow_fallbacks": False}} if provider else {}
    body = {"model": model, "max_tokens": max_tokens, **fields, **routing, **(extra_body or {})}
    key = api_key or os.environ.get("OPENROUTER_API_KEY" if base_url == OPENROUTER else "OPENAI_API_KEY", "")
    answers = asyncio.run(_ask(conversations, body, base_url.rstrip("/"), key, concurrency))
    rules = contract("greedy" if temperature == 0 else sampler)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    asked = zip(conversations, answers, strict=True)
    sequences = [one for conversation, answer in asked if (one := _sequence(conversation, answer, trusted)) is not None]
    if not sequences:
        raise InputError("none of the answers can be verified: they are empty, or their text has no tokens")
    claims = [Claim(sequence, rules.choice_seed(seed, 0), params, rules) for sequence in sequences]
    return summarised([token_metrics(scores) for scores in replay(trusted.reference, claims)])


def summarised(results: Sequence[Sequence[TokenMetrics]]) -> AuditResult:
    """Means over all tokens; those outside the support count for `infinite_margin_rate` instead of the margin."""
    means = compute_metrics_summary(results)
    margins = [token.margin for sequence in results for token in sequence]
    finite = [margin for margin in margins if math.isfinite(margin)]
    means["avg_margin"] = sum(finite) / len(finite) if finite else 0.0
    lost = (len(margins) - len(finite)) / len(margins) if margins else 0.0
    return AuditResult(**means, infinite_margin_rate=lost, n_sequences=len(results))


def _sequence(conversation: Conversation, answer: Mapping[str, Any], trusted: TrustedModel) -> TokenSequence | None:
    """The prompt's and the answer's ids, or None where the answer cannot be read."""
    request = {"messages": conversation}
    try:
        prompt = prompt_token_ids(request, trusted.tokenizer, at=datetime.now(timezone.utc))
        output = align(_folded(answer), trusted.tokenizer, complete=True).token_ids
    except Unsupported:
        return None
    sequence = TokenSequence(prompt, output)
    if output:
        trusted.reference.check(0, sequence)
    return sequence if output else None


def _folded(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The first choice, as `verifier.alignment` takes one."""
    choice = (answer.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    return {
        "text": message.get("content") or "", "reasoning": message.get("reasoning_content"),
        "token_ids": choice.get("token_ids"), "logprobs": (choice.get("logprobs") or {}).get("content"),
        "finish_reason": choice.get("finish_reason"), "stop_reason": choice.get("stop_reason"),
    }  # fmt: skip


async def _ask(
    conversations: Sequence[Conversation], body: Mapping[str, Any], base_url: str, key: str, concurrency: int
) -> list[Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    gate = asyncio.Semaphore(concurrency)

    async def one(conversation: Conversation) -> Any:
        sent = {**body, "messages": list(conversation)}
        async with gate, session.post(f"{base_url}/chat/completions", json=sent) as reply:
            if reply.status >= 300:
                raise InputError(f"{base_url} refused with {reply.status}: {(await reply.text())[:200]!r}")
            return await reply.json()

    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        try:
            return list(await asyncio.gather(*map(one, conversations)))
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise InputError(f"{base_url} cannot be asked: {error}") from error
