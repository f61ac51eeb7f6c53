"""Every `seedproof …` command of the documents is run, in a directory where its example names mean something real.

A provider serves (`seedproof provider`), a proxy has recorded its answers, a worker has audited them; a receiver takes
alerts. Words such as FILE or URL become that stack's. What cannot run on a machine without a GPU is listed below.
Run by `make test-docs`.
"""

import asyncio
import base64
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from documented import ROOT, all_commands, shell_blocks
from engines import free_port
from openai import OpenAI
from test_docs import parse
from test_end_to_end import rows

from seedproof import cli
from storage.models import Exchange

pytestmark = pytest.mark.docs

NEEDS = {
    r"--gpu|--backend vllm|--device cuda": "a GPU, and vLLM",
    r"--executor ray": "a Ray cluster",
}
"""Commands that are only parsed, by what they would need."""
SERVES = re.compile(r"seedproof (serve|provider|worker|writer|dashboard serve|alerts run)\b")
READY = re.compile(r"seedproof serves|is ready|seedproof writes|/dashboard|http://")
SECONDS = 120
CHATS = 40
SECRET = "s" * 32
"""Of seeds and webhooks; its bytes are the key of sealed payloads too."""
STORE = "sqlite:///seedproof.db"


def is_mention(line: str) -> bool:
    """Whether a command is only named: it lacks what it needs; the store may come from the environment."""
    if line.endswith("--version"):  # it would tell it at once
        return False
    try:
        parse(cli, shlex.split(line)[1:])
        found, rest = resolved(shlex.split(line)[1:])
        with pytest.MonkeyPatch.context() as patch:
            if not SERVES.match(line):
                patch.setenv("SEEDPROOF_STORE", STORE)
            found.make_context(found.name, rest)
    except (click.MissingParameter, click.NoSuchOption, click.BadOptionUsage):
        return True
    except click.ClickException:
        return False
    return isinstance(found, click.Group) and not rest


def resolved(arguments: list[str]) -> tuple[click.Command, list[str]]:
    """The innermost command, and what is left for it."""
    found: click.Command = cli
    while isinstance(found, click.Group) and arguments and arguments[0] in found.commands:
        found, arguments = found.commands[arguments[0]], arguments[1:]
    return found, arguments


def distinct(lines: list[str]) -> list[str]:
    """Without those that differ from an earlier one only in an example's name."""
    told = {re.sub(r"my\.toml|sqlite:///\w+\.db|\bmine\b", "…", re.sub(r"\b(FILE|URL|NAME)\b", "…", one)): one
            for one in reversed(lines)}
    return list(told.values())[::-1]


COMMANDS = distinct([line for line in all_commands() if not any(re.search(words, line) for words in NEEDS)])
MENTIONED = [line for line in COMMANDS if is_mention(line)]
SERVERS = [line for line in COMMANDS if SERVES.match(line) and line not in MENTIONED]
OTHERS = [line for line in COMMANDS if line not in (*MENTIONED, *SERVERS)]


