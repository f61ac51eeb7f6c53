"""Several proxies at one address: SO_REUSEPORT lets the kernel deal out the connections, one process a core.

The parent serves nothing. It passes signals on, starts a process anew that died, and gives up where one dies before
it has served: that is a mistake of the configuration or the machine, which repetition does not mend.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType

from proxy.config import ProxyConfig
from proxy.errors import ConfigError
from proxy.shared_metrics import process_died, shared

logger = logging.getLogger(__name__)

RESTART_SECONDS = 1.0
_SPAWN = multiprocessing.get_context("spawn")


def supervise(path: Path, config: ProxyConfig, count: int) -> int:
    """Run `count` proxies until SIGINT or SIGTERM; returns the exit code.

    Raises:
        ConfigError: the port is 0, of which each process would get another one.
    """
    if config.port == 0:
        raise ConfigError("several processes need a fixed port: change 'listen'")
    with shared() if config.metrics is not None else nullcontext():
        family = _Family(path, count)
        handlers = {number: signal.signal(number, family.passed_on) for number in _PASSED_ON}
        try:
            return family.run()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class _Member:
    """`served` is set once it listens; only number 0 has the dashboard."""

    process: SpawnProcess
    number: int
    served: Event


class _Family:
    """All the processes."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._members: list[_Member] = []
        self._ending = False
        self._code = 0
        for number in range(count):
            self._start(number)

    def passed_on(self, number: int, _: FrameType | None) -> None:
        """A signal to the parent is one to all; SIGINT becomes SIGTERM, since terminals send it to all anyway."""
        if number != signal.SIGHUP:
            self._ending = True
        self._tell(signal.SIGHUP if number == signal.SIGHUP else signal.SIGTERM)

    def run(self) -> int:
        """Until all have ended."""
        while self._members:
            wait([member.process.sentinel for member in self._members], timeout=1.0)
            for member in [member for member in self._members if not member.process.is_alive()]:
                self._died(member)
        return self._code

    def _start(self, number: int) -> None:
        served = _SPAWN.Event()
        process = _SPAWN.Process(target=serve_one, args=(self._path, number, served), name="seedproof-proxy")
        process.start()
        self._members.append(_Member(process, number, served))

    def _died(self, member: _Member) -> None:
        self._members.remove(member)
        if member.process.pid is not None:
            process_died(member.process.pid)
        if self._ending:
            return
        logger.error("process %s ended with code %s", member.process.pid, member.process.exitcode)
        if member.served.is_set():
            time.sleep(RESTART_SECONDS)
            if not self._ending:  # a signal may have come in that second
                self._start(member.number)
        else:
            self._ending, self._code = True, member.process.exitcode or 1
            self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for member in self._members:
            if member.process.pid is not None and member.process.is_alive():
                os.kill(member.process.pid, number)


def serve_one(path: Path, number: int, served: Event) -> None:
    """One of several processes, in its own interpreter; only number 0 has the dashboard."""
    import click

    from proxy.commands import run, serve, set_up_logging
    from proxy.config import load_config
    from proxy.errors import ProxyError
    from storage.errors import StorageError

    set_up_logging()
    try:
        config = load_config(path)
        if number:
            config = replace(config, dashboard=None)
        run(serve(config, load=lambda: load_config(path), share_port=True, on_listening=served.set))
    except (ProxyError, StorageError) as error:
        click.echo(f"seedproof: {error}", err=True)
        raise SystemExit(1) from error
