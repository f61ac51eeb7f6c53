"""The side that faces the client and the provider.

The way of a request: `surface` admits it (`clients`, `limits`, `watch`), `protocol` parses it, `upstreams` finds its
provider, `policy` fixes the sampling, `headers` cleans the headers, `forward` relays the provider's bytes untouched and
feeds a copy to `transcript` (which frames it with `sse`), `draft` turns the outcome into one exchange, `recorder`
commits it with its job.

Auditing never changes, delays or fails a client's answer, except for the parameters that it says it forces.
Pure cores (no I/O, clock or randomness) are listed in tests/test_architecture.py.
"""
