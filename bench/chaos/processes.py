"""The processes under test: started, killed, and started again as a service manager would."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

RESTART_SECONDS = 0.5
STOP_SECONDS = 60.0


@dataclass
class Service:
    """One process and its successors; `kind` is proxy, writer or worker."""

    kind: str
    command: list[str]
    log: Path
    wanted: bool = True
    deaths: Counter[str] = field(default_factory=Counter)
    process: subprocess.Popen[bytes] | None = None
    signalled: bool = False

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.signalled = False

    def send(self, number: signal.Signals) -> bool:
        """Whether there was somebody to send it to: one that runs and has not got a signal yet."""
        if self.process is None or self.signalled or self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        self.signalled = True
        return True

    async def supervise(self) -> None:
        """Keep one process running while `wanted`."""
        self.start()
        while True:
            assert self.process is not None
            code = self.process.poll()
            if code is None:
                await asyncio.sleep(0.05)
                continue
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            self.deaths[name] += 1
            if not self.wanted:
                return
            await asyncio.sleep(RESTART_SECONDS)
            self.start()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it for good; killed where it does not end by itself, which is told by its deaths."""
        self.wanted = False
        until = time.monotonic() + STOP_SECONDS
        while self.process is not None and self.process.poll() is None:
            self.process.send_signal(number if time.monotonic() < until else signal.SIGKILL)
            await asyncio.sleep(0.25)


@contextlib.asynccontextmanager
async def supervised(services: list[Service]):
    """All of them running; stopped at the end whatever happens."""
    tasks = [asyncio.create_task(service.supervise()) for service in services]
    try:
        yield
    finally:
        await asyncio.gather(*(service.stop() for service in services))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
