"""Coverage-guided fuzzing of the proxy's pure cores with atheris (make fuzz): no exception, the same in any chunking.

    usage: python tests/fuzz/proxy_cores.py framer|folder|policy [libFuzzer options, as in -max_total_time=60]
"""

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["proxy"]):
    from proxy import policy, protocol
    from proxy.config_upstreams import BOUNDS
    from proxy.errors import RequestError
    from proxy.sse import SSEFramer
    from proxy.transcript import Transcript
    from proxy.upstreams import DIALECTS, ForcedSampling, Mode, Model, Policy, Upstream


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


def policies(data: bytes) -> None:
    """Any body is refused with a RequestError, or decided under every mode and written again."""
    for endpoint in (protocol.CHAT, protocol.TEXT):
        try:
            request = protocol.parse(endpoint, data)
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
