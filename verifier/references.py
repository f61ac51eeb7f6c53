"""Which trusted model runs where: transformers on a CPU, transformers on a GPU, or a vLLM engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from verifier.errors import InputError
from verifier.reference import TransformersReference


def open_reference(
    path: str | Path, *, backend: str = "transformers", device: str = "cpu", dtype: torch.dtype = torch.float32,
    **engine: Any,
) -> Any:  # fmt: skip
    """A reference (verifier.replay.Reference); `engine` holds VLLMReference's own arguments.

    Raises ReferenceModelError, and InputError where vLLM is not installed or no such device exists.
    """
    if backend == "vllm":
        from verifier.reference_vllm import VLLMReference

        return VLLMReference(path, dtype=dtype, **engine)
    if device.startswith("cuda"):
        from verifier.reference_cuda import CudaReference

        return CudaReference(path, device=device, dtype=dtype)
    if device != "cpu":
        raise InputError(f"device {device!r} is not known: use cpu, cuda, or one GPU of several as in cuda:1")
    return TransformersReference(path, device=device, dtype=dtype)
