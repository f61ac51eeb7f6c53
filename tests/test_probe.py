"""`seedproof probe` and `audit_provider` against the demo provider."""

import asyncio
import inspect
import json
import random
from dataclasses import fields, replace

import pytest
from click.testing import CliRunner
from test_end_to_end import provider, rows

import verifier
from proxy.app import make_app, serving
from proxy.config import load_config, parse_config
from proxy.errors import ConfigError, ProbeError
from proxy.probe_calls import for_probes, own_proxy, read_state, recent_conversations, send
from proxy.probing import pause, probe, read_prompts
from seedproof import _reports_of, cli
from storage.models import Exchange
from verifier.api import compute_metrics_summary
from verifier.commands import run_worker
from verifier.errors import InputError
from verifier.provider_audit import AuditResult, audit_provider, summarised
from verifier.sequences import TokenMetrics

UNREACHABLE = (
    '[seed]\nsecret_env = "SECRET"\n[[upstreams]]\nname = "up"\nbase_url = "http://127.0.0.1:9/v1"\n'
    '[upstreams.models.m]\nreference = "r"\nsampler = "greedy"\n'
)


def configured(tmp_path, url, reference):
    """A proxy's configuration with one upstream, of which hardly anything is audited."""
    model = {"reference": str(reference), "sampler": "vllm@0.26.0/v2"}
    upstream = {
        "name": "up", "base_url": url, "kind": "vllm", "audit_rate": 0.0, "models": {"tiny": model},
        "sampling": {"temperature": 1.0, "top_p": 0.95},
    }  # fmt: skip
    store = f"sqlite:///{tmp_path / 'audit.db'}"
    document = {"store": store, "seed": {"secret_env": "SECRET"}, "upstreams": [upstream]}
    return parse_config(document, {"SECRET": "s" * 32}, directory=tmp_path)


async def run(config, state, requests: int, prompts=None, *, temperature=None) -> list[str]:
    """One run of probes, fast."""
    probing = for_probes(config, config.upstreams[0], "tiny", temperature=temperature)
    async with own_proxy(probing) as address:
        return await send(
            address, "up", "tiny", requests=requests, max_tokens=24, per_minute=60_000, state=state, prompts=prompts,
            api_key="none", chance=random.Random(1),
        )  # fmt: skip


async def test_probes_are_resumed_audited_and_reported_alone(tmp_path, tiny_directory):
    state = tmp_path / "state"
    async with provider(tiny_directory) as url:
        config = configured(tmp_path, url, tiny_directory)
        first = await run(config, tmp_path / "other", 1)
        begun = await run(config, state, 2)
        ids = await run(config, state, 4)
    assert ids[:2] == begun
    assert read_state(state) == ids
    exchanges = {exchange.id: exchange for exchange in await rows(config.store, Exchange)}
    assert set(exchanges) == {*first, *ids}
    assert all(exchange.audit for exchange in exchanges.values())
    assert {exchange.request["model"] for exchange in exchanges.values()} == {"tiny"}
    await run_worker(config.store, {}, until_empty=True)
    (report,) = await _reports_of(config.store, "up", ids)
    assert report.verdict.requests == 4
    recent = await recent_conversations(config.store, "up", "tiny")
    assert len(recent) == 5
    with pytest.raises(ConfigError, match="no recorded conversations"):
        await recent_conversations(config.store, "up", "other")


async def test_a_running_proxy_takes_probes_and_an_interrupted_run_goes_on(tmp_path, tiny_directory, monkeypatch):
    monkeypatch.setenv("SECRET", "s" * 32)
    state, told = tmp_path / "state", tmp_path / "my.toml"
    async with provider(tiny_directory) as url:
        told.write_text(
            f'store = "sqlite:///{tmp_path / "audit.db"}"\n[seed]\nsecret_env = "SECRET"\n[[upstreams]]\nname = "up"\n'
            f'kind = "vllm"\nbase_url = "{url}"\n[upstreams.models.tiny]\nreference = "{tiny_directory}"\n'
            'sampler = "vllm@0.26.0/v2"\n'
        )
        config = replace(load_config(told), port=0)
        app = make_app(config)
        async with serving(app, config) as address:
            words = ["probe", "--config", str(told), "--upstream", "up", "--model", "tiny", "--proxy", address]
            words += ["--state", str(state), "--tokens", "16", "--pace", "60000", "--audit", "--json", "-"]
            first = await asyncio.to_thread(CliRunner().invoke, cli, [*words, "--requests", "1"])
            then = await asyncio.to_thread(CliRunner().invoke, cli, [*words, "--requests", "3"])
    assert (first.exit_code, then.exit_code) == (0, 0), first.output + then.output
    ids = json.loads(then.stdout)["exchanges"]
    assert ids[0] in json.loads(first.stdout)["exchanges"]
    assert {exchange.id for exchange in await rows(config.store, Exchange)} == set(ids)
    (stream,) = json.loads(then.stdout)["streams"]
    assert (stream["upstream"], stream["requests"]) == ("up", 3)


@pytest.mark.parametrize(("more", "words"), [
    ((), "no proxy answers at http://127.0.0.1:9/up/v1/"),
    (("--temperature", "0"), "leave out --proxy"),
])
def test_probes_that_reach_no_running_proxy_say_so(tmp_path, monkeypatch, more, words):
    monkeypatch.setenv("SECRET", "s" * 32)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(UNREACHABLE)
    told = ["probe", "--config", "my.toml", "--upstream", "up", "--model", "m", "--proxy", "http://127.0.0.1:9", *more]
    result = CliRunner().invoke(cli, told)
    assert result.exit_code != 0
    assert words in result.output + str(result.exception)


