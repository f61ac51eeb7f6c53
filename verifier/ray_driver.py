"""Ray's driver: one pool of actors for each reference, every actor with its reference warm.

It lives in a process of its own (`verifier.executor_ray`), because Ray ends a driver whose cluster is gone for good.
An actor is never restarted by Ray and a batch never repeated: what is lost goes back to the queue, which counts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any

import ray
from ray import exceptions
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verifier.errors import AuditorDied, ExecutorLost, InputError, VerifierError
from verifier.remote_auditor import Loading, Needs, RemoteAuditor

START_SECONDS = 600.0
"""So long a batch waits for an actor that is starting."""


class PlacedAuditor(RemoteAuditor):
    """A `RemoteAuditor` that tells where it is."""

    def start(self, reference: str) -> str:
        """Load the reference; returns the id of the node that the actor runs on."""
        self.warm(reference)
        return str(ray.get_runtime_context().get_node_id())


@dataclass(eq=False)
class _Actor:
    handle: Any
    started: Any
    """Of the call that loads the reference; done once the actor is warm, or could not be."""
    group: Any = None
    batches: int = 0
    node: str | None = None
    is_dead: bool = False
    failure: str | None = None
    """Why it could not start."""

    def is_ready(self) -> bool:
        if self.node is None and not self.is_dead and ray.wait([self.started], timeout=0)[0]:
            try:
                self.node = str(ray.get(self.started))
            except exceptions.RayError as error:
                self.is_dead, self.failure = True, _last_line(error)
        return self.node is not None and not self.is_dead

    def end(self) -> None:
        self.is_dead = True
        with contextlib.suppress(exceptions.RayError):
            ray.kill(self.handle, no_restart=True)
        if self.group is not None:
            remove_placement_group(self.group)


class RayDriver:
    """Joins the cluster and keeps the pools. Methods may be called by several threads; they raise our own errors alone.

    Args:
        address: `auto`, HOST:PORT of the head, or ray://HOST:PORT.
        loading: how actors load references.
        needs: of one actor.
    """

    def __init__(self, address: str, loading: Loading, needs: Needs) -> None:
        self._address, self._loading, self._needs = address, loading, needs
        self._pools: dict[str, list[_Actor]] = {}
        self._changing = Lock()

    def connect(self) -> None:
        """Join the cluster.

        Raises:
            ExecutorLost: nothing answers at the address.
            InputError: the cluster cannot be used from here, as one of another version of Ray or Python.
        """
        try:
            ray.init(address=self._address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, TimeoutError) as error:
            raise ExecutorLost(f"no Ray cluster answers at {self._address}") from error
        except Exception as error:
            raise InputError(f"the Ray cluster at {self._address} cannot be used: {error}") from error

    def resize(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Start and end actors, idle ones only, until each reference has as many; returns how many of each run.

        Raises:
            ExecutorLost: an actor could not start since the last call; says why.
        """
        living = _living_nodes()
        with self._changing:
            self._raise_failures()
            for reference, count in wanted.items():
                pool = self._kept(reference, living)
                pool += [self._start(reference) for _ in range(count - len(pool))]
                idle = sorted((actor for actor in pool if not actor.batches), key=_Actor.is_ready)
                for actor in idle[: max(0, len(pool) - count)]:
                    pool.remove(actor)
                    actor.end()
            return {name: sum(actor.is_ready() for actor in pool) for name, pool in self._pools.items()}

    def audit(self, reference: str, batch: bytes, now: datetime) -> bytes:
        """What `RemoteAuditor.audit` returns, from the running actor that has least to do.

        Raises:
            AuditorDied: its process ended, and its node lives.
            ExecutorLost: no actor of the reference runs, or its node is gone.
            VerifierError: the batch could not be begun, as where a device is not there.
        """
        actor = self._least_busy(reference)
        try:
            return bytes(ray.get(actor.handle.audit.remote(reference, batch, now)))
        except exceptions.RayActorError as error:
            raise self._lost(reference, actor) from error
        except exceptions.RayTaskError as error:
            raise _own(error.cause) from None
        except exceptions.RayError as error:
            raise ExecutorLost(f"Ray lost a batch of {reference}: {_first_line(error)}") from error
        finally:
            with self._changing:
                actor.batches -= 1

    def _least_busy(self, reference: str) -> _Actor:
        """The actor for the next batch; one that is starting is waited for, as where the last one has died."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with self._changing:
                pool = [actor for actor in self._pools.get(reference, []) if not actor.is_dead]
                ready = [actor for actor in pool if actor.is_ready()]
                if ready:
                    actor = min(ready, key=lambda actor: actor.batches)
                    actor.batches += 1
                    return actor
            if not pool or time.monotonic() > deadline:
                raise ExecutorLost(f"no worker of {reference} runs in the Ray cluster")
            ray.wait([actor.started for actor in pool], timeout=1)

    def _lost(self, reference: str, actor: _Actor) -> AuditorDied | ExecutorLost:
        """Replaces the actor; says whether its process ended alone or with its node."""
        actor.end()
        with self._changing:
            pool = self._pools[reference]
            if actor in pool:
                pool[pool.index(actor)] = self._start(reference)
        if actor.node in _living_nodes():
            return AuditorDied(f"the process that held {reference} died while it audited")
        return ExecutorLost(f"a worker of {reference} left the Ray cluster with its node")

    def _raise_failures(self) -> None:
        for reference, pool in self._pools.items():
            for actor in pool:
                if not actor.is_ready() and actor.failure is not None:
                    pool.remove(actor)
                    actor.end()
                    raise ExecutorLost(f"a worker of {reference} could not start: {actor.failure}")

    def _kept(self, reference: str, living: set[str]) -> list[_Actor]:
        """A pool without the actors whose start failed or whose node is gone; batches of these end by themselves."""
        pool = self._pools.setdefault(reference, [])
        for actor in [one for one in pool if (one.is_ready() and one.node not in living) or one.is_dead]:
            pool.remove(actor)
            actor.end()
        return pool

    def _start(self, reference: str) -> _Actor:
        group, options = self._place()
        made: Any = ray.remote(PlacedAuditor).options(
            max_restarts=0, max_task_retries=0, max_concurrency=self._needs.lanes + 1, **options
        )
        handle = made.remote(self._loading)
        return _Actor(handle, handle.start.remote(reference), group)

    def _place(self) -> tuple[Any, dict[str, Any]]:
        """Of more than one GPU a placement group, on whose bundles the engine starts workers of its own."""
        needs = self._needs
        if needs.gpus <= 1:
            return None, {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        bundles = [{"CPU": needs.cpus, "GPU": 1.0}, *({"GPU": 1.0} for _ in range(needs.gpus - 1))]
        group = placement_group(bundles, strategy="PACK")
        where = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
        return group, {"num_cpus": needs.cpus, "num_gpus": 0, "scheduling_strategy": where}


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _own(error: Exception) -> VerifierError:
    return error if isinstance(error, VerifierError) else VerifierError(f"{type(error).__name__}: {error}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _last_line(error: Exception) -> str:
    """Of an error in an actor, whose text is a traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
