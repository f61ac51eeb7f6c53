"""`seedproof serve` as its own process: several at one address, signals, keys."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import aiohttp
import orjson
import psutil
import pytest
from click.testing import CliRunner
from test_proxy_forward import BODY, JSON_BODY
from upstreams import SECRET, SSE, Reply, events, scripted, stream_chunk

from proxy.clients import hash_key
from proxy.commands import key_command
from seedproof import cli
from storage.database import open_database
from storage.models import Exchange

TOML = """
listen = "127.0.0.1:{port}"
store = "sqlite:///{store}"
[seed]
secret_env = "TEST_SEED"
[[upstreams]]
name = "a"
base_url = "{url}"
kind = "vllm"
audit_rate = {rate}
[upstreams.models.m]
reference = "r"
sampler = "greedy"
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Served:
    def __init__(self, process, port, path, store):
        self.process, self.address, self.path, self.store = process, f"http://127.0.0.1:{port}", path, store

    def children(self):
        return [child for child in psutil.Process(self.process.pid).children() if is_serving(child)]

    async def closed(self):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", int(self.address.rpartition(":")[2]))
        except OSError:
            return True
        writer.close()
        return False

    async def exchanges(self):
        async with open_database(f"sqlite:///{self.store}") as database, database.reading() as session:
            from sqlalchemy import select

            return list(await session.scalars(select(Exchange)))


def is_serving(child):
    """Whether it is one of the server's processes; one that died and that its parent has not noticed yet is not."""
    try:
        return "spawn_main" in str(child.cmdline())
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return False


@asynccontextmanager
async def served(tmp_path, reply, *options, rate=1.0, limits=""):
    """The command line, as an operator runs it, before a scripted provider."""
    async with scripted(reply) as upstream:
        port, path, store = free_port(), tmp_path / "c.toml", tmp_path / "a.db"
        text = TOML.format(port=port, store=store, url=upstream.url, rate=rate) + f"[limits]\n{limits}\n"
        path.write_text(text)
        command = [sys.executable, "-m", "seedproof", "serve", "--config", str(path), *options]
        environment = {**os.environ, "TEST_SEED": SECRET}
        process = await asyncio.to_thread(subprocess.Popen, command, env=environment, stderr=subprocess.DEVNULL)
        try:
            yield upstream, Served(process, port, path, store)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 60)


async def until(condition, seconds=60):
    """Poll another process, of which nothing else tells."""
    give_up = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)


