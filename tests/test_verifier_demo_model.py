"""The demo model: pinned, whole, instant the second time; and the demo's arithmetic and servers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import golden

from proxy.config import parse_config
from verifier.demo import Provider, Run, chat_messages, proxy_config
from verifier.demo_model import GGUF_SHA256, check_digest, publish
from verifier.demo_processes import environment, free_ports, running
from verifier.demo_report import UpstreamResult, as_json
from verifier.errors import VerifierError


def test_a_second_call_needs_no_torch(demo_directory: Path) -> None:
    code = (
        "import sys; from verifier.demo_model import ensure_demo_model; print(ensure_demo_model());"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(1), check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(demo_directory))


def test_the_model_is_plain_bfloat16(demo_directory: Path) -> None:
    config = json.loads((demo_directory / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config


def test_its_template_gives_the_golden_prompts(demo_directory: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_directory)
    for line in golden("v2_plain").read_text().splitlines():
        record = json.loads(line)
        ids = tokenizer.apply_chat_template(record["messages"], add_generation_prompt=True, return_dict=False)
        assert ids == record["prompt_token_ids"]


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(VerifierError, match=GGUF_SHA256):
        check_digest(file, GGUF_SHA256)


def finished(path: Path, mark: str) -> Path:
    path.mkdir()
    (path / "model.safetensors").write_text(mark)
    (path / "config.json").write_text("{}")
    return path


def test_a_broken_directory_is_replaced_and_a_whole_one_kept(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    publish(finished(tmp_path / "first", "first"), target)
    publish(finished(tmp_path / "second", "second"), target)
    assert (target / "model.safetensors").read_text() == "first"


def result(matches: int, tokens: int) -> UpstreamResult:
    verdict = "inconclusive"
    return UpstreamResult(name="x", cheat=None, requests=1, tokens=tokens, exact_matches=matches, verdict=verdict)


def test_without_tokens_there_is_no_rate() -> None:
    assert (result(3, 4).exact_match_rate, result(0, 0).exact_match_rate) == (0.75, None)


def test_json_has_the_documented_fields() -> None:
    assert as_json([result(3, 4)]) == {
        "upstreams": [
            {
                "name": "x", "cheat": None, "requests": 1, "tokens": 4, "exact_match_rate": 0.75,
                "verdict": "inconclusive",
            }
        ]
    }  # fmt: skip


def test_chats_differ_and_their_number_is_free() -> None:
    texts = [messages[0]["content"] for messages in chat_messages(40)]
    assert len(set(texts)) == 40


def test_the_proxy_reads_the_demos_configuration(tmp_path: Path) -> None:
    tomllib = pytest.importorskip("tomllib")
    providers = (Provider(name="honest", cheat=None, port=1), Provider(name="int4", cheat="int4", port=2))
    run = Run(directory=tmp_path / 'a "b"', model=tmp_path, providers=providers, proxy_port=3, dashboard_port=4)
    config = parse_config(tomllib.loads(proxy_config(run)), {"SEEDPROOF_SEED_SECRET": "0123456789abcdef"})
    assert [upstream.name for upstream in config.upstreams] == ["honest", "int4"]
    assert config.store == run.store


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(5))) == 5


async def test_a_server_that_ends_is_named_with_its_log(tmp_path: Path) -> None:
    async with running(tmp_path, environment(1)) as servers:
        server = await servers.start("worker", "worker", "--store", "nonsense://x")
        await server.process.wait()
        with pytest.raises(VerifierError, match=r"worker ended .*worker\.log"):
            servers.check()


async def test_servers_end_with_the_block_even_when_it_fails(tmp_path: Path) -> None:
    started = []

    async def broken_demo() -> None:
        async with running(tmp_path, environment(1)) as servers:
            started.append(await servers.start("worker", "worker", "--store", f"sqlite:///{tmp_path / 'a.db'}"))
            raise RuntimeError("the demo broke")

    with pytest.raises(RuntimeError, match="the demo broke"):
        await broken_demo()
    assert started[0].process.returncode is not None
