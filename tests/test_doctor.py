"""`seedproof doctor` against the demo provider, honest and not, and against a scripted one that refuses."""

import json
from contextlib import asynccontextmanager

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner
from test_end_to_end import SAMPLER, provider
from upstreams import Reply, scripted

from proxy.config import parse_config
from proxy.doctor import examined_model
from proxy.doctor_calls import ask_all
from proxy.doctor_report import Diagnosis
from proxy.errors import ConfigError
from seedproof import _examination, cli

CONFIG = """
[seed]
secret_env = "SECRET"
[[upstreams]]
name = "up"
kind = "{kind}"
base_url = "{url}"
[upstreams.models.tiny]
reference = "{reference}"
sampler = "vllm@0.26.0/v2"
"""


async def diagnosis(url: str, *, kind: str = "vllm", reference: str = "", key: str | None = None) -> Diagnosis:
    """The doctor's findings of one upstream."""
    table = {"name": "up", "base_url": url, "kind": kind, "models": {}}
    if key is not None:
        table["api_key_env"] = "KEY"
    document = {"seed": {"secret_env": "SECRET"}, "upstreams": [table]}
    (upstream,) = parse_config(document, {"SECRET": "s" * 32, "KEY": key or ""}).upstreams
    model = examined_model(upstream, "tiny", reference)
    answers, exchanges = await ask_all(upstream, model, max_tokens=48)
    return Diagnosis(upstream, model, answers, _examination(exchanges, reference))


def answers(found: Diagnosis) -> dict[str, str]:
    return {finding.name: finding.answer for finding in found.findings}


async def test_an_honest_provider_is_named_with_all_that_it_honours(tiny_directory):
    async with provider(tiny_directory) as url:
        found = await diagnosis(url, reference=str(tiny_directory))
    assert set(answers(found).values()) == {"yes"}
    assert found.contract == SAMPLER
    assert f"the answers follow {SAMPLER}" in found.conclusion
    assert 'kind = "vllm"' in found.toml
    assert "not confirmed" not in found.toml


async def test_an_ignored_seed_is_told_and_nothing_is_promised(tiny_directory):
    async with provider(tiny_directory, "ignore-seed") as url:
        found = await diagnosis(url, reference=str(tiny_directory))
    said = answers(found)
    assert (said["seed repeats"], said["top_k"], said["sampler"]) == ("no", "yes", "no")
    assert found.contract is None
    assert "temperature 0" in found.conclusion


async def test_without_a_reference_the_sampler_stays_open(tiny_directory):
    async with provider(tiny_directory) as url:
        found = await diagnosis(url, kind="openai")
    said = answers(found)
    assert (said["seed repeats"], said["sampler"], said["token ids"]) == ("yes", "unknown", "yes")
    assert 'kind = "vllm"' in found.toml
    assert "not confirmed" in found.toml


async def test_hidden_ids_are_found_from_the_text(tiny_directory):
    async with provider(tiny_directory) as url, without_ids(url) as hidden:
        found = await diagnosis(hidden, kind="openai", reference=str(tiny_directory))
    assert (answers(found)["token ids"], found.examination["token_source"]) == ("no", "retokenized")
    assert 'kind = "openai"' in found.toml


async def test_behind_a_hidden_system_prompt_no_sampler_fits(tiny_directory):
    async with provider(tiny_directory, "system-prompt=Answer like a pirate.") as url:
        found = await diagnosis(url, reference=str(tiny_directory))
    assert answers(found)["sampler"] == "no"
    assert "Seeds are honoured, but no known sampler" in found.conclusion


async def test_a_refusal_is_one_line_without_the_key():
    refusal = orjson.dumps({"error": {"message": "bad key sk-topsecret\x1b[2J", "type": "auth", "code": "401"}})
    async with scripted(Reply([refusal], status=401)) as upstream:
        found = await diagnosis(upstream.url, key="sk-topsecret")
    assert len(upstream.received) == 1
    text = found.as_text()
    assert "refused with 401" in text
    assert "sk-topsecret" not in text
    assert "\x1b" not in text
    assert found.conclusion.startswith("Nothing can be verified")


async def test_a_provider_that_is_not_there_is_told():
    found = await diagnosis("http://127.0.0.1:9/v1")
    assert answers(found)["answers"] == "no"


def test_the_command_writes_json_and_names_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s" * 32)
    file = tmp_path / "seedproof.toml"
    file.write_text(CONFIG.format(kind="vllm", url="http://127.0.0.1:9/v1", reference=tmp_path))
    result = CliRunner().invoke(cli, ["doctor", "--config", str(file), "--upstream", "up", "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["findings"]["answers"]["answer"] == "no"
    with pytest.raises(ConfigError, match="there are: up"):
        CliRunner().invoke(
            cli, ["doctor", "--config", str(file), "--upstream", "down"], catch_exceptions=False, standalone_mode=False
        )


@asynccontextmanager
async def without_ids(url: str):
    """The same provider behind a server that strips every token id and logprob."""
    import aiohttp

    async def handle(request: web.Request) -> web.Response:
        sent = await request.json()
        sent["stream"] = False
        sent.pop("stream_options", None)
        async with aiohttp.ClientSession() as session, session.post(f"{url}/chat/completions", json=sent) as reply:
            answer = await reply.json()
        answer.pop("prompt_token_ids", None)
        for choice in answer["choices"]:
            choice.pop("token_ids", None)
            choice.pop("logprobs", None)
        return web.json_response(answer)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("/v1"))
