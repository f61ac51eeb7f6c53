"""What a benchmark's saved result says about its run."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def save_case(name: str, case: Mapping[str, Any]) -> None:
    """Put one case into bench/results/NAME.json, in place of an earlier run of it, with what it ran on.

    Processes that run cases side by side may share a file.
    """
    path = ROOT / "bench" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    found = {**case, **circumstances()}
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        kept = json.loads(file.read() or '{"cases": []}')["cases"]
        cases = [*(one for one in kept if one["case"] != case["case"]), found]
        file.truncate(0)
        file.write(json.dumps({"cases": cases}, indent=1) + "\n")


def circumstances() -> dict[str, Any]:
    """Date, commit (with `+` where the tree differs from it in more than results), processor and versions.

    A tree without git is given its commit by the environment variable SEEDPROOF_COMMIT.
    """
    changed = _git("status", "--porcelain", "-uno", "--", ".", ":!bench/results")
    commit = os.environ.get("SEEDPROOF_COMMIT") or _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "hardware": f"{_processor()}, {platform.machine()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
