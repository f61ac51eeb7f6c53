"""Where recorded engine data lies: the part kept in tests/data, and the full sets beside the checkout."""

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "data"
BESIDE = Path(__file__).parents[2] / "shared"


def golden(name: str) -> Path:
    """The kept part of one golden file."""
    return HERE / "golden" / f"{name}.jsonl"


def golden_scores(name: str) -> Path:
    """Kept scores of one golden file, or of a part of it."""
    return HERE / "golden_scores" / f"{name}.npz"


def noise_vectors(prefix: str) -> list[dict[str, Any]]:
    """Vectors of the contracts whose name starts with `prefix`."""
    found = json.loads((HERE / "vectors" / "noise.json").read_text())["vectors"]
    return [vector for vector in found if vector["contract"].startswith(prefix)]


def cuda_fills() -> list[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Recorded CUDA fills as (meta, sampled indices, exponentials): the full set if it is there."""
    folder = BESIDE / "vectors" if (BESIDE / "vectors").is_dir() else HERE / "vectors"
    arrays = np.load(folder / "cuda_noise.npz")
    metas = json.loads((folder / "cuda_noise.json").read_text())["meta"]
    plain = [meta for meta in metas if "step" in meta and f"{meta['key']}_idx" in arrays]
    return [(meta, arrays[f"{meta['key']}_idx"], arrays[f"{meta['key']}_val"]) for meta in plain]
