"""Clean installs: the wheel and the sdist in empty environments, by pip, as users get them (make test-install)."""

import asyncio
import os
import re
import subprocess
import sys
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from engines import answers, free_port
from test_end_to_end import chat, provider, rows
from test_packaging import PROJECT, ROOT, sdist, wheel  # noqa: F401 (fixtures)

from storage.models import Audit, Exchange

pytestmark = pytest.mark.install

IDLE_MB = 80
SECONDS = 60
TORCH = re.search(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
CONFIG = """
listen = "127.0.0.1:{port}"
store = "sqlite:///audit.db"
[seed]
secret_env = "SECRET"
[[upstreams]]
name = "up"
kind = "vllm"
base_url = "{url}"
[upstreams.models.tiny]
reference = "{reference}"
sampler = "vllm@0.26.0/v2"
"""


class Installed:
    """An empty environment with what pip made of `wanted`."""

    def __init__(self, directory: Path, *wanted: str) -> None:
        venv.create(directory, with_pip=True)
        self.bin = directory / "bin"
        self.pip("install", "--quiet", *wanted)

    def pip(self, *arguments: str) -> str:
        return self.run("python", "-m", "pip", "--disable-pip-version-check", *arguments)

    def run(self, name: str, *arguments: str, **options) -> str:
        done = subprocess.run(
            [str(self.bin / name), *arguments], capture_output=True, text=True, check=False, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def has(self, module: str) -> bool:
        told = f"import importlib.util; print(importlib.util.find_spec({module!r}) is not None)"
        return self.run("python", "-I", "-c", told) == "True\n"


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:  # noqa: F811
    return Installed(tmp_path_factory.mktemp("light") / "venv", str(wheel))


@asynccontextmanager
async def proxy_of(installed: Installed, directory: Path, url: str, reference: Path) -> AsyncIterator[tuple[str, int]]:
    """That installation's proxy before a provider; yields its address and its process."""
    port = free_port()
    (directory / "my.toml").write_text(CONFIG.format(port=port, url=url, reference=reference))
    process = await asyncio.create_subprocess_exec(
        str(installed.bin / "seedproof"), "serve", "--config", "my.toml", cwd=directory,
        env={**os.environ, "SECRET": "s" * 32}, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = await asyncio.wait_for(process.stdout.readline(), SECONDS)
        assert b"seedproof serves" in said
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


def resident_mb(pid: int) -> float:
    """What a process holds in memory, in 10⁶ bytes."""
    (kib,) = re.findall(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(kib) * 1024 / 1e6


async def test_the_wheel_alone_is_a_working_proxy_without_torch(light, tmp_path, tiny_directory, capsys):
    assert not light.has("torch")
    assert not light.has("numpy")
    async with (
        provider(tiny_directory) as url,
        proxy_of(light, tmp_path, url, tiny_directory) as (address, pid),
    ):
        held = resident_mb(pid)
        assert await asyncio.to_thread(answers, f"{address}/readyz")
        await chat(address, 2)
    with capsys.disabled():
        print(f"\nthe idle proxy holds {held:.1f} MB")
    assert held <= IDLE_MB
    assert {one.outcome.value for one in await rows(f"sqlite:///{tmp_path / 'audit.db'}", Exchange)} == {"complete"}


def test_the_wheels_commands_say_what_is_missing(light, tmp_path):
    assert light.run("seedproof", "--version") == f"seedproof, version {PROJECT['version']}\n"
    done = subprocess.run(
        [str(light.bin / "seedproof"), "verify", "x", "--model", "demo", "--sampler", "greedy"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"seedproof: \w+ is not installed; run pip install 'seedproof\[cpu,demo\]'\n", done.stderr)


def test_the_sdist_installs(sdist, tmp_path):  # noqa: F811
    installed = Installed(tmp_path / "venv", str(sdist))
    assert installed.run("seedproof", "--version") == f"seedproof, version {PROJECT['version']}\n"


async def test_with_the_extra_cpu_there_is_a_working_worker(wheel, tmp_path, tiny_directory):  # noqa: F811
    assert TORCH is not None
    full = Installed(tmp_path / "venv", f"{wheel}[cpu]", f"torch=={TORCH[1]}+cpu")
    async with (
        provider(tiny_directory) as url,
        proxy_of(full, tmp_path, url, tiny_directory) as (address, _),
    ):
        await chat(address, 2)
    worker = ["worker", "--store", "sqlite:///audit.db", "--until-empty"]
    await asyncio.to_thread(full.run, "seedproof", *worker, cwd=tmp_path)
    audits = await rows(f"sqlite:///{tmp_path / 'audit.db'}", Audit)
    assert [(audit.verdict_status.value, audit.exact_match_rate) for audit in audits] == [("verified", 1.0)] * 2
    assert Path(sys.prefix) not in full.bin.parents
