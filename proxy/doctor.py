"""What a provider honours of what an audit needs: a handful of questions, and what follows from the answers. Pure.

Each question is asked twice where chance could answer it. Without the noise of sampling nothing can be told apart, so
all are asked at a temperature above 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxy.dashboard_format import visible
from proxy.errors import ConfigError
from proxy.policy import decide
from proxy.protocol import CHAT, GenerationRequest
from proxy.upstreams import ForcedSampling, Mode, Model, Upstream

PROMPT = "Write a short story about a lighthouse keeper and a storm."
SEED, OTHER_SEED = 20_261, 7_331
YES, NO, UNKNOWN = "yes", "no", "unknown"


@dataclass(frozen=True)
class Question:
    """One request: what it changes of the common body; None takes a field out."""

    name: str
    fields: Mapping[str, Any]


QUESTIONS = (
    Question("seed", {"seed": SEED}),
    Question("seed again", {"seed": SEED}),
    Question("other seed", {"seed": OTHER_SEED}),
    Question("stream", {"seed": SEED, "stream": True, "stream_options": {"include_usage": True}}),
    Question("top_k", {"seed": None, "top_k": 1}),
    Question("top_k again", {"seed": None, "top_k": 1}),
    Question("min_p", {"seed": None, "min_p": 1.0}),
    Question("min_p again", {"seed": None, "min_p": 1.0}),
    Question("token ids", {"seed": SEED, "return_token_ids": True}),
    Question("logprobs", {"seed": SEED, "logprobs": True, "top_logprobs": 1}),
)


@dataclass(frozen=True)
class Answer:
    """What came back: the folded answer, or an error in one line."""

    response: Mapping[str, Any]
    error: str | None = None

    @property
    def choice(self) -> Mapping[str, Any]:
        choices = self.response.get("choices") or [{}]
        first: Mapping[str, Any] = choices[0]
        return first

    @property
    def said(self) -> tuple[str, str]:
        """What a client sees of it."""
        return self.choice.get("reasoning") or "", self.choice.get("text") or ""


Answers = Mapping[str, Answer]
"""By the question's name."""


@dataclass(frozen=True)
class Finding:
    """One thing that is honoured or not: `answer` is yes, no or unknown."""

    name: str
    answer: str
    detail: str = ""


def examined_model(upstream: Upstream, name: str | None, reference: str | None) -> Model:
    """The model to ask for: a configured one (the first, unless named) or a bare one.

    Raises:
        ConfigError: none is named and none is configured.
    """
    if name is None and not upstream.models:
        raise ConfigError(f"upstream {upstream.name!r} lists no model; name one: --model NAME")
    name = next(iter(upstream.models)) if name is None else name
    bare = Model(name=name, reference=reference or "", sampler="", sampling=ForcedSampling())
    found = upstream.models.get(name, bare)
    warm = found.sampling if found.sampling.temperature else replace(found.sampling, temperature=1.0)
    return replace(found, policy=replace(found.policy, mode=Mode.FORCE), sampling=warm)


