"""What has to be done now and then for the database: the rules of retention, and tomorrow's partition.

Every process that writes exchanges looks once a minute whether it is due, and one of them does it: whoever takes the
lease in the table `chores`. It works in small transactions and rests three times as long as each took, so that
exchanges and audits hardly wait for it. What goes wrong is logged and counted there, and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta, timezone

from sqlalchemy import CursorResult, Update, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from storage import partitions
from storage.database import Database, insert_new
from storage.errors import StorageError
from storage.models import Chore
from storage.retention import Purged, purge

logger = logging.getLogger(__name__)

NAME = "retention"
EVERY = timedelta(hours=1)
RETRY = timedelta(minutes=5)
LEASE = timedelta(minutes=5)
LOOK_SECONDS = 60.0
REST = 3.0
"""So many times as long as a transaction took, the next one waits."""


async def standing(session: AsyncSession) -> Sequence[Chore]:
    """How the chores fare: when each last went well, and how often it went wrong."""
    return (await session.scalars(select(Chore).order_by(Chore.name))).all()


class _LeaseLost(Exception):  # noqa: N818 (named for what is wrong)
    """Another process is at it: this one was away for too long."""


class Housekeeper:
    """One process's: `run` until cancelled, or `look` once."""

    def __init__(self, database: Database, *, now: Callable[[], datetime] | None = None) -> None:
        self._database = database
        self._now = now or (lambda: datetime.now(timezone.utc))
        self._holder = f"{socket.gethostname()} {os.getpid()} {os.urandom(4).hex()}"

    async def run(self) -> None:
        """Look now and then, apart from other processes; no error ends it."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.5, 1.5))
            try:
                await self.look()
            except Exception:
                logger.exception("housekeeping failed; it is tried again")

    async def look(self) -> Purged | None:
        """Do what is due; None where nothing is, another process is at it, or it failed."""
        if not await self._taken():
            return None
        try:
            async with self._database.writing() as session:
                if session.get_bind().dialect.name == "postgresql":
                    await partitions.ensure(session, [self._now()])
            purged = await purge(self._database, now=self._now(), again=False, pace=self._rest)
            await self._end(due_at=self._now() + EVERY, done_at=self._now(), problem=None)
        except _LeaseLost:
            return None
        except asyncio.CancelledError:
            with contextlib.suppress(StorageError, _LeaseLost):
                await self._end(due_at=self._now())
            raise
        except (StorageError, SQLAlchemyError, OSError, ValueError) as error:
            await self._failed(error)
            return None
        if purged != Purged():
            logger.info("retention: %s", purged)
        return purged

    async def _taken(self) -> bool:
        now = self._now()
        try:
            async with self._database.writing() as session:
                await insert_new(session, Chore, [{"name": NAME, "due_at": now, "failures": 0}])
                free = or_(Chore.lease_until.is_(None), Chore.lease_until < now)
                due = update(Chore).where(Chore.name == NAME, Chore.due_at <= now, free)
                return await _changed(session, due.values(lease_until=now + LEASE, holder=self._holder))
        except StorageError as error:
            logger.debug("housekeeping waits: %s", error)
            return False

    async def _rest(self, seconds: float) -> None:
        await self._change(lease_until=self._now() + LEASE)
        await asyncio.sleep(REST * seconds)

    async def _failed(self, error: Exception) -> None:
        # its kind alone where the text may quote a row
        problem = str(error) if isinstance(error, StorageError) else type(error).__name__
        logger.error("retention failed, next attempt in %s: %s", RETRY, problem)
        with contextlib.suppress(StorageError, _LeaseLost):
            await self._end(due_at=self._now() + RETRY, failures=Chore.failures + 1, problem=problem)

    async def _end(self, **values: object) -> None:
        await self._change(lease_until=None, holder=None, **values)

    async def _change(self, **values: object) -> None:
        async with self._database.writing() as session:
            mine = update(Chore).where(Chore.name == NAME, Chore.holder == self._holder)
            if not await _changed(session, mine.values(**values)):
                raise _LeaseLost


@contextlib.asynccontextmanager
async def housekeeping(database: Database) -> AsyncIterator[None]:
    """Keeps house while the block runs."""
    task = asyncio.create_task(Housekeeper(database).run(), name="housekeeping")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _changed(session: AsyncSession, statement: Update) -> bool:
    result = await session.execute(statement, execution_options={"synchronize_session": False})
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
