"""A value is planted for each secret, everything is driven that succeeds or fails, and then all that was written or
said is searched for those values."""

import asyncio
import os
import subprocess
import sys

import aiohttp
import orjson
from hostile import http, raw_upstream, say
from test_proxy_forward import BODY, JSON_BODY
from test_proxy_processes import free_port, until_ready
from upstreams import completion, events, stream_chunk

from proxy.clients import compose_key, hash_key

SEED = "seed-canary-7c1de0b5f2"
PROVIDER_KEY = "sk-provider-canary-41ab"
METRICS_TOKEN = "metrics-canary-99f0e1"
CLIENT_KEY = compose_key("team", "c0ffee" * 10 + "0000")
FOREIGN_KEY = "sk-foreign-canary-5150"
NEVER_WRITTEN = (SEED, PROVIDER_KEY, METRICS_TOKEN, CLIENT_KEY, FOREIGN_KEY)
NEVER_SAID = (SEED, PROVIDER_KEY, METRICS_TOKEN)

TOML = """
listen = "127.0.0.1:{port}"
store = "sqlite:///{directory}/a.db"
[seed]
secret_env = "C_SEED"
[limits]
first_byte_seconds = 0.5
connect_seconds = 0.5
body_seconds = 0.5
[metrics]
listen = "127.0.0.1:{metrics}"
token_env = "C_METRICS"
[[clients]]
name = "team"
key_sha256 = "{digest}"
[[upstreams]]
name = "a"
base_url = "{url}"
kind = "vllm"
api_key_env = "C_KEY"
[upstreams.models.m]
reference = "r"
sampler = "greedy"
[[upstreams]]
name = "gone"
base_url = "http://127.0.0.1:1/v1"
kind = "vllm"
api_key_env = "C_KEY"
"""

QUOTED = orjson.dumps({"error": {"message": f"bad {PROVIDER_KEY}, {CLIENT_KEY}", "code": PROVIDER_KEY}})
JSON = b"Content-Type: application/json"
SCRIPTS = [
    [http(JSON_BODY, JSON)],
    [http(orjson.dumps(completion(f"your key is {CLIENT_KEY}, mine {PROVIDER_KEY}", token_ids=[1])), JSON)],
    [http(events(stream_chunk(f"{PROVIDER_KEY[:9]}"), stream_chunk(PROVIDER_KEY[9:], finish="stop")),
          b"Content-Type: text/event-stream")],
    [http(QUOTED, JSON, b"WWW-Authenticate: " + PROVIDER_KEY.encode(), status=b"401 Unauthorized")],
    [http(QUOTED, JSON, status=b"500 Oops")],
    [b"HTTP/1.1 200 " + PROVIDER_KEY.encode() + b"\x00\r\n\r\n"],
    [b""],
]


async def test_no_secret_is_written_or_said(tmp_path):
    port, metrics = free_port(), free_port()
    async with raw_upstream(*SCRIPTS) as upstream:
        config = tmp_path / "c.toml"
        config.write_text(TOML.format(
            port=port, metrics=metrics, directory=tmp_path, url=upstream.url, digest=hash_key(CLIENT_KEY)
        ))
        secrets = {"C_SEED": SEED, "C_KEY": PROVIDER_KEY, "C_METRICS": METRICS_TOKEN}
        command = [sys.executable, "-m", "seedproof", "serve", "--config", str(config)]
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.to_thread(
                subprocess.Popen, command, env={**os.environ, **secrets}, stdout=log, stderr=log
            )
        try:
            said = await drive(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics")
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 60)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert upstream.connections >= len(SCRIPTS)
    assert b"secret_in_answer" in written
    assert b"# HELP " in said
    assert [secret for secret in NEVER_WRITTEN if secret.encode() in written] == []
    assert [secret for secret in NEVER_SAID if secret.encode() in said] == []


async def drive(address, metrics):
    """Every kind of success and failure; all that came back, but the stream that spreads the key over its events."""
    heard = []
    good = {"Authorization": f"Bearer {CLIENT_KEY}"}
    async with aiohttp.ClientSession(headers={"Accept-Encoding": "identity"}) as client:
        await until_ready(client, address)

        async def post(body, headers=good, path="/v1/chat/completions"):
            data = body if isinstance(body, bytes) else orjson.dumps(body)
            try:
                async with client.post(address + path, data=data, headers=headers) as answer:
                    return str(answer.headers).encode() + await answer.read()
            except aiohttp.ClientError as error:
                return str(error).encode()

        heard += [await post(BODY) for _ in range(2)]
        await post({**BODY, "stream": True})
        heard += [await post(BODY) for _ in SCRIPTS]
        heard.append(await post({**BODY, "messages": [{"role": "user", "content": f"my key: {CLIENT_KEY}"}]}))
        heard.append(await post({**BODY, "model": CLIENT_KEY}, path="/a/v1/chat/completions"))
        heard.append(await post({"input": CLIENT_KEY, "model": "m"}, path=f"/v1/embeddings?key={CLIENT_KEY}"))
        heard.append(await post(BODY, path="/gone/v1/chat/completions"))
        heard.append(await post(BODY, headers={"Authorization": f"Bearer {FOREIGN_KEY}"}))
        heard.append(await post(f'{{"broken {CLIENT_KEY}'.encode()))
        async with client.get(metrics, headers={"Authorization": f"Bearer {METRICS_TOKEN}"}) as answer:
            heard.append(await answer.read())
        async with client.get(metrics, headers={"Authorization": f"Bearer {FOREIGN_KEY}"}) as answer:
            heard.append(await answer.read())
    heard.append(await say(address, f"GET /v1/models HTTP/1.1\r\nAuthorization : Bearer {CLIENT_KEY}\r\n\r\n".encode()))
    heard.append(await say(address, f"{CLIENT_KEY}\r\n\r\n".encode()))
    return b"".join(heard)
