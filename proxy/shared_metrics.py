"""Metrics of several processes: values in files of one directory, which any of the processes adds up."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


def several_processes() -> bool:
    """Whether this process shares its metrics."""
    return DIRECTORY in os.environ


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """A new directory in which the processes that are started inside the block add up their metrics."""
    directory = tempfile.mkdtemp(prefix="seedproof-metrics-")
    os.environ[DIRECTORY] = directory
    try:
        yield
    finally:
        del os.environ[DIRECTORY]
        shutil.rmtree(directory, ignore_errors=True)


def process_died(pid: int) -> None:
    """A process is gone: what it had in flight is not any more; what it counted stays."""
    if several_processes():
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)  # type: ignore[no-untyped-call]
