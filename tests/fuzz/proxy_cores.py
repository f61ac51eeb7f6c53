"""Coverage-guided fuzzing of the proxy's pure cores with atheris (make fuzz): no exception, the same in any chunking.

    usage: python tests/fuzz/proxy_cores.py framer|folder|policy [libFuzzer options, as in -max_total_time=60]
"""

import contextlib
import sys

import atheris
import orjson

with atheris.instrument_imports(include=["proxy"]):
    from proxy import policy, protocol, unverifiable
    from proxy.config_upstreams import BOUNDS
    from proxy.errors import RequestError
    from proxy.sse import SSEFramer
    from proxy.transcript import Transcript
    from proxy.upstreams import DIALECTS, ForcedSampling, Mode, Model, Policy, Upstream


FIELDS = sorted({
    *unverifiable._NOT_REPLAYABLE, *unverifiable._NOT_REPLAYABLE_OFF, *BOUNDS, "seed", "n", "stop", "min_tokens",
    "max_tokens", "max_completion_tokens", "tools", "tool_choice", "response_format", "reasoning", "provider",
    "modalities", "thinking_token_budget", "prompt", "messages", "best_of", "suffix", "logprobs", "top_logprobs",
    "return_token_ids",
})
WORDS = ["", "text", "auto", "none", "type", "function", "strict", "content", "max_tokens", "exclude", "only", "\u00e9"]


def framer(data: bytes) -> None:
    """Any bytes frame alike, whole and cut in two."""
    at = data[0] if data else 0
    whole, cut = SSEFramer(max_event_bytes=256), SSEFramer(max_event_bytes=256)
    expected = whole.feed(data)
    found = cut.feed(data[:at]) + cut.feed(data[at:])
    if not whole.overflowed and not cut.overflowed and found != expected:
        raise AssertionError((found, expected))


def folder(data: bytes) -> None:
    """Any bytes fold, as a stream and as a body, of a chat and of a text, into a Completion or `malformed`."""
    for event_stream in (True, False):
        for text in (True, False):
            transcript = Transcript(event_stream=event_stream, choices=4, text=text)
            transcript.feed(data[:7])
            transcript.feed(data[7:])
            transcript.end()
            folded = transcript.finish()
            assert isinstance(folded["choices"], list)


def body_of(drawn: "atheris.FuzzedDataProvider") -> bytes:
    """A body of fields that somebody reads, each with any JSON value."""
    fields = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    for _ in range(drawn.ConsumeIntInRange(0, 6)):
        fields[drawn.PickValueInList(FIELDS)] = value_of(drawn, 3)
    return orjson.dumps(fields)


def value_of(drawn: "atheris.FuzzedDataProvider", depth: int) -> object:
    """Any JSON value that is nested at most `depth` times."""
    kind = drawn.ConsumeIntInRange(0, 7 if depth else 5)
    if kind < 3:
        return (None, False, True)[kind]
    if kind == 3:
        return drawn.ConsumeIntInRange(-(2**62), 2**62)
    if kind == 4:
        return drawn.ConsumeRegularFloat()
    if kind == 5:
        return drawn.PickValueInList(WORDS)
    values = [value_of(drawn, depth - 1) for _ in range(drawn.ConsumeIntInRange(0, 3))]
    return values if kind == 6 else {drawn.PickValueInList(WORDS): value for value in values}


def policies(data: bytes) -> None:
    """Any body is refused with a RequestError, or decided under every mode and written again."""
    drawn = body_of(atheris.FuzzedDataProvider(data))
    for endpoint, body in ((protocol.CHAT, data), (protocol.CHAT, drawn), (protocol.TEXT, drawn)):
        try:
            request = protocol.parse(endpoint, body)
        except RequestError:
            continue
        for kind in DIALECTS:
            for mode in Mode:
                sampling = ForcedSampling(temperature=0.5)
                rules = Policy(mode=mode, bounds=BOUNDS)
                model = Model(name="m", reference="r", sampler="greedy", sampling=sampling, policy=rules)
                upstream = Upstream(name="u", base_url="http://h/v1", kind=kind, audit_rate=1.0, models={"m": model})
                decision = policy.decide(request, upstream, model, exchange_id="id", secret=b"secret")
                assert decision.audit == (decision.unaudited_reason is None)
                with contextlib.suppress(RequestError):
                    protocol.serialise(request, decision.changes)


TARGETS = {"framer": framer, "folder": folder, "policy": policies}

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
