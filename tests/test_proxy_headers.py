from multidict import CIMultiDict

from proxy import headers


def test_an_own_key_replaces_every_credential_of_the_client():
    sent = headers.to_upstream(
        CIMultiDict({"authorization": "Bearer c", "X-Api-Key": "c", "Cookie": "c", "User-Agent": "u"}), api_key="own"
    )
    assert sent == CIMultiDict({"User-Agent": "u", "Accept-Encoding": "identity", "Authorization": "Bearer own"})


def test_hop_by_hop_ends_here_both_ways():
    received = CIMultiDict([
        ("Connection", "close, X-Hop"), ("Connection", "X-Also"), ("X-Hop", "1"), ("X-Also", "2"), ("TE", "trailers"),
        ("Transfer-Encoding", "chunked"), ("Upgrade", "h2c"), ("X-Stay", "3"),
    ])
    assert headers.to_upstream(received, api_key=None) == CIMultiDict(
        [("X-Stay", "3"), ("Accept-Encoding", "identity")]
    )
    assert headers.to_client(received, {}) == CIMultiDict([("X-Stay", "3")])


def test_client_gets_the_providers_headers_and_ours():
    received = CIMultiDict([
        ("Content-Type", "text/event-stream; charset=utf-8"), ("Set-Cookie", "a"), ("Server", "s"),
        ("X-RateLimit", "1"), ("X-RateLimit", "2"), ("x-seedproof-exchange", "forged"), ("X-Bytes", "\udcff"),
    ])
    assert headers.to_client(received, {"x-seedproof-exchange": "id"}) == CIMultiDict([
        ("Content-Type", "text/event-stream; charset=utf-8"), ("X-RateLimit", "1"), ("X-RateLimit", "2"),
        ("x-seedproof-exchange", "id"), ("X-Accel-Buffering", "no"),
    ])


def test_redaction_takes_the_key_with_and_without_its_scheme():
    secrets = headers.credentials({"Authorization": "Bearer sk-1", "Accept": "x"})
    assert headers.redacted("Bearer sk-1; sk-1; x", secrets).count("sk-1") == 0
