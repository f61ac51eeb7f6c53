"""Kept scores: the same answers again, with no model, wherever a recordings file may stand."""

import json

import numpy as np
import pytest
from recorded import golden
from simulated import faulty, honest
from test_seedproof import run
from test_verifier_stream_state import answer

from verifier.band import SHIPPED
from verifier.errors import InputError
from verifier.evaluate import Answer, judge_file
from verifier.samplers import contract
from verifier.scored_files import FIELDS, ScoredFile, score_file

SAMPLER = "vllm@0.26.0/v1"


def kept(path, scores, first_prompt: int = 0, sampler: str = SAMPLER):
    """A file of these scores, each an answer to its own prompt."""
    answers = [Answer((n, *range(n % 5)), answer(one)) for n, one in enumerate(scores, first_prompt)]
    ScoredFile(sampler, answers).save(path)
    return path


def test_what_is_kept_is_what_was_scored(tmp_path):
    scores = [*honest(1, 3, 20), *faulty(2, 2, "4-bit weights", 7)]
    read = ScoredFile.load(kept(tmp_path / "a.npz", scores))
    assert read.sampler == SAMPLER
    assert [one.prompt for one in read.answers] == [(n, *range(n % 5)) for n in range(5)]
    for found, expected in zip(read.answers, scores, strict=True):
        assert found.audited.sampling == {"temperature": 1.0}
        for field in set(FIELDS) - {"prob"}:
            assert np.array_equal(getattr(found.scores, field), getattr(expected, field))


def test_evaluate_keeps_scores_and_takes_them_in_the_recordings_place(demo_directory, tmp_path, capsys):
    """The two kept answers are too few for a band, which is said only after they were kept."""
    options = ("--model", demo_directory, "--sampler", "vllm@0.26.0/v2", "--limit", "2")
    files = ("--honest", golden("v2_plain"), "--suspect", golden("v2_fp8"))
    assert run("evaluate", *files, *options, "--keep-scores", tmp_path) == 2
    read = ScoredFile.load(tmp_path / "v2_plain.npz")
    assert len(read.answers) == 2
    assert np.concatenate([one.scores.exact_match for one in read.answers]).mean() > 0.95
    assert (tmp_path / "v2_fp8.npz").exists()
    capsys.readouterr()
    assert run("evaluate", "--honest", tmp_path / "v2_plain.npz", "--suspect", tmp_path / "v2_fp8.npz") == 2
    assert "too few to fit a band" in capsys.readouterr().err


def test_answers_are_scored_from_their_text_alone_where_ids_are_hidden(demo_directory, tmp_path):
    options = ("--model", demo_directory, "--sampler", "vllm@0.26.0/v2", "--limit", "2", "--hide-ids")
    assert run("calibrate", golden("v2_plain"), *options, "--keep-scores", tmp_path) == 2
    read = ScoredFile.load(tmp_path / "v2_plain.npz")
    assert read.token_source == "retokenized"
    assert np.concatenate([one.scores.exact_match for one in read.answers]).mean() > 0.95


def test_answers_that_another_contract_drew_say_so_and_accuse_nobody(demo_directory, tmp_path):
    """What a V2 server drew, scored as if by V1: 160 tokens of another noise."""
    options = ("--model", demo_directory, "--sampler", "vllm@0.26.0/v1", "--limit", "2")
    assert run("calibrate", golden("v2_plain"), *options, "--keep-scores", tmp_path) == 2
    read = ScoredFile.load(tmp_path / "v2_plain.npz")
    assert read.identified["reason"] == "sampler_differs"
    assert read.identified["contract"].startswith("vllm@")
    assert all(one.audited.other_sampler for one in read.answers)
    verdict = judge_file("", "", read.answers, SHIPPED, identified=read.identified).verdict
    assert (verdict.word, verdict.reasons) == ("unsupported", ("sampler_differs",))


def test_evaluating_kept_scores_gives_the_result_that_the_readme_promises(tmp_path, capsys):
    good = kept(tmp_path / "good.npz", honest(3, 40))
    bad = kept(tmp_path / "bad.npz", faulty(4, 20, "4-bit weights"), 1000)
    fine = kept(tmp_path / "fine.npz", honest(5, 20), 2000)
    assert run("evaluate", "--honest", good, "--suspect", bad, fine, "--json", "-", "--plot", tmp_path / "plots") == 0
    result = json.loads(capsys.readouterr().out)
    first, second = result["suspects"]
    assert first["file"] == str(bad)
    assert first["verdict"] == "deviates"
    assert first["median_tokens_to_deviates"] <= 40
    assert first["auc"]["100"] > 0.95
    assert second["verdict"] == "consistent"
    assert second["median_tokens_to_deviates"] is None
    assert result["honest"]["false_positive_rate"] == 0.0
    assert result["honest"]["blocks"] == 20
    assert (tmp_path / "plots" / "auc.svg").exists()


def test_calibrate_takes_kept_scores_and_writes_the_band(tmp_path):
    good = kept(tmp_path / "good.npz", honest(6, 40))
    assert run("calibrate", good, "--out", tmp_path / "band.json", "--hardware", "H100 / CPU") == 0
    band = json.loads((tmp_path / "band.json").read_text())
    assert (band["sequences"], band["held_out"]["blocks"]) == (20, 20)
    assert band["scope"] == {"sampler": SAMPLER, "token_source": "given", "hardware": "H100 / CPU"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("evaluate", "--honest", "{recorded}", "--suspect", "{recorded}"), "give --model and --sampler"),
        (("evaluate", "--honest", "{a}", "{b}", "--suspect", "{a}"), "honest files of more than one sampler"),
        (("calibrate", "{a}", "--store", "sqlite:///x.db"), "name the reference"),
        (("calibrate", "{broken}"), "holds no kept scores"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments, says, tmp_path, capsys):
    names = {
        "a": kept(tmp_path / "a.npz", honest(7, 20)),
        "b": kept(tmp_path / "b.npz", honest(8, 20), sampler="vllm@0.26.0/v2"),
        "recorded": golden("v2_plain"),
        "broken": tmp_path / "broken.npz",
    }
    names["broken"].write_bytes(b"no scores")
    assert run(*(part.format(**names) for part in arguments)) == 2
    assert says in capsys.readouterr().err


def test_a_file_without_tokens_is_refused():
    with pytest.raises(InputError, match="holds no answer with tokens"):
        score_file("empty.jsonl", [], None, contract("greedy"))
