"""Real inference engines as upstreams: servers out of the engines' own environment, which `make engines` builds."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

HERE = Path(__file__).parent
DIRECTORY = Path(os.environ.get("SEEDPROOF_ENGINES") or Path.home() / ".cache" / "seedproof" / "engines")
START_SECONDS = 600
STOP_SECONDS = 30

VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}  # fmt: skip


@contextmanager
def vllm_cpu(model: Path, log: Path, *, name: str) -> Iterator[str]:
    """vLLM's server on the CPU in float32; yields its address for the SDK (`…/v1`)."""
    port = free_port()
    options = ("--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager")
    command = ("-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", name, *options)
    with serving((*command, "--host", "127.0.0.1", "--port", port), port, log, VLLM_ENVIRONMENT) as address:
        yield address


def vllm_scores(model: Path, backend: str, files: Sequence[str], log: Path) -> dict[str, Any]:
    """What vllm_scores.py prints, run by the engines' Python; skips the test where there are no engines."""
    command = [str(engines_python()), str(HERE / "vllm_scores.py"), str(model), backend, *files]
    with log.open("wb") as errors:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, check=False,
            env={**os.environ, **VLLM_ENVIRONMENT, "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn"},
            timeout=2 * START_SECONDS,
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()[-2000:]
    # vLLM logs to stdout too.
    found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith(b"{")))
    assert "error" not in found, found
    return found


def engines_python() -> Path:
    """The Python of the engines' environment; skips the test where there is none."""
    python = DIRECTORY / "bin" / "python"
    if not python.exists():
        pytest.skip("no inference engines here: build them with `make engines`")
    return python


@contextmanager
def llama_cpp(gguf: Path, log: Path) -> Iterator[str]:
    """llama.cpp's server; yields its address for the SDK. It answers to any model's name."""
    port = free_port()
    with serving((HERE / "llama_server.py", gguf, port), port, log, {}) as address:
        yield address


@contextmanager
def serving(
    command: Sequence[object], port: int, log: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Run the engines' Python with `command` until the block ends; skips the test where there are no engines."""
    python = engines_python()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*dies_with_us(), str(python), *map(str, command)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        stop(process)


def dies_with_us() -> list[str]:
    """A prefix that has the kernel end the server should the tests be killed; nothing where there is none."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Return once the server answers; fails with the end of its log if it stops or takes too long."""
    deadline = monotonic() + START_SECONDS
    while process.returncode is None and monotonic() < deadline:
        if answers(url):
            return
        try:
            process.wait(timeout=0.25)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail(f"the engine did not start:\n{log.read_text(errors='replace')[-4000:]}")


def answers(url: str) -> bool:
    """Whether there is a 200 at `url`."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its children: gently, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
