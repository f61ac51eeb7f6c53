# ruff: noqa: N818 (an error here is named for what is wrong)
"""Everything the verifier raises on purpose.

VerifierError
├── InputError               the caller's files, arguments or identifiers are wrong
│   ├── UnknownContract      a sampler contract id names no engine we replay
│   └── BadSequence          one sequence cannot be scored; names it
├── ReferenceModelError          the trusted model cannot be used
│   ├── ReferenceUnreadable  the directory holds no loadable model
│   ├── ReferenceLost        it was loaded, and its engine has died since
│   └── ReferenceTooSmall    device memory or context length is not enough
├── ExecutorError            where batches are audited, something broke
│   ├── AuditorDied          the process that held the reference died over the batch; one of its jobs may be to blame
│   └── ExecutorLost         the machines are away; no job is to blame
└── Unsupported              an honest provider's answer that we cannot replay; ends as a verdict, not a crash
"""


class VerifierError(Exception):
    """Base of all errors raised on purpose by the verifier."""


class InputError(VerifierError):
    """The caller's input is wrong; the message says how to mend it."""


class UnknownContract(InputError):
    """A sampler contract id that names no engine, version or runner we know."""


class BadSequence(InputError):
    """A token sequence that the reference model cannot score."""


class ReferenceModelError(VerifierError):
    """The trusted model cannot be used."""


class ReferenceUnreadable(ReferenceModelError):
    """The reference's directory holds no model that can be loaded."""


class ReferenceLost(ReferenceModelError):
    """The engine that held the reference has died; loading it again may help."""


class ReferenceTooSmall(ReferenceModelError):
    """The reference ran out of memory, or its context is shorter than the sequence."""


class ExecutorError(VerifierError):
    """Something broke where batches are audited."""


class AuditorDied(ExecutorError):
    """The process that held the reference died while it audited a batch."""


class ExecutorLost(ExecutorError):
    """The machines that audit are away; jobs wait for them."""


class Unsupported(VerifierError):
    """An answer that no sampler contract of ours can replay.

    Args:
        reason: a short code stored with the audit, e.g. ``prompt_not_text``.
        detail: one sentence for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
