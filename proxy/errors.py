"""Everything that can go wrong on this side, by who is to blame.

ProxyError
├── ConfigError      the operator: the configuration cannot be used
├── ListenError      the operator: the address cannot be listened on
├── ProbeError       the operator: probes reach no proxy, or not the one of this configuration
├── UnsafeInstallError  the operator: a dependency is installed in a form that is open to attacks
├── RequestError     the client: its request cannot be forwarded (carries the HTTP status to answer with)
└── UpstreamError    the provider: it could not be reached, or it failed before its answer began
"""

from __future__ import annotations


class ProxyError(Exception):
    """Base of this package's errors; its text is one clear sentence."""


class ConfigError(ProxyError):
    """The configuration cannot be used; the text names the key and the way out."""


class ListenError(ProxyError):
    """The listen address cannot be used; the text names it and the way out."""


class ProbeError(ProxyError):
    """Probes reach no proxy that records them where the configuration says; the text names the address."""


class UnsafeInstallError(ProxyError):
    """A dependency is installed in a form that is open to attacks; the text names the way out."""


class RequestError(ProxyError):
    """The client's request cannot be forwarded, or not now.

    `status` is the HTTP status to answer with, `code` and `param` fill OpenAI's error object, `retry_after` are the
    seconds after which it may be tried again.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str, param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after


class UpstreamError(ProxyError):
    """The provider failed before any byte of its answer came.

    `reached` says that it may already have worked on (and billed) the request, so that nobody should retry
    blindly.
    """

    def __init__(self, message: str, *, status: int, code: str, reached: bool) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.reached = reached
