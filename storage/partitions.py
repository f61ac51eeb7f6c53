"""The days of `exchanges` on Postgres: one partition each, made before its first row, dropped with its last.

A new partition is made apart and then attached, which waits for no reader and no writer.
"""

from collections.abc import Iterable
from datetime import date, datetime, timedelta, timezone

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_LOCK = 0x63C7997B61354B1D
_DAY = timedelta(days=1)


async def ensure(session: AsyncSession, moments: Iterable[datetime]) -> None:
    """Make the partitions of these moments' days, and of the day after each, where they are missing."""
    days = {moment.astimezone(timezone.utc).date() for moment in moments}
    missing = await _missing(session, days)
    if missing:
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    elif days and min(days) < datetime.now(timezone.utc).date() - _DAY:
        # a day that a purge may drop just now: it waits until these rows are in, or they until it is gone
        await session.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": _LOCK})
    else:
        return
    # again: while this one waited for the lock, its holder may have made or dropped them
    missing = await _missing(session, days)
    for day in sorted(await _missing(session, {*missing, *(day + _DAY for day in missing)})):
        name = name_of(day)
        await session.execute(text(f"CREATE TABLE {name} (LIKE exchanges INCLUDING ALL)"))
        await session.execute(text(
            f"ALTER TABLE exchanges ATTACH PARTITION {name} FOR VALUES "
            f"FROM ('{day} 00:00+00') TO ('{day + _DAY} 00:00+00')"
        ))  # fmt: skip


async def days_before(session: AsyncSession, limit: datetime) -> list[date]:
    """The days, oldest first, whose partition's last moment lies before `limit`."""
    names = await session.scalars(text(
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
        "WHERE inhparent = 'exchanges'::regclass ORDER BY relname"
    ))  # fmt: skip
    return [day for day in map(_day_of, names) if day + _DAY <= limit.astimezone(timezone.utc).date()]


async def may_drop(session: AsyncSession) -> None:
    """Nobody writes into past days until this transaction ends; what it then sees in them is all that there is."""
    # rather not now than behind a long query, with every other statement waiting behind this one
    await session.execute(text("SET LOCAL lock_timeout = '5s'"))
    await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


async def drop(session: AsyncSession, day: date) -> None:
    """Drop a day's partition, in a transaction that `may_drop`."""
    await session.execute(text(f"DROP TABLE {name_of(day)}"))


def bounds(day: date) -> tuple[datetime, datetime]:
    """A day's first moment, and that of the next."""
    first = datetime(day.year, day.month, day.day, tzinfo=timezone.utc)
    return first, first + _DAY


def name_of(day: date) -> str:
    """The partition of a day, UTC."""
    return f"exchanges_{day:%Y%m%d}"


def _day_of(name: str) -> date:
    return datetime.strptime(name, "exchanges_%Y%m%d").replace(tzinfo=timezone.utc).date()


async def _missing(session: AsyncSession, days: Iterable[date]) -> list[date]:
    # read from the catalogue's rows: to_regclass would answer from a cache that is as old as the transaction
    names = await session.scalars(text(
        "SELECT day FROM unnest(CAST(:days AS text[])) AS day WHERE day NOT IN (SELECT relname FROM pg_class "
        "WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'exchanges'::regclass))"
    ), {"days": [name_of(day) for day in days]})  # fmt: skip
    return [_day_of(name) for name in names]