class Stack:
    """One directory with all that the documents' commands work on."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory, self.model = directory, model
        self.provider_port, self.hook_port = free_port(), 0

    @property
    def words(self) -> dict[str, str]:
        """What the documents' placeholders stand for here; regular expressions, tried in this order."""
        return {
            r'"\$\(seedproof model demo\)" --name smollm2 --port \d+': f"{self.model} --name tiny --port {free_port()}",
            r"postgresql://\S*|sqlite:///\w+\.db|\bURL\b": STORE,
            r"--config FILE": "--config my.toml", r"export FILE": "export audits.jsonl",
            r"verify FILE": "verify a.jsonl",
            r"/models/\S+": str(self.model), r"NAME=DIR": f"demo={self.model}", r"\bDIR\b": str(self.model),
            r"\bDIRECTORY\b": "seedproof.db.journal", r"\bMODEL\b": "tiny", r"--reference NAME": "--reference tiny",
            r"--upstream (NAME|cheap)": "--upstream mine", r"key NAME": "key ana", r"vllm@0.26.0/v1": "vllm@0.26.0/v2",
            r"--requests \d+ --tokens \d+ --pace \d+": "--requests 2 --tokens 16 --pace 60000",
        }  # fmt: skip

    def arguments(self, line: str) -> list[str]:
        for words, ours in self.words.items():
            line = re.sub(words, ours, line)
        return shlex.split(line)[1:]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SEEDPROOF_SEED_SECRET": SECRET, "SEEDPROOF_ALERT_WEBHOOK": f"http://127.0.0.1:{self.hook_port}/",
            "SEEDPROOF_ALERT_SECRET": SECRET, "SEEDPROOF_STORE": STORE, "COLUMNS": "200", "OPENAI_API_KEY": "unused",
            "SEEDPROOF_PAYLOAD_KEYS": f"k1:{base64.b64encode(SECRET.encode()).decode()}",
        }  # fmt: skip

    def run(self, *arguments: str, told: str = "") -> Result:
        return CliRunner().invoke(cli, arguments, input=told)

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on until SIGTERM, from its line that says so; it must end well."""
        process = subprocess.Popen(
            [sys.executable, "-m", "seedproof", *arguments], cwd=self.directory, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        too_late = threading.Timer(SECONDS, process.kill)
        too_late.start()
        said: list[str] = []
        try:
            for line in process.stdout:
                said.append(line)
                if READY.search(line):
                    break
            too_late.cancel()
            assert process.poll() is None, "".join(said)
            yield process
        finally:
            process.terminate()
            said.append(process.communicate(timeout=SECONDS)[0])
            too_late.cancel()
        assert process.returncode == 0, "".join(said)


class Receiver(BaseHTTPRequestHandler):
    """Takes every message."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def stack(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("docs"), tiny_directory)
    patch = pytest.MonkeyPatch()
    patch.chdir(found.directory)
    hook = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    found.hook_port = hook.server_address[1]
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    for name, value in found.environment.items():
        patch.setenv(name, value)
    write_files(found)
    provider = ("provider", str(tiny_directory), "--name", "tiny", "--port", str(found.provider_port))
    try:
        with found.serving(*provider):
            fill(found)
            yield found
    finally:
        hook.shutdown()
        hook.server_close()
        patch.undo()


def write_files(stack: Stack) -> None:
    """The page's configuration with this machine's addresses, and the shipped alerts for a receiver of this machine."""
    page = (ROOT / "docs/getting-started.md").read_text()
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    toml = toml.replace("127.0.0.1:8000", f"127.0.0.1:{stack.provider_port}").replace("smollm2", "tiny")
    toml = toml.replace('"demo"', f'"{stack.model}"').replace("[dashboard]", '[dashboard]\nlisten = "127.0.0.1:0"')
    listen = f'listen = "127.0.0.1:{free_port()}"\nstore = "{STORE}"\n'
    (stack.directory / "my.toml").write_text(listen + toml)
    alerts = (ROOT / "configs/alerts.toml").read_text().replace("allow_private = false", "allow_private = true")
    (stack.directory / "alerts.toml").write_text(alerts)


def fill(stack: Stack) -> None:
    """Chats through the proxy by the official SDK, audits of them, and their recordings in files."""
    with stack.serving("serve", "--config", "my.toml"):
        (address,) = re.findall(r'^listen = "(127\.0\.0\.1:\d+)"\nstore', (stack.directory / "my.toml").read_text())
        with OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as sdk:
            for number in range(CHATS):
                asked = [{"role": "user", "content": f"Say {number} things."}]
                sdk.chat.completions.create(model="tiny", messages=asked, max_tokens=64, user="NAME")
        (snippet,) = python_of("README.md")
        told = snippet.replace("127.0.0.1:8080", address).replace("SmolLM2-135M-Instruct", "tiny")
        names = run_python(told.replace('"}])', '"}], max_tokens=64)'))
        names["client"].close()
        assert names["answer"].choices[0].message.content
    done = stack.run("worker", "--until-empty")
    assert done.exit_code == 0, done.output
    recorded = [json.dumps(recording(one)) + "\n" for one in asyncio.run(rows(STORE, Exchange))]
    assert len(recorded) == CHATS + 1
    for name in ("honest", "answers", "a", "b"):
        (stack.directory / f"{name}.jsonl").write_text("".join(recorded))


