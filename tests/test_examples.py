"""What lies in examples/ runs: Slack alerts here, scripts with their libraries' own environment (make test-sdks)."""

import asyncio
import os
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest
from alert_receivers import hooks
from click.testing import CliRunner
from storage_rows import audit, exchange
from test_end_to_end import audited, provider, rows
from test_sdks import CACHE, QUIET

from seedproof import cli
from storage import audits, exchanges, streams
from storage.database import open_database
from storage.models import Exchange
from storage.streams import StreamKey

EXAMPLES = Path(__file__).parents[1] / "examples"
LIBRARIES = CACHE / "python/bin/python"


async def filled(store: str) -> None:
    """Two audits, and a stream that deviates."""
    now = datetime.now(timezone.utc)
    async with open_database(store) as database, database.writing() as session:
        await exchanges.record(session, [exchange(1), exchange(2, upstream="cheap")])
        await audits.add(session, [audit(1), audit(2, upstream="cheap", exact_matches=60, exact_match_rate=0.6)])
        stream = await streams.locked(session, StreamKey("cheap", "smollm2", "smollm2-bf16", "vllm@0.26.0/v2"), now=now)
        stream.verdict, stream.reasons, stream.updated_at = "deviates", ["mismatch"], now


async def test_the_slack_example_tells_the_channel(tmp_path, sqlite_url):
    await filled(sqlite_url)
    rules = tmp_path / "slack_alerts.toml"
    async with hooks() as received:
        text = (EXAMPLES / "slack_alerts.toml").read_text()
        rules.write_text(text.replace('kind = "slack"', 'kind = "slack"\nallow_private = true'))
        environment = {"SLACK_WEBHOOK_URL": f"{received.url}/slack"}

        def run(*arguments):
            return CliRunner().invoke(cli, ["alerts", *arguments], env=environment)

        tried = await asyncio.to_thread(run, "check", str(rules), "--send-test", "channel")
        told = await asyncio.to_thread(run, "run", str(rules), "--store", sqlite_url, "--once")
    assert (tried.exit_code, told.exit_code) == (0, 0), tried.output + told.output
    assert "channel took the test message" in tried.output
    first, second = [taken.json for taken in received.taken]
    assert "cheap (smollm2): deviates" in second["blocks"][1]["text"]["text"]
    assert first["text"] != second["text"]


def run_example(name: str, *arguments: str) -> str:
    """What an example prints, run by the Python that has its libraries."""
    if not LIBRARIES.exists():
        pytest.skip(f"{LIBRARIES} is not there: make test-sdks")
    done = subprocess.run(
        [str(LIBRARIES), str(EXAMPLES / name), *arguments], env={**os.environ, **QUIET}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.sdk
async def test_the_pandas_example_reads_the_audit_database(sqlite_url):
    await filled(sqlite_url)
    told = await asyncio.to_thread(run_example, "audits_with_pandas.py", sqlite_url)
    assert re.search(r"cheap +2026-11-23 +100 +60 +0\.60\b", told), told
    assert re.search(r"0193-0002 .* 0\.60", told.split("\n\n")[1])


@pytest.mark.sdk
async def test_the_langchain_example_streams_its_answer_and_is_recorded(tmp_path, tiny_directory):
    async with provider(tiny_directory) as url, audited(tmp_path, url, tiny_directory) as (address, store):
        told = await asyncio.to_thread(run_example, "langchain_app.py", f"{address}/v1", "tiny")
    (kept,) = await rows(store, Exchange)
    assert kept.streamed
    assert kept.request["messages"][0] == {"role": "system", "content": "You answer in one sentence."}
    assert told.strip() == kept.response["choices"][0]["text"].strip()
