"""`seedproof identify`: which sampler made recorded outputs; heavy imports wait until it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from verifier.commands import device_option, dtype_option, files_argument, json_option, model_option, write_json

if TYPE_CHECKING:
    from verifier.identify import Identification


@click.command("identify")
@files_argument
@model_option
@click.option("--tokens", type=click.IntRange(min=1), default=300, show_default=True, help="Read of each file.")
@click.option("--all", "exhaustive", is_flag=True, help="Rank every contract, even where one is certain.")
@dtype_option
@device_option
@json_option
def identify_command(
    files: Sequence[Path], model: str, tokens: int, exhaustive: bool, dtype: str, device: str, json_path: str | None
) -> None:
    """Name the engine, version and runner that sampled recorded outputs (one JSON object a line), or none."""
    from verifier.identify import identify
    from verifier.models import model_directory, torch_dtype
    from verifier.recordings import read_recordings
    from verifier.references import open_reference

    recordings = {file: read_recordings(file) for file in files}
    reference = open_reference(model_directory(model, {}), device=device, dtype=torch_dtype(dtype))
    found: dict[Path, Identification] = {}
    for file, rows in recordings.items():
        for number, row in enumerate(rows):
            if row.sequence.output_token_ids:
                reference.check(number, row.sequence)
        found[file] = identify(reference, rows, limit=tokens, exhaustive=exhaustive)
    if json_path != "-":
        _print_table(found)
    write_json(json_path, result(found))


def result(found: Mapping[Path, Identification]) -> dict[str, object]:
    """What `--json` writes; of a single file also at the top."""
    files = [{"file": str(file), **identification.to_dict()} for file, identification in found.items()]
    only = {name: files[0][name] for name in ("contract", "reason", "ranking")} if len(files) == 1 else {}
    return {**only, "files": files}


def _print_table(found: Mapping[Path, Identification]) -> None:
    from rich.table import Table

    from verifier.terminal import console

    table = Table()
    for heading in ("file", "contract", "match rate", "evidence (nats)", "tokens", "what it is"):
        table.add_column(heading)
    for file, identification in found.items():
        best = identification.ranking[0] if identification.ranking else None
        table.add_row(
            file.name, identification.contract or "none", f"{best.match_rate:.4f}" if best else "",
            f"{best.evidence:.0f}" if best else "", str(identification.tokens),
            identification.reason or (best.covers if best else "") or "",
        )  # fmt: skip
    console().print(table)
