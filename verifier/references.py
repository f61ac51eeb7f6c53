"""Which trusted model runs where: transformers on a CPU, transformers on a GPU, or a vLLM engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from verifier.errors import InputError
from verifier.reference import TransformersReference

BACKENDS = ("transformers", "vllm", "vllm-logprobs")


def open_reference(
    path: str | Path, *, backend: str = "transformers", device: str = "cpu", dtype: torch.dtype = torch.float32,
    **engine: Any,
) -> Any:  # fmt: skip
    """A reference (verifier.replay.Reference).

    Args:
        backend: one of BACKENDS.
        engine: for vLLM, arguments of VLLMEngine; for transformers on a GPU, `compiled`. Those of others are ignored.

    Raises:
        InputError: vLLM is not installed, or no such backend or device exists.
        ReferenceModelError: the model cannot be used there.
    """
    check_backend(backend)
    if backend != "transformers":
        from verifier.reference_vllm import VLLMLogprobsReference, VLLMReference

        engine.pop("compiled", None)
        return (VLLMReference if backend == "vllm" else VLLMLogprobsReference)(path, dtype=dtype, **engine)
    where = torch_device(device)
    if where.type == "cuda":
        from verifier.reference_cuda import CudaReference

        return CudaReference(path, device=device, dtype=dtype, compiled=bool(engine.get("compiled")))
    return TransformersReference(path, device=device, dtype=dtype)


def torch_device(name: str) -> torch.device:
    """The device of a name such as `cpu` or `cuda:1`; raises InputError where this machine's torch has none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known: use cpu, cuda, or one GPU of several as in cuda:1") from error
    found = torch.accelerator.current_accelerator(check_available=True)
    if device.type != "cpu" and (found is None or found.type != device.type):
        raise InputError(
            f"torch {torch.__version__} finds no {device.type} device here: use cpu, or check the driver and that "
            "torch is a build for it"
        )
    if device.type != "cpu" and (device.index or 0) >= torch.accelerator.device_count():
        raise InputError(f"device {name!r} is not there: this machine has {torch.accelerator.device_count()}")
    return device


def check_backend(name: str) -> None:
    """Raise InputError unless `name` is one of BACKENDS."""
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is not known: use one of {', '.join(BACKENDS)}")
