"""An auditor in another process or on another machine: what it must know, and how batches and results travel."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from verifier.errors import VerifierError

if TYPE_CHECKING:
    from storage.models import Exchange
    from verifier.auditor import Auditor, Results


@dataclass(frozen=True)
class Loading:
    """How references are loaded; plain values, so that it travels without torch. Fields are those of `load_model`.

    `threads` of torch decide in which order sums are taken: audits are equal to the bit where they are.
    """

    directories: Mapping[str, str]
    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "transformers"
    engine: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def auditor(self) -> Auditor:
        """An auditor of this process that loads so. Raises InputError, ReferenceUnreadable."""
        import torch

        from verifier.auditor import Auditor
        from verifier.models import load_model, torch_dtype
        from verifier.references import check_place

        check_place(self.backend, self.device)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Auditor(
            partial(
                load_model, directories=self.directories, device=self.device, dtype=torch_dtype(self.dtype),
                backend=self.backend, **self.engine,
            )
        )  # fmt: skip


@dataclass(frozen=True)
class Needs:
    """What one worker takes of a cluster, and how many batches it works on at a time."""

    cpus: float = 1
    gpus: int = 0
    lanes: int = 1


class RemoteAuditor:
    """An `Auditor` made where it is first used; batches and results are pickles, which only our own processes write."""

    def __init__(self, loading: Loading) -> None:
        self._loading, self._made = loading, Lock()
        self._auditor: Auditor | None = None

    def warm(self, reference: str) -> None:
        """Load a reference, so that a death by that is charged to no job; why it cannot be loaded the audit says."""
        with contextlib.suppress(VerifierError):
            self._here().warm(reference)

    def audit(self, reference: str, batch: bytes, now: datetime) -> bytes:
        """What `Auditor.audit` returns, packed. Raises what `Loading.auditor` raises."""
        return packed_results(self._here().audit(reference, pickle.loads(batch), now=now))  # noqa: S301

    def _here(self) -> Auditor:
        with self._made:
            self._auditor = self._auditor or self._loading.auditor()
            return self._auditor


def packed_batch(batch: Sequence[Exchange]) -> bytes:
    """Exchanges for `RemoteAuditor.audit`."""
    return pickle.dumps(list(batch), pickle.HIGHEST_PROTOCOL)


def packed_results(results: Results) -> bytes:
    """Results for `unpacked_results`; an error that would not arrive as it is becomes one of ours with its words."""
    travelling = {number: _travels(one) if isinstance(one, Exception) else one for number, one in results.items()}
    return pickle.dumps(travelling, pickle.HIGHEST_PROTOCOL)


def unpacked_results(packed: bytes) -> Results:
    """What `packed_results` packed."""
    results: Results = pickle.loads(packed)  # noqa: S301
    return results


def _travels(error: Exception) -> Exception:
    try:
        arrived = pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        arrived = None
    same = type(arrived) is type(error) and str(arrived) == str(error)
    return error if same else VerifierError(f"{type(error).__name__}: {error}")
