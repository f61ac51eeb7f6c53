"""An object in a process of its own: its methods are called from here, several at a time, and its death is an error.

`concurrent.futures` runs one call at a time in a process and leaves it behind, with its GPU, when the parent is killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.managers import BaseManager
from typing import Any


class ChildDied(Exception):  # noqa: N818 (named for what is wrong, as ours are)
    """The process ended, before or during the call."""


class Child:
    """A spawned process that holds `make(*args)`, whose methods must not raise OSError or EOFError.

    Args:
        make: a class or function that can be imported by name; with its arguments it is pickled.
        calls: how many may run at a time.
        environment: set in the process before `make` is imported there.

    Raises:
        ChildDied: the process could not start.
    """

    def __init__(
        self, make: Callable[..., Any], *args: Any, calls: int, environment: Mapping[str, str] | None = None
    ) -> None:
        self._manager = _Manager(ctx=multiprocessing.get_context("spawn"))
        try:
            self._manager.start(_prepare, (dict(environment or {}),))
            self._held = self._manager.held(make, args)  # type: ignore[attr-defined]
        except (EOFError, OSError) as error:
            raise ChildDied("a process could not be started") from error
        self._process = self._manager._process  # type: ignore[attr-defined]
        self._threads = ThreadPoolExecutor(calls, thread_name_prefix="child")

    async def call(self, method: str, *args: Any) -> Any:
        """What the object's method returns or raises; raises ChildDied if its process is no more."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._held._callmethod, method, args)
        except (EOFError, OSError) as error:
            raise ChildDied(f"process {self.pid} has ended") from error

    def close(self) -> None:
        """End the process, gently and then not; calls that run get ChildDied."""
        self._manager.shutdown()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def pid(self) -> int:
        """Of the process."""
        return int(self._process.pid)


class _Manager(BaseManager):
    """The standard library's server of objects; each caller's thread has a thread there."""


def _made(make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return make(*args)


_Manager.register("held", _made)


def _prepare(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed can end nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
