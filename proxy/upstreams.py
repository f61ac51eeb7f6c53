"""The providers behind the proxy and how a request finds its own. Pure.

A request goes to an upstream by path prefix (`/{upstream}/v1/…`) or, without prefix, by its model's name. A
model's name that two upstreams list would make that choice silent, so it is refused unless all but one are
`prefix_only`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxy.errors import ConfigError, RequestError
from storage.retention_rule import Rule

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a kind of provider understands beyond OpenAI's own fields.

    `pinned` are the values sent when neither the client nor the configuration names one: servers such as vLLM
    fill the gap from the model's generation_config.json, which the verifier would have to guess. `asked` are the
    fields that make the answer tell its token ids, `asked_of_text` those of `/v1/completions`. `routes` says that
    it is a router, which must be told to take one provider and to ignore no parameter.
    """

    pinned: Mapping[str, float]
    takes_top_k: bool
    asked: Mapping[str, bool | int] = field(default_factory=dict)
    asked_of_text: Mapping[str, bool | int] = field(default_factory=dict)
    routes: bool = False


_ENGINE_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_TOP_K_FROM_0 = {**_ENGINE_DEFAULTS, "top_k": 0}  # -1 is an error there
_OPENAI_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
_LLAMA_CPP_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}
_TOKEN_IDS = {"return_token_ids": True}
_LOGPROBS = {"logprobs": 1}

DIALECTS: Mapping[str, Dialect] = {
    "vllm": Dialect(pinned=_ENGINE_DEFAULTS, takes_top_k=True, asked=_TOKEN_IDS, asked_of_text=_TOKEN_IDS),
    "sglang": Dialect(
        # return_token_ids is an error in its chat streams
        pinned=_ENGINE_DEFAULTS, takes_top_k=True, asked={"return_input_ids": True, "return_output_ids": True},
        asked_of_text=_TOKEN_IDS,
    ),
    "llama.cpp": Dialect(
        # ids stand in the logprob entries; a cached prefix would change the last bits of the logits
        pinned=_LLAMA_CPP_DEFAULTS, takes_top_k=True,
        asked={"logprobs": True, "top_logprobs": 1, "cache_prompt": False},
        asked_of_text={"logprobs": 1, "cache_prompt": False},
    ),
    "lmdeploy": Dialect(pinned=_TOP_K_FROM_0, takes_top_k=True, asked=_TOKEN_IDS, asked_of_text=_TOKEN_IDS),
    "fireworks": Dialect(pinned=_TOP_K_FROM_0, takes_top_k=True, asked=_TOKEN_IDS, asked_of_text=_TOKEN_IDS),
    # ids stand in the logprobs, whose switch is a number in chats too
    "together": Dialect(pinned=_OPENAI_DEFAULTS, takes_top_k=True, asked=_LOGPROBS, asked_of_text=_LOGPROBS),
    "openrouter": Dialect(pinned=_OPENAI_DEFAULTS, takes_top_k=True, routes=True),
    "openai": Dialect(pinned=_OPENAI_DEFAULTS, takes_top_k=False),
}


class Mode(str, enum.Enum):
    """What a policy does to a request's sampling."""

    FORCE = "force"
    """A secret seed; configured values replace the client's."""
    BOUND = "bound"
    """A secret seed; the client's values, moved into the configured bounds; configured values where it names none."""
    SEED_ONLY = "seed-only"
    """A secret seed and nothing else; configured values say what the provider uses where the client names none."""
    OBSERVE = "observe"
    """Nothing is changed; audited only where the client's own seed, or temperature 0, lets it."""


@dataclass(frozen=True, kw_only=True)
class ForcedSampling:
    """Sampling values of the configuration; None for those that it does not name. What they do is the mode's."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is done to the requests of a model. `bounds` are (least, most) by field, for Mode.BOUND.

    `refuse` answers requests that cannot be verified with 400 instead of forwarding them unaudited; `providers` are
    those that a router may choose from, `quantizations` the weights' precisions that it may choose.
    """

    mode: Mode = Mode.FORCE
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    refuse: bool = False
    providers: tuple[str, ...] | None = None
    quantizations: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as clients name it, the trusted reference it is checked against and the provider's sampler
    contract."""

    name: str
    reference: str
    sampler: str
    sampling: ForcedSampling
    policy: Policy = Policy()


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A provider. `base_url` ends like the SDK's (`…/v1`), without a slash; `audit_rate` is in [0, 1].

    `policy` is for requests of models that are not listed; each listed model has its own.
    """

    name: str
    base_url: str
    kind: str
    audit_rate: float
    models: Mapping[str, Model]
    api_key: str | None = field(default=None, repr=False)
    prefix_only: bool = False
    policy: Policy = Policy()
    retention: Rule | None = None
    """How long its rows are kept; None for ever."""

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.kind]


class Routes:
    """All upstreams, by prefix and by model.

    Raises:
        ConfigError: two upstreams share a name, or a model that is reachable without a prefix.
    """

    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self._by_prefix: dict[str, Upstream] = {}
        self._by_model: dict[str, Upstream] = {}
        for upstream in upstreams:
            if upstream.name in self._by_prefix:
                raise ConfigError(f"two upstreams are named {upstream.name!r}; rename one")
            self._by_prefix[upstream.name] = upstream
        self._open = [upstream for upstream in upstreams if not upstream.prefix_only]
        for upstream in self._open:
            for model in upstream.models:
                self._add_model(model, upstream)

    def _add_model(self, model: str, upstream: Upstream) -> None:
        other = self._by_model.setdefault(model, upstream)
        if other is not upstream:
            raise ConfigError(
                f"model {model!r} is listed by upstreams {other.name!r} and {upstream.name!r}; set "
                f"prefix_only = true on one of them, which is then reached at /{upstream.name}/v1 only"
            )

    def upstream(self, prefix: str | None, model: str | None) -> Upstream:
        """The provider of a request.

        Raises:
            RequestError: 404, no upstream has that prefix or that model.
        """
        if prefix is not None:
            found = self._by_prefix.get(prefix)
            if found is None:
                raise RequestError(f"no upstream is named {prefix!r}", status=404, code="upstream_not_found")
            return found
        found = self._by_model.get(model or "")
        if found is None:
            raise RequestError(
                f"no upstream is configured for model {model!r}; GET /v1/models lists those that are",
                status=404, code="model_not_found", param="model",
            )
        return found

    def passthrough(self, prefix: str | None, model: str | None) -> Upstream:
        """The provider of a request that may name no model: with one upstream there is no doubt about it.

        Raises:
            RequestError: 404, and the text says to use a path prefix.
        """
        if prefix is not None or model in self._by_model:
            return self.upstream(prefix, model)
        if len(self._open) == 1:
            return self._open[0]
        raise RequestError(
            "this request names no configured model; address an upstream as /{upstream}/v1/…",
            status=404, code="upstream_not_found",
        )

    def models(self, prefix: str | None) -> list[tuple[Model, Upstream]]:
        """The models that a client can name under this prefix."""
        upstreams = self._open if prefix is None else [self.upstream(prefix, None)]
        return [(model, upstream) for upstream in upstreams for model in upstream.models.values()]
