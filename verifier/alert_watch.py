"""The alerts' shell: facts are read and decided on in one transaction, which also keeps the messages to send.

A message is in the database before it is sent and is marked afterwards, so that a crash in between sends it again: at
least once, with the same id. Any number of workers may run this: they take turns to evaluate, and share the sending.
Nothing here touches the audits; whatever goes wrong is logged and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from storage import alerts, history, overview, proxies, streams
from storage.alerts import Due
from storage.database import Database
from storage.models import Stream
from storage.models_alerts import Alert
from storage.streams import StreamKey
from verifier.alert_config import AlertConfig
from verifier.alert_delivery import Message, Undelivered, deliver
from verifier.alert_payloads import notices
from verifier.alerts import Facts, Quiet, ReferenceFact, Rule, Standing, StreamFact, decide

logger = logging.getLogger("seedproof.alerts")

LEASE = timedelta(seconds=120)
"""Longer than any delivery may take; after it a dead sender's message is sent by another one."""
FIRST_RETRY, LAST_RETRY = timedelta(seconds=5), timedelta(minutes=15)
GIVE_UP = timedelta(days=1)
KEPT = timedelta(days=90)
AT_ONCE = 10
SEND_POLL_SECONDS = 1.0


class Watch:
    """Evaluates the rules and sends what they decide, until cancelled."""

    def __init__(self, database: Database, config: AlertConfig, *, lease: timedelta = LEASE) -> None:
        self._database, self._config, self._lease = database, config, lease

    async def run(self) -> None:
        """Both, side by side: a receiver that hangs keeps no alert from being decided."""
        await asyncio.gather(
            _again_and_again(self.evaluate, self._config.every.total_seconds()),
            _again_and_again(self.send, SEND_POLL_SECONDS),
        )

    async def evaluate(self) -> bool:
        """One evaluation, unless another worker's was just now; returns whether it took place."""
        config, now = self._config, _now()
        async with self._database.writing() as session:
            if not await alerts.turn(session, every=config.every * 0.9, now=now):
                return False
            before = [_standing(row) for row in await alerts.every_alert(session)]
            quiet = [Quiet(row.matchers) for row in await alerts.silences(session, now=now) if row.starts_at <= now]
            decided = decide(config.rules, await facts(session, config.rules, now), before, quiet, now=now)
            known = {standing.fingerprint: standing for standing in before}
            changed = [s for s in decided.standings if known.get(s.fingerprint) != s]
            await alerts.keep(session, [_values(s) for s in changed], decided.dropped)
            for group in decided.groups:
                kind = config.receivers[group.receiver].kind
                await alerts.post(session, notices(group, kind, base_url=config.dashboard_url), now=now)
            await alerts.forget_notices(session, before=now - KEPT)
        for group in decided.groups:
            logger.info("%s: %d alerts to %s", group.rule.name, len(group.changed), group.receiver)
        return True

    async def send(self) -> int:
        """Send what is due; returns how many messages that were."""
        async with self._database.writing() as session:
            due = await alerts.due(session, limit=AT_ONCE, lease=self._lease, now=_now())
        await asyncio.gather(*(self._send(notice) for notice in due))
        return len(due)

    async def _send(self, notice: Due) -> None:
        receiver = self._config.receivers.get(notice.receiver)
        message = Message(
            id=f"{notice.id}-{int(notice.created_at.timestamp())}", payload=notice.payload,
            timestamp=int(_now().timestamp()),
        )  # fmt: skip
        try:
            if receiver is None:
                raise Undelivered("the configuration names no such receiver any more", again=False)
            await deliver(receiver, message)
        except Undelivered as error:
            await self._put_back(notice, error)
        except Exception as error:
            # a receiver whose kind was changed, say, gets what was made for the old one; others must not wait for it
            await self._put_back(notice, Undelivered(f"it cannot be sent ({type(error).__name__})", again=True))
        else:
            async with self._database.writing() as session:
                await alerts.sent(session, notice, now=_now())

    async def _put_back(self, notice: Due, error: Undelivered) -> None:
        wait = min(LAST_RETRY, FIRST_RETRY * 2 ** min(notice.attempts - 1, 10))
        given_up = not error.again or _now() - notice.created_at >= GIVE_UP
        logger.warning("%s did not get message %d: %s", notice.receiver, notice.id, error)
        async with self._database.writing() as session:
            if given_up:
                await alerts.fail(session, notice, error=str(error))
            else:
                await alerts.retry(session, notice, at=_now() + wait, error=str(error))


@contextlib.asynccontextmanager
async def watching(database: Database, config: AlertConfig | None) -> AsyncIterator[None]:
    """Watches while the block runs; None watches nothing."""
    if config is None:
        yield
        return
    task = asyncio.create_task(Watch(database, config).run(), name="alerts")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def facts(session: AsyncSession, rules: Sequence[Rule], now: datetime) -> Facts:
    """All that the rules look at, as of now."""
    windows = {rule.window for rule in rules if rule.window is not None}
    sums = {window: await history.sums(session, within=window, now=now) for window in windows}
    return Facts(
        streams=[_stream(row, sums) for row in await streams.standing(session)],
        references=[
            ReferenceFact(
                reference=row.reference, lag=now - row.oldest if row.oldest else timedelta(), retried=row.retried,
                reason=row.reason,
            )
            for row in await overview.waiting(session)
        ],
        lost=(await proxies.losses(session, now=now)).lost,
    )  # fmt: skip


def _stream(row: Stream, sums: Mapping[timedelta, Mapping[StreamKey, tuple[int, int]]]) -> StreamFact:
    key = StreamKey.of(row)
    effects = row.detail.get("effects", ())
    mismatch = next((effect for effect in effects if effect["detector"] == "mismatch"), None)
    return StreamFact(
        labels=vars(key),
        verdict=row.verdict,
        reasons=tuple(row.reasons),
        match=None if mismatch is None else (1 - mismatch["high"], 1 - mismatch["mean"], 1 - mismatch["low"]),
        drift_alarm_at=row.drift_alarm_at,
        windows={window: by_stream.get(key, (0, 0)) for window, by_stream in sums.items()},
    )


def _standing(row: Alert) -> Standing:
    return Standing(**{name: getattr(row, name) for name in Standing.__dataclass_fields__})


def _values(standing: Standing) -> dict[str, Any]:
    return asdict(standing)


async def _again_and_again(work: Any, seconds: float) -> None:
    while True:
        try:
            await work()
        except Exception:
            # alerts must outlive a database that is away
            logger.warning("the alerts could not be worked on; trying again", exc_info=True)
        await asyncio.sleep(seconds)


def _now() -> datetime:
    return datetime.now(timezone.utc)
