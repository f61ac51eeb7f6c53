"""Trusted models by name: `--reference NAME=DIR`, the demo model as `demo`, or a directory's own path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from verifier.audit import TrustedModel
from verifier.errors import InputError
from verifier.references import open_reference
from verifier.tokenization import ChatTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name such as `float32`; raises InputError."""
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not known: use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def model_directory(name: str, directories: Mapping[str, str]) -> Path:
    """Where the reference called `name` lies."""
    if name in directories:
        return Path(directories[name])
    if name == "demo":
        from verifier.demo_model import ensure_demo_model

        return ensure_demo_model()
    return Path(name)


def load_model(
    name: str, *, directories: Mapping[str, str], device: str = "cpu", dtype: torch.dtype = torch.float32,
    backend: str = "transformers", **engine: Any,
) -> TrustedModel:  # fmt: skip
    """Load a reference with its tokenizer; arguments and errors are those of `open_reference`."""
    path = model_directory(name, directories)
    reference = open_reference(path, backend=backend, device=device, dtype=dtype, **engine)
    return TrustedModel(name, ChatTokenizer(path), reference)
