"""A database as the proxy and the worker leave it: an honest stream and one that deviates, weighed for real."""

from datetime import datetime, timedelta, timezone

import numpy as np
from storage_rows import audit, exchange, unaudited

from storage import audits, exchanges, jobs
from storage.database import Database
from storage.pieces import pack_pieces
from storage.scores import pack_scores
from storage.streams import StreamKey
from verifier import streams

NOW = datetime.now(timezone.utc).replace(microsecond=0)
TOKENS = 60
HOSTILE = [
    b"<script>document.title='owned'</script>", b"\x1b[31mred", "\u202egnp.exe".encode(), b"=HYPERLINK(\"x\")",
    b"\xf0\x9f", b"\x98\x80", b"\n", b'"><img src=x onerror=alert(1)>', b"\x00", "\u2028".encode(),
]  # fmt: skip


def scores(share_matching: float, *, seed: int = 0, ambiguous: int = 0) -> bytes:
    """Per-token arrays of TOKENS tokens; the others lost by 1.5 logits, the last one is forbidden unless all match.

    The text leaves the ids of the first `ambiguous` open.
    """
    rng = np.random.default_rng(seed)
    matches = rng.random(TOKENS) < share_matching
    margin = np.where(matches, 0.0, 1.5).astype(np.float32)
    if share_matching < 1:
        margin[-1] = np.inf
        matches[-1] = False
    ids = rng.integers(0, 1000, TOKENS).astype(np.int32)
    return pack_scores({
        "token_ids": ids, "predicted_ids": np.where(matches, ids, ids + 1).astype(np.int32),
        "prob": np.full(TOKENS, 0.2, np.float32), "logprob": np.full(TOKENS, -1.6, np.float32),
        "entropy": np.full(TOKENS, 1.6, np.float32), "margin": margin,
        "logit_rank": np.zeros(TOKENS, np.int32), "gumbel_rank": np.where(matches, 0, 1).astype(np.float32),
        "ambiguous": (np.arange(TOKENS) < ambiguous).astype(np.uint8),
    })  # fmt: skip


def pieces(texts: list[bytes] | None = None) -> bytes:
    words = (texts or [f" word{i}".encode() for i in range(TOKENS)]) + [b" x"] * TOKENS
    return pack_pieces(words[:TOKENS], [b" drawn"] * TOKENS)


async def fill(database: Database, *, answers: int = 8, hostile: bool = False, now: datetime = NOW) -> None:
    """`answers` audited exchanges of `honest` and of `cheap`, one that waits and one without audit."""
    for number in range(2 * answers):
        upstream, share = ("honest", 1.0) if number % 2 == 0 else ("cheap", 0.6)
        at = now - timedelta(minutes=30) + timedelta(seconds=20 * number)
        await one(database, number, upstream, share, at, HOSTILE if hostile else None)
    async with database.writing() as session:
        waiting = exchange(9001, created_at=now - timedelta(minutes=2))
        await exchanges.record(session, [waiting, unaudited(9002, created_at=now - timedelta(minutes=1))])


async def one(
    database: Database, number: int, upstream: str, share: float, at: datetime, texts: list[bytes] | None = None
) -> None:
    ambiguous = 2 if texts else 0
    packed = scores(share, seed=number, ambiguous=ambiguous)
    said = {"choices": [{"index": 0, "text": "".join(t.decode(errors="replace") for t in texts or [b"Hello"])}]}
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": said["choices"][0]["text"]}]}
    async with database.writing() as session:
        recorded = exchange(number, upstream=upstream, created_at=at, response=said, request=asked)
        await exchanges.record(session, [recorded])
        (claim,) = await jobs.claim(session, worker="w", limit=1, lease=timedelta(minutes=1), now=at)
        await jobs.complete(session, claim)
        matching = round(share * TOKENS)
        made = audit(
            number, upstream=upstream, created_at=at, scores=packed, pieces=pieces(texts), tokens=TOKENS,
            exact_matches=matching, exact_match_rate=matching / TOKENS, outside_support=int(share < 1),
            sampling={"temperature": 1.0}, ambiguous_tokens=ambiguous,
        )  # fmt: skip
        await audits.add(session, [made])
        key = StreamKey(upstream, "smollm2", "smollm2-bf16", "vllm@0.26.0/v2")
        await streams.weigh(session, recorded.id, key, now=at)
