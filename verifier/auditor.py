"""Warm references and audits made with them: the part of a worker that may live in another process or machine."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from threading import Lock

from storage.audits import NewAudit
from storage.models import Exchange
from verifier.audit import TrustedModel, audit_exchanges
from verifier.errors import ExecutorLost, ReferenceLost, VerifierError
from verifier.samplers import contract
from verifier.stream_identity import accuses_nobody, annotated, identity, is_suspicious

logger = logging.getLogger("seedproof.worker")

Results = dict[str, list[NewAudit] | Exception]
"""Of each exchange of a batch, by id: one audit per choice, or what broke it."""

_LOOKS = 8
"""Batches of a stream that matches from whose first answers a contract is looked for until one is named."""

Stream = tuple[str, str, str | None]
"""Upstream, model and configured sampler; the reference goes without saying."""


class Auditor:
    """Audits batches, each on one reference that stays loaded from then on, until its engine dies.

    Batches may be audited by several threads; they take turns on a reference.

    Args:
        load: gives the trusted model of a reference's name; called once per name.
    """

    def __init__(self, load: Callable[[str], TrustedModel]) -> None:
        self._load = load
        self._models: dict[str, TrustedModel] = {}
        self._loading, self._closed = Lock(), False
        self._samplers: dict[Stream, str] = {}
        self._looks = Counter[Stream]()

    def audit(self, reference: str, batch: Sequence[Exchange], *, now: datetime) -> Results:
        """Results of all; an exchange that breaks the batch gets its own exception, the rest their audits.

        Answers that match less than honest ones are first asked which contract drew them, and so are a stream's first.
        """
        results = self._audited(reference, batch, now, self._in_use(batch))
        streams: dict[Stream, list[Exchange]] = {}
        for exchange in batch:
            if not isinstance(results[exchange.id], Exception):
                streams.setdefault(stream_of(exchange), []).append(exchange)
        for exchanges in streams.values():
            try:
                results.update(self._explained(reference, exchanges, results, now))
            except Exception:
                logger.warning("a stream of %s could not be identified", exchanges[0].upstream, exc_info=True)
        return results

    def _explained(self, reference: str, exchanges: Sequence[Exchange], results: Results, now: datetime) -> Results:
        """Results of one stream's exchanges that its sampler's identity changes."""
        stream = stream_of(exchanges[0])
        suspects = [exchange for exchange in exchanges if is_suspicious(_audits(results, exchange))]
        if not suspects and self._looks[stream] >= _LOOKS:
            return {}
        self._looks[stream] += 1
        asked = suspects or exchanges
        model = self._model(reference)
        with model.turn:
            found = identity(asked, model)
        if found is None or not (suspects or found["reason"] is None):
            return {}
        if not suspects:
            self._looks[stream] = _LOOKS
        changed: Results = {exchange.id: results[exchange.id] for exchange in asked}
        configured = contract(exchanges[0].sampler or "").id
        if found["reason"] is None and found["contract"] != self._samplers.get(stream, configured):
            self._samplers[stream] = found["contract"]
            # where in the batch the provider changed, each answer tells by itself
            again = self._audited(reference, exchanges, now, self._in_use(exchanges))
            changed = {number: max(audits, results[number], key=matched) for number, audits in again.items()}
        elif accuses_nobody(found):
            changed = {one.id: annotated(_audits(changed, one), other_sampler=found["reason"]) for one in asked}
        first = asked[0]
        return {**changed, first.id: annotated(_audits(changed, first), identified=dict(found))}

    def close(self) -> None:
        """Begin nothing more: what is being loaded is not audited with; a batch that has its reference ends."""
        self._closed = True

    def warm(self, reference: str) -> None:
        """Load a reference before the first batch needs it. Raises what loading it raises."""
        self._model(reference)

    def audit_by(
        self, reference: str, batch: Sequence[Exchange], *, sampler: str | None, now: datetime
    ) -> Results:
        """Results by one contract, None for the configured one, whether or not it explains the answers."""
        return self._audited(reference, batch, now, {exchange.id: sampler for exchange in batch} if sampler else {})

    def _in_use(self, batch: Sequence[Exchange]) -> dict[str, str]:
        """By exchange id the contracts of streams that follow another one than the configured."""
        used = {exchange.id: self._samplers.get(stream_of(exchange)) for exchange in batch}
        return {number: sampler for number, sampler in used.items() if sampler}

    def _audited(
        self, reference: str, batch: Sequence[Exchange], now: datetime, samplers: Mapping[str, str]
    ) -> Results:
        try:
            return dict(audit_exchanges(batch, self._model(reference), now=now, samplers=samplers))
        except ExecutorLost:
            raise
        except Exception as error:
            if isinstance(error, ReferenceLost):
                self._models.pop(reference, None)
            if len(batch) == 1:
                logger.warning("audit of %s failed: %s", batch[0].id, error)
                return {batch[0].id: error}
            if isinstance(error, VerifierError) and reference not in self._models:
                logger.warning("reference %s cannot be used: %s", reference, error)
                return {exchange.id: error for exchange in batch}
        results: Results = {}
        for exchange in batch:
            results.update(self._audited(reference, [exchange], now, samplers))
        return results

    def _model(self, reference: str) -> TrustedModel:
        with self._loading:
            if reference not in self._models and not self._closed:
                self._models[reference] = self._load(reference)
            if self._closed:
                raise ExecutorLost("the worker is stopping")
            return self._models[reference]


def stream_of(exchange: Exchange) -> Stream:
    """The stream that an exchange belongs to."""
    return exchange.upstream, exchange.model, exchange.sampler


def matched(audits: list[NewAudit] | Exception) -> int:
    """How many tokens of an exchange match."""
    return 0 if isinstance(audits, Exception) else sum(audit.exact_matches for audit in audits)


def _audits(results: Results, exchange: Exchange) -> list[NewAudit]:
    """An exchange's audits; none where it broke."""
    found = results[exchange.id]
    return [] if isinstance(found, Exception) else found
