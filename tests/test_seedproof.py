"""The command line as a person meets it: results, and errors of one clear line."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from recorded import golden

from seedproof import cli, main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all below it, each with the words that call it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *path, name)


@pytest.mark.parametrize("path", [path for path, _ in commands(cli)], ids=" ".join)
def test_every_command_and_option_has_its_help(path, capsys):
    command = dict(commands(cli))[path]
    assert run(*path, "--help") == 0
    told = capsys.readouterr().out
    assert command.help
    assert command.help.split()[0] in told
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert [one.opts for one in options if not one.help] == []
    assert all(one.opts[-1] in told for one in options)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["seedproof"])
    page = (Path(__file__).parents[1] / "docs/operations.md").read_text()
    assert f"{shell}_source" in page
    monkeypatch.setenv("_SEEDPROOF_COMPLETE", f"{shell}_source")
    assert run() == 0
    assert "_SEEDPROOF_COMPLETE" in capsys.readouterr().out
    monkeypatch.setenv("_SEEDPROOF_COMPLETE", f"{shell}_complete")
    for typed, wanted in (("seedproof rep", "report"), ("seedproof report --mark", "--markdown")):
        words = typed.split()
        monkeypatch.setenv("COMP_WORDS", typed if shell != "fish" else words[0] + " " + " ".join(words[1:-1]))
        monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words) - 1))
        run()
        assert wanted in capsys.readouterr().out


def test_verify_writes_what_it_found_as_json(demo_directory, tmp_path, capsys):
    found = tmp_path / "result.json"
    options = ("--model", demo_directory, "--sampler", "vllm@0.26.0/v2", "--limit", "1", "--json", found)
    assert run("verify", golden("v2_plain"), *options) == 0
    (result,) = json.loads(found.read_text())["files"]
    assert set(result) >= {
        "file", "sequences", "tokens", "exact_match_rate", "outside_support", "mean_margin", "tokens_per_second"
    }
    assert (result["sequences"], result["tokens"]) == (1, 46)
    assert result["exact_match_rate"] > 0.95
    shown = capsys.readouterr().out
    assert "v2_plain.jsonl" in shown
    assert "match" in shown


def test_verify_takes_overrides_and_prints_json_alone_where_asked(demo_directory, capsys):
    options = ("--model", demo_directory, "--sampler", "vllm@0.26.0/v2", "--limit", "1", "--seed", "3", "--json", "-")
    assert run("verify", golden("v2_plain"), *options) == 0
    (result,) = json.loads(capsys.readouterr().out)["files"]
    assert result["exact_match_rate"] < 0.6


def test_verify_says_what_it_assumes_of_a_version_that_nobody_has_read(demo_directory, tmp_path, capsys):
    found = tmp_path / "result.json"
    options = ("--model", demo_directory, "--sampler", "vllm@0.99.0/v2", "--limit", "1", "--json", found)
    assert run("verify", golden("v2_plain"), *options) == 0
    told = "vLLM 0.99.0 is newer than any version read (0.33): the rules of 0.33 are assumed"
    assert told in capsys.readouterr().err
    assert json.loads(found.read_text())["assumed"] == told


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("no-such-file.jsonl", "--model", "demo", "--sampler", "greedy"), "cannot be read"),
        ((golden("v2_plain"), "--model", "no-such-dir", "--sampler", "greedy"), "config.json is missing"),
        ((golden("v2_plain"), "--model", "demo", "--sampler", "vlm"), "did you mean 'vllm'"),
        ((golden("v1_noseed"), "--model", "demo", "--sampler", "vllm@0.26.0/v1"), "has no seed; give one with --seed"),
        ((golden("v2_plain"), "--model", "demo", "--sampler", "vllm", "--seed", "-1"), "has no seed; give one"),
        ((golden("v1_pen"), "--model", "demo", "--sampler", "llama.cpp"), "llama.cpp's frequency_penalty cannot be"),
        ((golden("v2_plain"), "--model", "demo", "--sampler", "greedy", "--dtype", "f32"), "dtype 'f32'"),
        ((golden("v2_plain"), "--model", "demo", "--sampler", "greedy", "--top-p", "0"), "top_p 0.0 is not in"),
        ((golden("v2_plain"), "--model", "demo", "--sampler", "greedy", "--device", "gpu"), "device 'gpu' is not"),
        ((golden("v2_plain"), "--model", "demo", "--sampler", "greedy", "--device", "cuda:99"), "device"),
    ],
)
def test_verify_says_in_one_line_what_is_wrong(options, says, capsys):
    assert run("verify", *options) in (1, 2)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("seedproof: ")
    assert says in told


def test_a_file_that_holds_no_recordings_is_named_with_its_line(tmp_path, capsys):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('\n{"prompt_token_ids": [1], "output_token_ids": "no"}\n')
    assert run("verify", wrong, "--model", "demo", "--sampler", "greedy") == 2
    assert "wrong.jsonl:2 is not a recorded output" in capsys.readouterr().err


def test_a_worker_is_told_of_a_reference_that_is_not_there_before_it_starts(tmp_path, capsys):
    options = ("--store", f"sqlite:///{tmp_path}/a.db", "--reference", f"llama={tmp_path}/none")
    assert run("worker", *options) == 2
    assert "none is no directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["worker", "db upgrade"])
def test_a_database_that_cannot_be_opened_is_one_line(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    url = f"sqlite:///{tmp_path / 'file' / 'audit.db'}"
    options = ("--store", url) if command == "worker" else (url,)
    assert run(*command.split(), *options) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_port_in_use_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "s" * 32)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = tmp_path / "config.toml"
        config.write_text(
            f'listen = "127.0.0.1:{taken.getsockname()[1]}"\nstore = "sqlite:///{tmp_path}/a.db"\n'
            '[seed]\nsecret_env = "SECRET"\n'
            '[[upstreams]]\nname = "up"\nbase_url = "http://127.0.0.1:9/v1"\n'
            '[upstreams.models.m]\nreference = "demo"\nsampler = "greedy"\n'
        )
        assert run("serve", "--config", config) == 1
    assert "it is in use" in capsys.readouterr().err


def test_a_sampler_that_nobody_has_is_refused_before_serving(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "s" * 32)
    config = tmp_path / "config.toml"
    config.write_text(
        f'listen = "127.0.0.1:9"\nstore = "sqlite:///{tmp_path}/a.db"\n[seed]\nsecret_env = "SECRET"\n'
        '[[upstreams]]\nname = "up"\nbase_url = "http://127.0.0.1:9/v1"\n'
        '[upstreams.models.m]\nreference = "demo"\nsampler = "vlm@0.26.0/v2"\n'
    )
    assert run("serve", "--config", config) == 2
    told = capsys.readouterr().err
    assert "upstream 'up', model 'm'" in told
    assert "did you mean 'vllm'" in told


def test_a_result_that_could_not_be_written_is_refused_before_the_work(tmp_path, capsys):
    nowhere = tmp_path / "none" / "result.json"
    assert run("verify", golden("v2_plain"), "--model", "demo", "--sampler", "greedy", "--json", nowhere) == 2
    assert "lies in no directory" in capsys.readouterr().err


def test_every_command_has_help():
    from seedproof import cli

    for name in cli.list_commands(None):
        assert cli.get_command(None, name).help, name
        assert run(name, "--help") == 0


def test_report_needs_a_store_and_prints_an_empty_table_for_a_new_one(tmp_path, capsys):
    assert run("report") == 2
    assert "--store" in capsys.readouterr().err
    store = f"sqlite:///{tmp_path / 'audit.db'}"
    assert run("db", "upgrade", store) == 0
    capsys.readouterr()
    assert run("report", "--store", store, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == {"streams": []}


def test_calibrate_and_evaluate_say_that_too_little_was_recorded(demo_directory, capsys):
    options = ("--model", demo_directory, "--sampler", "vllm@0.26.0/v2", "--limit", "1")
    assert run("calibrate", golden("v2_plain"), *options) == 2
    assert "are too few to fit a band" in capsys.readouterr().err
    files = ("--honest", golden("v2_plain"), "--suspect", golden("v2_plain"), f"{golden('int4')}@vllm@0.26.0/v1")
    assert run("evaluate", *files, *options) == 2
    assert "are too few to fit a band" in capsys.readouterr().err


def test_a_dashboard_password_becomes_the_hash_that_the_configuration_takes(monkeypatch, capsys):
    from proxy.dashboard_login import is_password_hash, password_matches

    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    assert run("dashboard", "password", "--stdin") == 0
    told = capsys.readouterr().out.strip()
    assert is_password_hash(told)
    assert password_matches("correct horse", told)
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert run("dashboard", "password", "--stdin") == 1
