"""Where a worker's batches are audited, as its options say: here, in processes of this machine, or in a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from storage.database import Database
from verifier.errors import InputError
from verifier.executor import InlineExecutor
from verifier.executor_process import LANES, Place, ProcessExecutor
from verifier.remote_auditor import Loading, Needs
from verifier.worker import Worker

KINDS = ("inline", "process", "ray")
RAY_WORKERS = 8
"""Most workers of a Ray cluster, unless told."""


@dataclass(frozen=True)
class Plan:
    """The executor's options.

    Attributes:
        kind: one of KINDS.
        address: of the Ray cluster.
        least, most: workers; None for `most`: a process for each GPU, one on a CPU, RAY_WORKERS in a Ray cluster.
        gpus: of one worker.
        cpus: cores of one worker; None for a share of this machine's, in a Ray cluster for one.
    """

    kind: str = "inline"
    address: str = "auto"
    least: int = 0
    most: int | None = None
    gpus: int = 0
    cpus: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"executor {self.kind!r} is not known: use one of {', '.join(KINDS)}")
        if self.kind == "ray" and find_spec("ray") is None:
            raise InputError("--executor ray needs Ray: pip install 'seedproof[ray]'")
        if self.most is not None and self.least > self.most:
            raise InputError(f"--min-workers {self.least} is more than --max-workers {self.most}")


async def work(
    database: Database, loading: Loading, plan: Plan, *, until_empty: bool = False, **worker: Any
) -> None:
    """Audit what the queue holds; `worker` is for Worker: batch, batch_tokens, memory."""
    worker["name"] = f"{socket.gethostname()}:{os.getpid()}"
    on_gpu = loading.device.startswith("cuda")
    loading = replace(loading, engine=parallel(loading, plan))
    if plan.kind == "ray":
        await _on_ray(database, loading, plan, LANES if on_gpu else 1, until_empty, worker)
        return
    executor, lanes = _on_this_machine(loading, plan)
    try:
        await Worker(database, executor, lanes=lanes, **worker).run(until_empty=until_empty)
    finally:
        executor.close()


def _on_this_machine(loading: Loading, plan: Plan) -> tuple[ProcessExecutor | InlineExecutor, int]:
    """The executor, and how many batches it takes at a time."""
    if plan.kind == "process":
        found = places(loading, plan)
        return ProcessExecutor(found), LANES * len(found)
    return InlineExecutor(loading.auditor()), LANES if loading.device.startswith("cuda") else 1


async def _on_ray(
    database: Database, loading: Loading, plan: Plan, lanes: int, until_empty: bool, worker: dict[str, Any]
) -> None:
    from verifier.executor_ray import RayExecutor
    from verifier.fleet import Fleet

    cpus, most = plan.cpus or 1, plan.most or max(RAY_WORKERS, plan.least)
    # of several GPUs none is the actor's own: they are those of the engine's workers
    loading = replace(loading, threads=cpus, device="cpu" if plan.gpus > 1 else loading.device)
    executor = RayExecutor(plan.address, loading, Needs(cpus, plan.gpus, lanes), most=most)

    def made(reference: str) -> Worker:
        return Worker(database, executor, reference=reference, **worker)

    try:
        await Fleet(database, executor, made, least=plan.least, most=most, lanes=lanes).run(until_empty=until_empty)
    finally:
        executor.close()


def parallel(loading: Loading, plan: Plan) -> Mapping[str, Any]:
    """The engine's arguments with its share of several GPUs. Raises InputError where the backend takes one alone."""
    if plan.gpus <= 1:
        return loading.engine
    if not loading.backend.startswith("vllm"):
        raise InputError("--gpus-per-worker: only --backend vllm spreads a reference over several GPUs")
    asked = dict(loading.engine.get("vllm_kwargs") or {})
    if not {"tensor_parallel_size", "pipeline_parallel_size"} & asked.keys():
        asked["tensor_parallel_size"] = plan.gpus
    if plan.kind == "ray":
        asked.setdefault("distributed_executor_backend", "ray")
    return {**loading.engine, "vllm_kwargs": asked}


def places(loading: Loading, plan: Plan) -> list[Place]:
    """One for each process: a share of the cores, or the next GPUs that this process sees."""
    if not loading.device.startswith("cuda"):
        count = plan.most or max(plan.least, 1)
        threads = plan.cpus or max(1, (os.cpu_count() or 1) // count)
        return [Place(replace(loading, threads=threads))] * count
    shown, each = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")), max(plan.gpus, 1)
    groups = [shown[first : first + each] for first in range(0, len(shown) - each + 1, each)][: plan.most]
    if not groups:
        raise InputError(f"--gpus-per-worker {each}: this machine shows {len(shown)} GPUs")
    return [Place(replace(loading, device="cuda"), ",".join(group)) for group in groups]


def visible_gpus(visible: str | None) -> list[str]:
    """Names of the GPUs that this process sees, found without waking CUDA."""
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
