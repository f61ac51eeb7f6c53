"""The doctor's findings as text and as JSON. Pure.

What a reference says of the answers comes as the dictionary that the verifier's examination writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from proxy.doctor import NO, UNKNOWN, YES, Answers, Finding, conclusion, findings, suggested_kind, toml
from proxy.upstreams import Model, Upstream

_MARKS = {YES: "✓", NO: "✗", UNKNOWN: "?"}


@dataclass(frozen=True)
class Diagnosis:
    """What was found of one provider; `examination` is None without a reference."""

    upstream: Upstream
    model: Model
    answers: Answers
    examination: Mapping[str, Any] | None

    @property
    def contract(self) -> str | None:
        """The sampler contract that the answers follow."""
        found = (self.examination or {}).get("identified") or {}
        name = found.get("contract")
        return None if name == "none" else name

    @cached_property
    def findings(self) -> list[Finding]:
        return [*findings(self.answers), *self._of_the_reference()]

    @property
    def conclusion(self) -> str:
        return conclusion(self.findings, self.contract, asked_reference=self.examination is not None)

    @property
    def toml(self) -> str:
        takes_top_k = any(finding.name == "top_k" and finding.answer == YES for finding in self.findings)
        kind = suggested_kind(self.upstream, self.answers)
        return toml(self.upstream, self.model, kind=kind, sampler=self.contract, top_k=takes_top_k and kind != "openai")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "upstream": self.upstream.name, "model": self.model.name,
            "findings": {one.name: {"answer": one.answer, "detail": one.detail} for one in self.findings},
            "examination": self.examination, "conclusion": self.conclusion, "toml": self.toml,
        }  # fmt: skip

    def as_text(self) -> str:
        """For a terminal."""
        lines = [f"{self.upstream.name}, model {self.model.name}:"]
        lines += [f"  {_MARKS[one.answer]} {one.name:<16}{one.detail}".rstrip() for one in self.findings]
        lines += ["", self.conclusion]
        return "\n".join(lines) + (f"\n\n{self.toml}" if self.findings[0].answer == YES else "\n")

    def _of_the_reference(self) -> list[Finding]:
        found = self.examination
        if found is None:
            return [Finding(name, UNKNOWN, "no reference at hand") for name in ("prompt template", "sampler")]
        answer = {"equal": YES, "differs": NO}.get(found["prompt"], UNKNOWN)
        detail = found["prompt_detail"] or ("" if answer == YES else "neither ids nor a count are told")
        return [Finding("prompt template", answer, detail), self._sampler(found)]

    def _sampler(self, found: Mapping[str, Any]) -> Finding:
        identified = found["identified"]
        if identified is None:
            return Finding("sampler", UNKNOWN, found["refusal"] or "there are no tokens to try")
        if self.contract is None:
            return Finding("sampler", NO, f"{identified['reason']} ({identified['tokens']} tokens tried)")
        best = identified["ranking"][0]
        matched = f"{best['match_rate']:.2f} of {best['tokens']} tokens match"
        return Finding("sampler", YES, f"{self.contract}, {matched}, ids {found['token_source']}")
