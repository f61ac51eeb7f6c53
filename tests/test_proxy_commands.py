import asyncio
import gc
import os
import signal
import socket

import pytest
from click.testing import CliRunner
from test_proxy_forward import document
from upstreams import SECRET

from proxy.commands import serve, serve_command
from proxy.config import parse_config

TOML = """
listen = "127.0.0.1:{port}"
store = "sqlite:///{store}"
[seed]
secret_env = "TEST_SEED"
[[upstreams]]
name = "a"
base_url = "http://127.0.0.1:1/v1"
"""


def run(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return CliRunner(env={"TEST_SEED": SECRET}).invoke(serve_command, ["--config", str(path)])


def test_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run(tmp_path, TOML.format(port=taken.getsockname()[1], store=tmp_path / "a.db"))
    assert result.exit_code == 1
    assert "it is in use; stop the other program or change 'listen'" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("text", "code", "words"), [
    ("lisen = 1", 2, "did you mean 'listen'?"),
    (TOML.format(port=0, store="/proc/nowhere/x.db"), 1, "nowhere"),
])
def test_failures_are_one_line(tmp_path, text, code, words):
    result = run(tmp_path, text)
    assert result.exit_code == code
    assert words in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output


async def test_sigterm_ends_it_and_what_runs_alongside(tmp_path):
    config = parse_config(document(tmp_path, "http://127.0.0.1:1/v1"), {"SEED": SECRET})
    ended = []

    async def worker():
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    await asyncio.wait_for(serve(config, alongside=worker), 10)
    assert ended == [True]


async def test_what_stands_at_the_start_is_no_work_for_the_garbage_collector(tmp_path):
    config = parse_config(document(tmp_path, "http://127.0.0.1:1/v1"), {"SEED": SECRET})
    frozen = []

    async def look():
        frozen.append(gc.get_freeze_count())

    await asyncio.wait_for(serve(config, alongside=look), 10)
    assert frozen[0] > 10_000
    assert gc.get_freeze_count() == 0


async def test_failure_alongside_ends_it(tmp_path):
    config = parse_config(document(tmp_path, "http://127.0.0.1:1/v1"), {"SEED": SECRET})

    async def worker():
        raise LookupError("no model")

    with pytest.raises(LookupError, match="no model"):
        await asyncio.wait_for(serve(config, alongside=worker), 10)
