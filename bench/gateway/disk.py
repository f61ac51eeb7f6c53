"""What the disk under a directory takes for one `fdatasync`, without any proxy: the floor of a strict journal.

    usage: python -m bench.gateway.disk [DIRECTORY]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.gateway.load import quantile

RECORD_BYTES = 3000
COUNT = 500


def measure(directory: Path) -> dict[str, float | str]:
    """Milliseconds of a write and its sync: over room that exists already, as the journal's, and at the file's end."""
    ahead, behind = _times(directory, room=COUNT * RECORD_BYTES), _times(directory, room=0)
    return {
        "file_system": _file_system(directory),
        "fdatasync_p50_ms": quantile(ahead, 0.5), "fdatasync_p99_ms": quantile(ahead, 0.99),
        "growing_p50_ms": quantile(behind, 0.5), "growing_p99_ms": quantile(behind, 0.99),
    }


def _times(directory: Path, *, room: int) -> list[float]:
    record, times = os.urandom(RECORD_BYTES), []
    with tempfile.NamedTemporaryFile(dir=directory, buffering=0) as file:
        os.pwrite(file.fileno(), bytes(room), 0)
        os.fsync(file.fileno())
        for number in range(COUNT):
            started = time.perf_counter()
            os.pwrite(file.fileno(), record, number * RECORD_BYTES)
            os.fdatasync(file.fileno())
            times.append(1e3 * (time.perf_counter() - started))
    return times


def _file_system(directory: Path) -> str:
    mounted = [part for part in psutil.disk_partitions(all=True) if directory.resolve().is_relative_to(part.mountpoint)]
    return max(mounted, key=lambda part: len(part.mountpoint)).fstype if mounted else "unknown"


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()))))
