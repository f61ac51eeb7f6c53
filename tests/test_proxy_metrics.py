"""`/metrics`: what requests did, over several processes too; what the database holds; valid for Prometheus."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_proxy_forward import BODY, JSON_BODY
from test_proxy_processes import free_port, until
from upstreams import SECRET, Reply, scripted
from watched import fill
from yarl import URL

from proxy.app import METRICS, RECORDER, listening, make_app
from proxy.config import parse_config
from proxy.recorder import Health
from storage import proxies
from storage.database import open_database

ROOT = Path(__file__).parents[1]
ASKED = ROOT.parent / "shared/reference/proxies.md"
STREAM = {"upstream": "cheap", "model": "smollm2", "reference": "smollm2-bf16", "sampler": "vllm@0.26.0/v2"}


def configured(store, url, **metrics):
    document = {
        "listen": "127.0.0.1:0", "store": store, "seed": {"secret_env": "SECRET"},
        "metrics": {"listen": f"127.0.0.1:{free_port()}", **metrics},
        "upstreams": [{"name": "up", "base_url": url, "models": {"m": {"reference": "r", "sampler": "greedy"}}}],
    }  # fmt: skip
    return parse_config(document, {"SECRET": SECRET, "TOKEN": "t" * 16})


@asynccontextmanager
async def running(store, reply, **metrics):
    """A proxy with metrics before a scripted provider: its address, that of its metrics, its app."""
    async with scripted(reply) as upstream:
        config = configured(store, upstream.url, **metrics)
        app = make_app(config)
        async with listening(config, app) as address:
            yield address, f"http://127.0.0.1:{config.metrics.port}/metrics", app


async def scraped(address: str, **headers) -> dict[tuple, float]:
    """Value by name and labels, of all samples."""
    async with aiohttp.ClientSession() as session, session.get(address, headers=headers) as answer:
        assert answer.status == 200
        text = await answer.text()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def sample(found: dict[tuple, float], name: str, **labels: str) -> float:
    return found[(name, *sorted(labels.items()))]


async def chat(address: str, body=BODY, path="/v1/chat/completions") -> int:
    async with aiohttp.ClientSession() as session, session.post(address + path, json=body) as answer:
        await answer.read()
        return answer.status


async def test_a_request_is_counted_and_measured(sqlite_url):
    async with running(sqlite_url, Reply([JSON_BODY])) as (address, metrics, app):
        assert await chat(address, {**BODY, "model": "m"}) == 200
        assert await chat(address, {**BODY, "model": "made-up"}, "/up/v1/chat/completions") == 200
        assert await chat(address, {**BODY, "model": "nobody's"}) == 404
        await app[RECORDER].drained()
        found = await scraped(metrics)
    where = {"upstream": "up", "endpoint": "/v1/chat/completions"}
    for model in ("m", "other"):
        assert sample(found, "seedproof_requests_total", **where, model=model, streamed="false", status="2xx") == 1
        assert sample(found, "seedproof_request_duration_seconds_count", **where, model=model) == 1
        assert sample(found, "seedproof_time_to_first_byte_seconds_bucket", **where, model=model, le="+Inf") == 1
    assert sample(found, "seedproof_overhead_seconds_count", upstream="up") == 2
    assert 0 < sample(found, "seedproof_overhead_seconds_sum", upstream="up") < 2
    assert sum(value for key, value in found.items() if key[0] == "seedproof_refused_requests_total") == 1
    assert sample(found, "seedproof_in_flight_requests") == 0
    assert sample(found, "seedproof_records_lost_total") == 0
    batches = sample(found, "seedproof_ingest_batch_size_count")
    assert 1 <= batches <= sample(found, "seedproof_ingest_batch_size_sum") == 2
    assert not any("made-up" in str(key) or "nobody" in str(key) for key in found)


async def test_failures_of_a_provider_have_their_reason(sqlite_url):
    async with running(sqlite_url, Reply([b'{"error":{"message":"no"}}'], status=500)) as (address, metrics, _):
        assert await chat(address, {**BODY, "model": "m"}) == 500
        found = await scraped(metrics)
    assert sample(found, "seedproof_upstream_errors_total", upstream="up", reason="upstream_error") == 1
    assert sample(found, "seedproof_records_total", upstream="up", outcome="upstream_error") == 1


async def test_streams_and_the_backlog_are_told_from_the_database(sqlite_url):
    async with open_database(sqlite_url) as database:
        await fill(database)
    async with running(sqlite_url, Reply([JSON_BODY])) as (_, metrics, _app):
        found = await scraped(metrics)
    assert sample(found, "seedproof_database_up") == 1
    assert sample(found, "seedproof_verdict", **STREAM, verdict="deviates") == 1
    assert sample(found, "seedproof_verdict", **STREAM, verdict="consistent") == 0
    low, rate, high = (sample(found, f"seedproof_match_rate{end}", **STREAM) for end in ("_low", "", "_high"))
    assert low < rate < high < sample(found, "seedproof_match_rate_tolerated", **STREAM)
    assert sample(found, "seedproof_log_e_value", **STREAM) > sample(found, "seedproof_log_e_alarm", **STREAM)
    assert sample(found, "seedproof_verify_answers_total", **STREAM) == 8
    assert sample(found, "seedproof_token_match_ratio_bucket", **STREAM, le="1.0") == 8
    assert sample(found, "seedproof_verdicts_total", verdict="deviates") == 1
    assert sample(found, "seedproof_jobs", reference="smollm2-bf16", state="todo") == 1
    assert sample(found, "seedproof_job_age_seconds", reference="smollm2-bf16") >= 120
    assert sample(found, "seedproof_losses_ever") == 0


async def test_what_a_process_lost_is_told_and_remembered(sqlite_url):
    async with running(sqlite_url, Reply([JSON_BODY])) as (_, metrics, app):
        for recorded, lost in ((7, 0), (9, 2)):
            told = Health(
                problem=None, journal_bytes=300, journal_oldest_seconds=4.0, max_bytes=1000, recorded=recorded,
                lost=lost, dead_letters=0,
            )  # fmt: skip
            app[METRICS].recorder(told)
        found = await scraped(metrics)
    assert sample(found, "seedproof_records_written_total") == 9
    assert sample(found, "seedproof_records_lost_total") == 2
    assert sample(found, "seedproof_journal_bytes") == 300
    assert sample(found, "seedproof_journal_oldest_seconds") == 4


async def test_each_process_tells_the_database_of_itself(sqlite_url):
    async with running(sqlite_url, Reply([JSON_BODY])) as (address, *_):
        await chat(address, {**BODY, "model": "m"})
    async with open_database(sqlite_url) as database, database.reading() as session:
        (told,) = await proxies.every(session)
        losses = await proxies.losses(session, now=datetime.now(timezone.utc))
    assert (told.pid, told.recorded, told.lost) == (os.getpid(), 1, 0)
    assert (losses.lost, losses.alive, losses.problem) == (0, 1, None)


async def test_a_token_is_asked_where_one_is_configured(sqlite_url):
    async with running(sqlite_url, Reply([JSON_BODY]), token_env="TOKEN") as (_, metrics, _app):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic " + "t" * 16}):
            async with aiohttp.ClientSession() as session, session.get(metrics, headers=headers) as answer:
                assert answer.status == 401
        await scraped(metrics, Authorization="Bearer " + "t" * 16)
        assert b" 401 " in await raw(metrics, b"Authorization: Bearer \xff\xfe")


async def raw(url: str, header: bytes) -> bytes:
    """The first line of the answer to a request with a header as it stands."""
    where = URL(url)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n" % (where.raw_path.encode(), header))
    line = await reader.readline()
    writer.close()
    return line


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus")
async def test_prometheus_own_linter_finds_nothing(sqlite_url):
    async with open_database(sqlite_url) as database:
        await fill(database, answers=2)
    async with running(sqlite_url, Reply([JSON_BODY])) as (address, metrics, _):
        await chat(address, {**BODY, "model": "m"})
        async with aiohttp.ClientSession() as session, session.get(metrics) as answer:
            text = await answer.text()
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


TOML = """
listen = "127.0.0.1:{port}"
store = "sqlite:///{store}"
[seed]
secret_env = "TEST_SEED"
[metrics]
listen = "127.0.0.1:{metrics}"
[[upstreams]]
name = "up"
base_url = "{url}"
[upstreams.models.m]
reference = "r"
sampler = "greedy"
"""


async def test_any_of_several_processes_tells_for_all(tmp_path):
    async with scripted(Reply([JSON_BODY])) as upstream:
        port, page = free_port(), free_port()
        path = tmp_path / "c.toml"
        path.write_text(TOML.format(port=port, metrics=page, store=tmp_path / "a.db", url=upstream.url))
        command = [sys.executable, "-m", "seedproof", "serve", "--config", str(path), "--processes", "2"]
        environment = {**os.environ, "TEST_SEED": SECRET}
        process = await asyncio.to_thread(subprocess.Popen, command, env=environment, stderr=subprocess.DEVNULL)
        try:
            metrics = f"http://127.0.0.1:{page}/metrics"
            await until(lambda: both_alive(metrics))
            # a connection each: the kernel deals them out
            statuses = [await chat(f"http://127.0.0.1:{port}", {**BODY, "model": "m"}) for _ in range(20)]
            assert statuses == [200] * 20
            for _ in range(6):
                found = await scraped(metrics)
                counted = [v for k, v in found.items() if k[0] == "seedproof_requests_total"]
                assert sum(counted) == 20
                assert sample(found, "seedproof_in_flight_requests") == 0
        finally:
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0


async def both_alive(metrics: str) -> bool:
    try:
        return sample(await scraped(metrics), "seedproof_proxy_processes") == 2
    except (aiohttp.ClientError, KeyError):
        return False


async def test_every_metric_is_documented_and_every_documented_one_is_there(sqlite_url):
    async with (
        running(sqlite_url, Reply([JSON_BODY])) as (_, metrics, _app),
        aiohttp.ClientSession() as session,
        session.get(metrics) as answer,
    ):
        told = set(re.findall(r"^# TYPE (\w+) \w+$", await answer.text(), re.MULTILINE))
    documented = set(re.findall(r"`(seedproof_\w+)`", (ROOT / "docs/metrics.md").read_text()))
    assert {name for name in told if not name.endswith("_created")} == documented


@pytest.mark.skipif(not ASKED.is_file(), reason="the list that the metrics come from is not here")
def test_what_the_reference_asks_of_metrics_is_documented():
    told = ASKED.read_text().partition("**Prometheus**")[2].partition("Multi-process mode")[0]
    asked = set(re.findall(r"`(?:auditproxy)?_(\w+)", told.partition("Proposed:")[2]))
    assert len(asked) == 17
    documented = set(re.findall(r"`seedproof_(\w+)`", (ROOT / "docs/metrics.md").read_text()))
    assert not asked - documented