async def until_ready(client, address):
    async def ready():
        try:
            async with client.get(address + "/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await until(ready)


async def test_two_processes_share_the_port_the_store_and_the_signals(tmp_path):
    async with served(tmp_path, Reply([JSON_BODY]), "--processes", "2") as (_, proxy):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client:
            await until_ready(client, proxy.address)

            async def both():
                return len(proxy.children()) == 2

            await until(both)
            for _ in range(20):
                async with client.post(proxy.address + "/v1/chat/completions", data=orjson.dumps(BODY)) as answer:
                    assert answer.status == 200

            async def recorded():
                return len(await proxy.exchanges()) == 20

            await until(recorded)
            killed = proxy.children()[0]
            killed.kill()

            async def replaced():
                return len(proxy.children()) == 2 and killed not in proxy.children()

            await until(replaced)
            proxy.process.terminate()
            assert await asyncio.to_thread(proxy.process.wait, 60) == 0
        assert len(await proxy.exchanges()) == 20


async def test_process_that_never_comes_up_ends_all(tmp_path):
    port = free_port()
    path = tmp_path / "c.toml"
    path.write_text(TOML.format(port=port, store="/proc/nowhere/a.db", url="http://127.0.0.1:1/v1", rate=1.0))
    command = [sys.executable, "-m", "seedproof", "serve", "--config", str(path), "--processes", "2"]
    done = await asyncio.to_thread(
        subprocess.run, command, env={**os.environ, "TEST_SEED": SECRET}, capture_output=True, text=True, check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


async def test_sighup_and_sigterm_under_load_drop_no_stream(tmp_path):
    first, last = events(stream_chunk("a", token_ids=[1]), done=False), events(stream_chunk("b", finish="stop"))
    gate = asyncio.Event()
    async with served(tmp_path, Reply([first, last], content_type=SSE, gate=gate)) as (_, proxy):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
            await until_ready(client, proxy.address)
            body = orjson.dumps({**BODY, "stream": True})
            answers = [await client.post(proxy.address + "/v1/chat/completions", data=body) for _ in range(20)]
            for answer in answers:
                assert await answer.content.readany() == first
            proxy.path.write_text("listen = 3")
            proxy.process.send_signal(signal.SIGHUP)
            proxy.process.send_signal(signal.SIGTERM)

            await until(proxy.closed)
            gate.set()
            for answer in answers:
                assert await answer.read() == last
        assert await asyncio.to_thread(proxy.process.wait, 60) == 0
        rows = await proxy.exchanges()
        assert [row.outcome.value for row in rows] == ["complete"] * 20


STREAM = (events(stream_chunk("a", token_ids=[1]), done=False), events(stream_chunk("b", finish="stop")))


@pytest.mark.parametrize("options", [(), ("--processes", "2")])
async def test_sigterm_is_told_to_balancers_before_the_listener_closes(tmp_path, options):
    reply = Reply(STREAM, content_type=SSE, gate=asyncio.Event())
    drain = "drain_seconds = 3600"
    once = aiohttp.TCPConnector(force_close=True)
    async with (
        served(tmp_path, reply, *options, limits=drain) as (_, proxy), aiohttp.ClientSession(connector=once) as client,
    ):
        await until_ready(client, proxy.address)
        before = await client.post(proxy.address + "/v1/chat/completions", data=orjson.dumps({**BODY, "stream": True}))
        assert await before.content.readany() == STREAM[0]
        proxy.process.send_signal(signal.SIGTERM)

        async def told():
            async with client.get(proxy.address + "/readyz") as answer:
                return answer.status == 503 and (await answer.json())["reasons"] == ["shutting down"]

        for _ in range(20):  # of two processes each has to be told; the kernel deals out the connections
            await until(told)
        after = await client.post(proxy.address + "/v1/chat/completions", data=orjson.dumps({**BODY, "stream": True}))
        assert (after.status, after.headers["Connection"]) == (200, "close")
        proxy.process.send_signal(signal.SIGTERM)
        await until(proxy.closed)
        reply.gate.set()
        assert await before.read() == STREAM[1]
        assert await after.read() == b"".join(STREAM)
        assert await asyncio.to_thread(proxy.process.wait, 60) == 0
        assert [row.outcome.value for row in await proxy.exchanges()] == ["complete"] * 2


async def test_the_time_to_drain_ends_and_so_does_an_answer_that_does_not(tmp_path):
    reply = Reply(STREAM, content_type=SSE, gate=asyncio.Event())
    limits = "drain_seconds = 0.5\nshutdown_seconds = 0.5"
    async with served(tmp_path, reply, limits=limits) as (_, proxy), aiohttp.ClientSession() as client:
        await until_ready(client, proxy.address)
        answer = await client.post(proxy.address + "/v1/chat/completions", data=orjson.dumps({**BODY, "stream": True}))
        assert await answer.content.readany() == STREAM[0]
        proxy.process.send_signal(signal.SIGTERM)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
        assert await asyncio.to_thread(proxy.process.wait, 60) == 0
        [row] = await proxy.exchanges()
        assert (row.outcome.value, row.response["error"]["code"]) == ("client_left", "proxy_shutdown")
        assert (row.audit, row.response["choices"][0]["token_ids"]) == (True, [1])


def test_key_is_shown_once_and_kept_as_a_hash():
    result = CliRunner().invoke(key_command, ["team_1"])
    key = result.output.split("now: ")[1].split()[0]
    assert key.startswith("sp_team_1_")
    assert f'key_sha256 = "{hash_key(key)}"' in result.output
    assert result.output.count(key) == 1


@pytest.mark.parametrize(("arguments", "words"), [
    (["key", "A B"], "cannot be a client's name"),
    (["serve", "--config", "x", "--with-worker", "--processes", "2"], "is for one process"),
])
def test_wrong_use_is_an_error(arguments, words):
    result = CliRunner().invoke(cli, arguments)
    assert words in str(result.exception)
