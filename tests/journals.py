"""Disks for tests: a file system that is full at a known size, and what a journal's directory holds."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.journal import segments
from storage.segment_tail import SegmentTail


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A tmpfs of `size`; skips the test where none can be mounted."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread or task brings about."""
    while not condition():  # noqa: ASYNC110 (nobody there sets an event for tests)
        await asyncio.sleep(0.01)


def records_in(directory: Path) -> list[bytes]:
    """All records of all segments, read as the writer reads them."""
    found = []
    for path in segments(directory):
        tail = SegmentTail(path)
        found += tail.take(1 << 30)
        tail.close()
    return found
