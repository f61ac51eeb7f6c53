"""The options by which commands have recorded answers scored; heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from verifier.commands import device_option, dtype_option, limit_option, token_progress

if TYPE_CHECKING:
    from verifier.scored_files import ScoredFile

SUFFIX = ".npz"

_options = (
    click.option("--model", help="Directory of the trusted model, or `demo`; kept scores need none."),
    click.option("--sampler", help="Contract id, e.g. vllm@0.26.0/v2 or greedy; kept scores name their own."),
    click.option("--temperature", type=float, help="Instead of the files' own."),
    click.option("--top-k", type=int, help="Instead of the files' own; 0 or -1 is off."),
    click.option("--top-p", type=float, help="Instead of the files' own; 1 is off."),
    click.option("--seed", type=int, help="Instead of the files' own."),
    click.option("--hide-ids", is_flag=True, help="Use only messages and text, as if no token ids had been recorded."),
    click.option(
        "--keep-scores", "keep", type=click.Path(file_okay=False, path_type=Path),
        help="Keep the scores of FILE.jsonl there as FILE.npz, which may stand in its place the next time.",
    ),
    dtype_option,
    device_option,
    limit_option,
)  # fmt: skip


def scoring_options(command: Callable[..., None]) -> Callable[..., None]:
    """With the options that `scored_files` takes."""
    for option in reversed(_options):
        command = option(command)
    return command


def scored_files(
    files: Sequence[str], *, model: str | None, sampler: str | None, keep: Path | None, **how: Any
) -> dict[str, ScoredFile]:
    """Each file's answers, scored; a file of recordings may name its own contract as FILE@SAMPLER."""
    from verifier.scored_files import ScoredFile

    kept = {file: ScoredFile.load(Path(file)) for file in files if file.endswith(SUFFIX)}
    recorded = [file for file in files if file not in kept]
    if not recorded:
        return kept
    if model is None or sampler is None:
        raise click.UsageError(f"{recorded[0]} has yet to be scored: give --model and --sampler")
    found = _scored(recorded, model, sampler, **how)
    if keep is not None:
        _keep(found, keep)
    return {**kept, **found}


def _scored(
    files: Sequence[str], model: str, sampler: str, *, hide_ids: bool, dtype: str, device: str, limit: int | None,
    **overrides: Any,
) -> dict[str, ScoredFile]:  # fmt: skip
    from verifier.models import model_directory, torch_dtype
    from verifier.recordings import read_recordings
    from verifier.references import open_reference
    from verifier.samplers import contract
    from verifier.scored_files import score_file, score_texts
    from verifier.tokenization import ChatTokenizer

    named = {file: file_and_sampler(file, sampler) for file in files}
    rules = {file: contract(name) for file, (_, name) in named.items()}
    rows = {file: read_recordings(path, overrides=overrides, limit=limit) for file, (path, _) in named.items()}
    directory = model_directory(model, {})
    reference = open_reference(directory, device=device, dtype=torch_dtype(dtype))
    tokenizer = ChatTokenizer(directory) if hide_ids else None
    total = sum(len(row.sequence.output_token_ids) for recordings in rows.values() for row in recordings)
    with token_progress(total, "Scoring") as advance:
        return {
            file: score_file(file, rows[file], reference, rules[file], advance)
            if tokenizer is None
            else score_texts(file, rows[file], reference, rules[file], tokenizer, advance)
            for file in files
        }


def _keep(found: Mapping[str, ScoredFile], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for file, scores in found.items():
        path = directory / (file_and_sampler(file, "")[0].stem + SUFFIX)
        scores.save(path)
        click.echo(f"kept {path}", err=True)


def file_and_sampler(text: str, sampler: str) -> tuple[Path, str]:
    """FILE@SAMPLER in its parts; a FILE that names none has `sampler`."""
    if "@" not in text or Path(text).exists():
        return Path(text), sampler
    name, _, own = text.partition("@")
    return Path(name), own


def common_scope(files: Collection[ScoredFile]) -> dict[str, str]:
    """The contract and the token source that all files were scored under: a band is of one. Raises InputError."""
    from verifier.errors import InputError

    scope = {}
    for name in ("sampler", "token_source"):
        found = sorted({getattr(file, name) for file in files})
        if len(found) > 1:
            raise InputError(f"honest files of more than one {name} ({', '.join(found)}): calibrate each by itself")
        scope[name] = found[0]
    return scope
