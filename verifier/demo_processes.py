"""The demo's own servers: started with their logs in one directory, and ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier.errors import VerifierError

GRACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running ``seedproof`` command."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def check(self) -> None:
        """Raise VerifierError, naming the log and quoting its last line, if the process has ended."""
        if self.process.returncode is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
            ended = f"the demo's {self.name} ended (exit code {self.process.returncode})"
            raise VerifierError(f"{ended}: {lines[-1]} (see {self.log})")


class Servers:
    """Starts servers; `running` ends them all."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory, self._environment = directory, environment
        self._servers: list[Server] = []

    async def start(self, name: str, *arguments: str) -> Server:
        """Start ``seedproof ARGUMENTS`` with this interpreter; its output goes to ``NAME.log``."""
        log = self._directory / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command(arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(self._environment),
                start_new_session=True,  # a Ctrl-C reaches only the demo, which ends its servers in order
            )
        server = Server(name=name, process=process, log=log)
        self._servers.append(server)
        return server

    def check(self) -> None:
        """Raise VerifierError if any server has ended."""
        for server in self._servers:
            server.check()

    async def end(self) -> None:
        """End every server, the last started first: politely, then by force."""
        for server in reversed(self._servers):
            _signal_group(server.process, signal.SIGTERM)
        await asyncio.gather(*(_reap(server.process) for server in self._servers))


@contextlib.asynccontextmanager
async def running(directory: Path, environment: Mapping[str, str]) -> AsyncIterator[Servers]:
    """Servers that do not outlive the block."""
    servers = Servers(directory, environment)
    try:
        yield servers
    finally:
        await servers.end()


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of ``seedproof ARGUMENTS`` for this interpreter."""
    return [sys.executable, "-m", "seedproof", *arguments]


def environment(threads: int, **extra: str) -> dict[str, str]:
    """This process's environment with bounded threads, this source tree importable and model hubs off."""
    source = str(Path(__file__).resolve().parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    bounded = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **bounded, **offline, "PYTHONPATH": os.pathsep.join(paths), **extra}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


async def _reap(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), GRACE_SECONDS)
    except asyncio.TimeoutError:
        _signal_group(process, signal.SIGKILL)
        await process.wait()


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
