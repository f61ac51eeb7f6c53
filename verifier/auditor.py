"""Warm references and audits made with them: the part of a worker that may live in another process or machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from storage.audits import NewAudit
from storage.models import Exchange
from verifier.audit import TrustedModel, audit_exchanges
from verifier.errors import VerifierError
from verifier.stream_identity import identity

logger = logging.getLogger("seedproof.worker")

Results = dict[str, list[NewAudit] | Exception]
"""Of each exchange of a batch, by id: one audit per choice, or what broke it."""


class Auditor:
    """Audits batches, each on one reference that stays loaded from then on.

    Args:
        load: gives the trusted model of a reference's name; called once per name.
    """

    def __init__(self, load: Callable[[str], TrustedModel]) -> None:
        self._load = load
        self._models: dict[str, TrustedModel] = {}

    def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        """Results of all; an exchange that breaks the batch gets its own exception, the rest their audits."""
        try:
            return dict(audit_exchanges(batch, self._model(reference), now=now))
        except Exception as error:
            if len(batch) == 1:
                logger.warning("audit of %s failed: %s", batch[0].id, error)
                return {batch[0].id: error}
            if isinstance(error, VerifierError) and reference not in self._models:
                return {exchange.id: error for exchange in batch}
        results: Results = {}
        for exchange in batch:
            results.update(self.audit(reference, [exchange], now=now))
        return results

    def identity(self, reference: str, exchanges: Sequence[Exchange]) -> Mapping[str, Any] | None:
        """What `verifier.stream_identity.identity` says of one stream's exchanges; None where it broke."""
        try:
            return identity(exchanges, self._model(reference))
        except Exception:
            logger.warning("a stream of %s could not be identified", exchanges[0].upstream, exc_info=True)
            return None

    def _model(self, reference: str) -> TrustedModel:
        if reference not in self._models:
            self._models[reference] = self._load(reference)
        return self._models[reference]
