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


def test_credentials_are_known_without_their_scheme():
    found = headers.credentials({"Authorization": "Bearer sk-1", "x-api-key": "k2", "Accept": "x"})
    assert found == ["sk-1", "k2"]


def test_a_gateways_own_keys_never_reach_a_provider():
    kept = headers.to_upstream({"Authorization": "Bearer sp_a_1", "X-Stay": "1"}, api_key=None, keep_credentials=False)
    assert dict(kept) == {"X-Stay": "1", "Accept-Encoding": "identity"}
