"""docs/getting-started.md, followed as a new user would, with a real vLLM server; and a claim that is not true.

Run by `make test-engines`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engines import answers, free_port, stop, vllm_cpu, wait_until_ready
from transformers import AutoModelForCausalLM, AutoTokenizer

from verifier.cheats import round_to_int4

pytestmark = pytest.mark.engine

PAGE = (Path(__file__).parents[1] / "docs/getting-started.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
SECONDS = 300


class NewUser:
    """Somebody with an empty directory, the command on the path, and the page's text."""

    def __init__(self, directory: Path, addresses: dict[str, str]) -> None:
        self.directory, self.addresses = directory, addresses
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "SEEDPROOF_SEED_SECRET": "s" * 32, "COLUMNS": "200"}

    def own(self, text: str) -> str:
        """The page's words with this machine's addresses."""
        for theirs, ours in self.addresses.items():
            text = text.replace(theirs, ours)
        return text

    def runs(self, words: str, *more: str) -> str:
        """Run the page's block that holds these words; what it prints."""
        (block,) = [block for block in COMMANDS if words in block]
        script = " ".join([self.own(block).strip(), *more])
        done = subprocess.run(
            ["bash", "-euc", script], cwd=self.directory, env=self.environment, capture_output=True, text=True,
            check=False, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def leaves_running(self, words: str, ready: str) -> Iterator[None]:
        """The page's block in another terminal, from when `ready` answers."""
        (block,) = [block for block in COMMANDS if words in block]
        log = self.directory / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euc", "exec " + self.own(block).strip()], cwd=self.directory, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            wait_until_ready(process, self.own(ready), log)
            yield
        finally:
            stop(process)

    def waits_for_audits(self) -> None:
        """Until every job is done, as the page says to look."""
        asked = "seedproof db status sqlite:///seedproof.db"
        assert f"`{asked}`" in PAGE
        script = f"until {asked} | grep -q ' 0 todo, 0 leased'; do sleep 1; done"
        subprocess.run(["bash", "-c", script], cwd=self.directory, env=self.environment, check=True, timeout=SECONDS)


def save_int4(model: Path, target: Path) -> Path:
    """The model with its linear weights rounded to 4 bits, as the demo provider's cheat does."""
    weights = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    round_to_int4(weights)
    weights.save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def new_user(demo_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewUser]:
    """The page's configuration beside a vLLM server that serves the demo model."""
    directory = tmp_path_factory.mktemp("new-user")
    with vllm_cpu(demo_directory, directory / "vllm.log", name="smollm2") as base_url:
        proxy, dashboard = free_port(), free_port()
        user = NewUser(directory, {
            "http://127.0.0.1:8000/v1": base_url, "127.0.0.1:8080": f"127.0.0.1:{proxy}",
            "[dashboard]": f'[dashboard]\nlisten = "127.0.0.1:{dashboard}"',
        })  # fmt: skip
        (toml,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
        (directory / "my.toml").write_text(f'listen = "127.0.0.1:{proxy}"\n{user.own(toml)}')
        yield user


def streams(told: str) -> dict[str, dict[str, object]]:
    return {stream["upstream"]: stream for stream in json.loads(told)["streams"]}


def test_the_page_leads_to_a_right_verdict_on_an_honest_server_and_on_a_false_claim(new_user, demo_directory, capsys):
    told = new_user.runs("seedproof doctor")
    sampler = re.findall(r'^sampler = "(.*)"$', told, re.MULTILINE)[-1]
    assert sampler.startswith("vllm@0.32.0/cpu")
    assert f"the answers follow {sampler}" in told
    config = new_user.directory / "my.toml"
    honest = re.sub(r'sampler = ".*"', f'sampler = "{sampler}"', config.read_text())
    claimed = save_int4(demo_directory, new_user.directory / "int4")
    # the same server again, said to serve 4-bit weights: what it serves is not what is claimed
    other = honest.partition("[[upstreams]]")[2].replace('"mine"', '"claimed"\nprefix_only = true')
    other = other.replace('reference = "demo"', f'reference = "{claimed}"')
    config.write_text(f"{honest}\n[[upstreams]]{other}")
    with new_user.leaves_running("seedproof serve", "http://127.0.0.1:8080/healthz"):
        new_user.runs("for question in")
        new_user.addresses["/v1/chat"] = "/claimed/v1/chat"
        new_user.runs("for question in")
        new_user.waits_for_audits()
        assert answers(new_user.own("http://127.0.0.1:8080/readyz"))
    found = streams(new_user.runs("seedproof report", "--json", "-"))
    with capsys.disabled():
        print(f"\n{[(name, one['verdict'], one['reasons'], one['tokens']) for name, one in found.items()]}")
    assert (found["mine"]["verdict"], found["mine"]["reasons"]) == ("consistent", ["within_band"])
    assert found["claimed"]["verdict"] == "deviates"
    assert "mismatch" in found["claimed"]["reasons"]


def test_the_page_reads_its_table_from_words_that_exist():
    """Guards the extraction: every block that the test above runs is on the page once."""
    for words in ("seedproof doctor", "seedproof serve", "for question in", "seedproof report"):
        assert len([block for block in COMMANDS if words in block]) == 1
    assert shutil.which("curl")