async def test_probes_that_another_address_answers_are_refused(tmp_path, tiny_directory):
    async with provider(tiny_directory) as url:
        with pytest.raises(ProbeError, match="recorded nothing"):
            await send(
                url.removesuffix("/v1"), "up", "tiny", requests=1, max_tokens=4, per_minute=6000,
                state=tmp_path / "state", prompts=None, api_key="none", chance=random.Random(1),
            )  # fmt: skip


async def test_at_temperature_0_a_provider_that_ignores_seeds_is_checked_greedily(tmp_path, tiny_directory):
    async with provider(tiny_directory, "ignore-seed") as url:
        config = configured(tmp_path, url, tiny_directory)
        ids = await run(config, tmp_path / "state", 3, temperature=0.0)
    await run_worker(config.store, {}, until_empty=True)
    (report,) = await _reports_of(config.store, "up", ids)
    assert report.verdict.word != "unsupported"
    assert report.verdict.requests == 3


def test_an_unlisted_model_is_refused(tmp_path):
    config = configured(tmp_path, "http://127.0.0.1:9/v1", tmp_path)
    with pytest.raises(ConfigError, match="lists no model 'large'"):
        for_probes(config, config.upstreams[0], "large", temperature=None)


def test_the_command_counts_refusals_as_exchanges(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s" * 32)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(UNREACHABLE)
    told = ["probe", "--config", "my.toml", "--upstream", "up", "--model", "m", "--requests", "2", "--pace", "60000"]
    result = CliRunner().invoke(cli, [*told, "--json", "-"])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["exchanges"]) == 2


def test_prompts_are_texts_or_conversations():
    lines = ["Hello", "", '{"messages": [{"role": "user", "content": "Hi"}]}']
    assert [one[0]["content"] for one in read_prompts(lines, "file")] == ["Hello", "Hi"]
    for wrong in (["{}"], ['{"messages": 3}'], ["{nonsense"], [" "]):
        with pytest.raises(ConfigError, match="file"):
            read_prompts(wrong, "file")


def test_probes_vary_in_every_way_and_pauses_keep_the_pace():
    chance = random.Random(7)
    sent = [probe(None, 200, chance) for _ in range(400)]
    assert len({one.messages[0]["content"] for one in sent}) > 300
    assert {one.stream for one in sent} == {True, False}
    assert (min(one.max_tokens for one in sent), max(one.max_tokens for one in sent)) <= (110, 200)
    pauses = [pause(6, chance) for _ in range(4000)]
    assert sum(pauses) / len(pauses) == pytest.approx(10, rel=0.1)
    assert max(pauses) <= 100


async def test_audit_provider_matches_an_honest_provider_and_not_another_one(tiny_directory, other_tiny_directory):
    conversations = [[{"role": "user", "content": text}] for text in ("Tell me of tides.", "And of bread.")]
    ids = {"return_token_ids": True}
    async with provider(tiny_directory) as url:
        said = {"base_url": url, "max_tokens": 16, "extra_body": ids, "temperature": 1.0}
        honest = await asyncio.to_thread(
            audit_provider, conversations, "tiny", reference=str(tiny_directory), **said
        )
        other = await asyncio.to_thread(
            audit_provider, conversations, "tiny", reference=str(other_tiny_directory), **said
        )
        with pytest.raises(InputError, match="refused with 404"):
            await asyncio.to_thread(audit_provider, conversations, "none", reference=str(tiny_directory), base_url=url)
    assert isinstance(honest, AuditResult)
    assert (honest.exact_match_rate, honest.n_sequences, honest.infinite_margin_rate) == (1.0, 2, 0.0)
    assert repr(honest) == f"AuditResult(100.0% match rate, {honest.total_tokens} tokens across 2 sequences)"
    assert other.exact_match_rate < 0.5


def test_infinite_margins_are_counted_apart():
    tokens = [TokenMetrics(True, 0.5, 0.0, 0.0, 0.0), TokenMetrics(False, 0.0, float("inf"), 9.0, float("inf"))]
    assert compute_metrics_summary([tokens])["avg_margin"] == float("inf")
    found = summarised([tokens])
    assert (found.avg_margin, found.infinite_margin_rate, found.total_tokens) == (0.0, 0.5, 2)


TOKEN_DIFR_0_1_2 = {
    "conversations": inspect.Parameter.empty, "model": inspect.Parameter.empty, "provider": None, "temperature": 0.0,
    "max_tokens": 100, "seed": 42, "top_k": 50, "top_p": 0.95, "concurrency": 20,
}  # fmt: skip
"""Arguments and defaults of `audit_provider` in token-difr 0.1.2 (token_difr/audit.py), in their order."""
FIELDS_0_1_2 = (
    "exact_match_rate", "avg_prob", "avg_margin", "avg_logit_rank", "avg_gumbel_rank", "infinite_margin_rate",
    "total_tokens", "n_sequences",
)  # fmt: skip


def test_audit_provider_takes_what_token_difrs_takes_and_returns_its_fields():
    arguments = inspect.signature(verifier.audit_provider).parameters.values()
    theirs = [one for one in arguments if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert [(one.name, one.default) for one in theirs] == list(TOKEN_DIFR_0_1_2.items())
    ours = [one for one in arguments if one not in theirs]
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY and one.default is not one.empty for one in ours)
    assert tuple(field.name for field in fields(verifier.AuditResult)) == FIELDS_0_1_2