def python_of(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)


def run_python(text: str, **names: object) -> dict[str, Any]:
    exec(compile(text, "document", "exec"), names)
    return names


def recording(exchange: Exchange) -> dict[str, object]:
    """An exchange as `verifier.recordings` reads it."""
    (choice,) = exchange.response["choices"]
    return {
        **exchange.forced, "messages": exchange.request["messages"], "text": choice["text"],
        "prompt_token_ids": exchange.response["prompt_token_ids"], "output_token_ids": choice["token_ids"],
        "finish_reason": choice["finish_reason"],
    }  # fmt: skip


SAYS = {
    "report --store": "mine", "calibrate": "tolerated mean", "evaluate": "AUC", "verify": "1.000",
    "identify": "0.26.0/v2", "doctor": "Every token can be replayed", "db status": r"exchanges +[4-9]\d",
    "probe": "2 exchanges, 2 of", "alerts check": "ops took the test message", "key": "key_sha256",
    "--version": "0.1", "erase": "exchanges deleted", "model demo": "SmolLM2",
}
"""How commands begin, and what they must print."""


@pytest.mark.parametrize("line", sorted(OTHERS, key=lambda line: "erase" in line))
def test_a_documented_command_runs(stack, line):
    arguments = stack.arguments(line)
    result = stack.run(*arguments, told="a long password\na long password\n")
    assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
    spoken = " ".join(arguments)
    for beginning, words in SAYS.items():
        if spoken.startswith(beginning):
            assert re.search(words, result.output), result.output


def test_the_migration_pages_code_runs(stack, capsys):
    verify, audit = python_of("docs/migration-from-token-difr.md")
    (one, *_) = [json.loads(line) for line in (stack.directory / "a.jsonl").read_text().splitlines()]
    ids = {name: one[name] for name in ("prompt_token_ids", "output_token_ids")}
    found = run_python(verify, MODEL=str(stack.model), **ids)
    assert len(found["results"][0]) == len(one["output_token_ids"])
    ours = audit.replace("https://host", f"http://127.0.0.1:{stack.provider_port}").replace('"NAME"', '"tiny"')
    chats = [[{"role": "user", "content": "Say something."}]]
    found = run_python(ours, MODEL=str(stack.model), conversations=chats)
    assert found["result"].n_sequences == 1
    assert "AuditResult(" in capsys.readouterr().out


@pytest.mark.parametrize("line", SERVERS)
def test_a_documented_server_starts_and_ends_well(stack, line):
    with stack.serving(*stack.arguments(line)):
        pass


@pytest.mark.parametrize("line", MENTIONED)
def test_a_command_that_is_only_named_has_its_manual(line):
    found, _ = resolved(shlex.split(line)[1:])
    words = [word for word in shlex.split(line)[1:] if not word.startswith("-")]
    names = words[: 2 if words[0] in ("db", "alerts", "dashboard", "model") else 1]
    result = CliRunner().invoke(cli, [*names, "--help"])
    assert result.exit_code == 0
    assert f"Usage: cli {' '.join(names)}" in result.output
    assert found.help


def test_most_commands_run_and_few_are_only_named():
    assert len(OTHERS) + len(SERVERS) > 20
    assert len([line for line in all_commands() if any(re.search(words, line) for words in NEEDS)]) < 8


def test_documented_make_targets_exist():
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [(ROOT / name).read_text() for name in ("README.md", "ARCHITECTURE.md", *sorted(
        f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))]  # fmt: skip
    named = {name for text in texts for name in re.findall(r"`make ([a-z-]+)", text)}
    named |= {name for text in texts for block in shell_blocks(text) for name in re.findall(r"\bmake ([a-z-]+)", block)}
    assert len(named) > 3
    assert named - made == set()
