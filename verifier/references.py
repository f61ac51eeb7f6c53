"""Which trusted model runs where: transformers on a CPU, transformers on a GPU, or a vLLM engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from verifier.errors import InputError, ReferenceUnreadable
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
    check_place(backend, device)
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


def check_place(backend: str, device: str) -> None:
    """Raise InputError at an unknown backend or device, and ReferenceUnreadable where there is no such GPU.

    GPUs are counted without a call of CUDA: after one, as of torch.cuda.is_available, vLLM's engine cannot be forked.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is not known: use one of {', '.join(BACKENDS)}")
    if device == "cpu":
        return
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise InputError(f"device {device!r} is not known: use cpu, cuda, or one GPU of several as in cuda:1")
    number = int(device.partition(":")[2] or 0)
    found = torch.cuda.device_count()
    if number >= found:
        raise ReferenceUnreadable(
            f"device {device!r} needs a GPU that torch {torch.__version__} can use, and it finds {found or 'none'}: "
            "check the driver and that torch is a CUDA build, or take device='cpu'"
        )


def memory(device: str) -> str:
    """How much of a GPU's memory is taken, by whomever; empty for the CPU."""
    if device == "cpu":
        return ""
    free, total = torch.cuda.mem_get_info(torch.device(device))
    return f"{(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB"