def body(question: Question, upstream: Upstream, model: Model, max_tokens: int) -> dict[str, Any]:
    """The provider's body for a question, with all that the proxy would send."""
    plain = {"model": model.name, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": max_tokens}
    asked = GenerationRequest(CHAT, plain, model.name, stream=False, choices=1)
    changes = decide(asked, upstream, model, exchange_id="", secret=b"").changes
    merged = {**plain, **changes, **question.fields}
    return {name: value for name, value in merged.items() if value is not None}


def named(upstreams: Sequence[Upstream], name: str) -> Upstream:
    """The configured upstream of this name. Raises ConfigError, naming those that there are."""
    for upstream in upstreams:
        if upstream.name == name:
            return upstream
    raise ConfigError(f"no upstream is named {name!r}; there are: {', '.join(one.name for one in upstreams)}")


def findings(answers: Answers) -> list[Finding]:
    """What the provider honours, as far as its answers tell."""
    first = answers["seed"]
    if first.error is not None:
        return [Finding("answers", NO, first.error)]
    return [
        Finding("answers", YES, _served_by(first)), _repeats(answers), _differs(answers), _streams(answers),
        _pins(answers, "top_k"), _pins(answers, "min_p"), _token_ids(answers), _logprobs(answers), _usage(first),
    ]  # fmt: skip


def _served_by(answer: Answer) -> str:
    told = [answer.response.get("model"), answer.response.get("system_fingerprint")]
    return visible(", ".join(text for text in told if isinstance(text, str))[:120])


def _same(answers: Answers, one: str, other: str) -> bool | None:
    """Whether two answers read the same; None where one is missing or empty."""
    first, second = answers[one], answers[other]
    if first.error or second.error or not any(first.said):
        return None
    return first.said == second.said


def _verdict(name: str, same: bool | None, *, detail: str = "", otherwise: str = "") -> Finding:
    if same is None:
        return Finding(name, UNKNOWN, "an answer was refused or empty")
    return Finding(name, YES if same else NO, detail if same else otherwise)


def _repeats(answers: Answers) -> Finding:
    ignored = "the same seed gave another answer: seeds are ignored, or batches differ"
    return _verdict("seed repeats", _same(answers, "seed", "seed again"), otherwise=ignored)


def _differs(answers: Answers) -> Finding:
    same = _same(answers, "seed", "other seed")
    differs = None if same is None else not same
    one = "two seeds gave one answer: it decodes greedily, or caches answers"
    return _verdict("seeds differ", differs, otherwise=one)


def _streams(answers: Answers) -> Finding:
    if answers["stream"].error:
        return Finding("streams", NO, answers["stream"].error or "")
    if _same(answers, "seed", "seed again") is not True:
        return Finding("streams", YES)
    other = "a stream gave another answer than a whole one"
    return _verdict("streams", _same(answers, "seed", "stream"), otherwise=other)


def _pins(answers: Answers, name: str) -> Finding:
    """Whether a filter that leaves one token makes unseeded answers repeat."""
    if answers[name].error:
        return Finding(name, NO, answers[name].error or "")
    if _same(answers, "seed", "other seed") is not False:
        return Finding(name, UNKNOWN, "nothing can be told where answers do not vary")
    return _verdict(name, _same(answers, name, f"{name} again"), otherwise="ignored: unseeded answers vary")


def _token_ids(answers: Answers) -> Finding:
    for name in ("seed", "token ids", "logprobs"):
        ids = answers[name].choice.get("token_ids")
        if ids:
            source = answers[name].choice.get("ids_from") or "token_ids"
            asked = "" if name == "seed" else f", if {name} are asked for"
            return Finding("token ids", YES, f"{len(ids)} in {source}{asked}")
        if any("id" in entry for entry in answers[name].choice.get("logprobs") or []):
            return Finding("token ids", YES, "in the logprob entries")
    return Finding("token ids", NO, "they are found from the text")


def _logprobs(answers: Answers) -> Finding:
    answer = answers["logprobs"]
    if answer.error:
        return Finding("logprobs", NO, answer.error)
    entries = answer.choice.get("logprobs") or []
    if not entries:
        return Finding("logprobs", NO, "none came")
    with_bytes = all(entry.get("bytes") for entry in entries)
    return Finding("logprobs", YES, "with the bytes of each token" if with_bytes else "without the tokens' bytes")


def _usage(answer: Answer) -> Finding:
    told = answer.response.get("prompt_token_ids")
    if told:
        return Finding("prompt ids", YES, f"{len(told)} ids")
    count = (answer.response.get("usage") or {}).get("prompt_tokens")
    return Finding("prompt ids", NO, "usage is not told either" if count is None else f"usage tells {count} tokens")


def conclusion(found: Sequence[Finding], contract: str | None, *, asked_reference: bool) -> str:
    """What can be verified of this provider, in one sentence. `contract` is what its tokens were found to follow."""
    said = {finding.name: finding.answer for finding in found}
    if said["answers"] != YES:
        return "Nothing can be verified: the provider does not answer."
    if contract is not None:
        return f"Every token can be replayed: the answers follow {contract}."
    if said.get("seed repeats") == YES and said.get("seeds differ") == YES:
        if asked_reference:
            return (
                "Seeds are honoured, but no known sampler explains the answers with this reference: seed-free evidence "
                "only, unless the model or its template is another one."
            )
        return "Seeds are honoured: whether the sampler is known, --reference tells."
    return (
        "Seeds are not honoured: seed-free evidence only, or probes at temperature 0 "
        "(seedproof probe --temperature 0)."
    )


def suggested_kind(upstream: Upstream, answers: Answers) -> str:
    """The configured kind, unless the answers show that the provider takes vLLM's or llama.cpp's fields."""
    if upstream.kind != "openai":
        return upstream.kind
    if answers["token ids"].choice.get("token_ids"):
        return "vllm"
    entries = answers["logprobs"].choice.get("logprobs") or []
    return "llama.cpp" if any("id" in entry for entry in entries) else "openai"


def toml(upstream: Upstream, model: Model, *, kind: str, sampler: str | None, top_k: bool) -> str:
    """The `[[upstreams]]` table to write."""
    lines = [
        "[[upstreams]]", f"name = {_quoted(upstream.name)}", f"kind = {_quoted(kind)}",
        f"base_url = {_quoted(upstream.base_url)}",
        *(['# api_key_env or api_key_file: as in your file'] if upstream.api_key is not None else []),
        "", "[upstreams.sampling]",
    ]  # fmt: skip
    values = {name: value for name, value in vars(model.sampling).items() if value is not None}
    values.setdefault("top_p", 1.0)
    lines += [f"{name} = {value}" for name, value in values.items() if name != "top_k" or top_k]
    lines += ["", f"[upstreams.models.{_quoted(model.name)}]", f"reference = {_quoted(model.reference or 'DIR')}"]
    known = sampler or model.sampler
    lines.append(f"sampler = {_quoted(known or 'ENGINE@VERSION')}" + ("" if sampler else "   # not confirmed"))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
