"""The proxy's price in CPU time, beside a bare pass-through in the same run: what CI gates instead of wall time."""

import pytest

from bench.proxy import Case, run
from bench.proxy_memory import judged

CASES = (Case("json_1", "json", 1, 400), Case("json_64", "json", 64, 2500), Case("paced_64", "paced", 64, 192))
JSON_RATIO = 5.0
"""Ours with journal, recording and auditing to bare: 2.2 to 2.9 were seen."""
STREAM_RATIO = 4.0
"""1.6 to 2.2 were seen."""


def test_cpu_per_request_beside_a_bare_pass_through():
    result = run(["bare_proxy", "seedproof"], CASES)
    cpu = {(row["gateway"], row["case"]): row.get("cpu_us_per_request") for row in result["cases"]}
    assert cpu["seedproof", "json_64"] < JSON_RATIO * cpu["bare_proxy", "json_64"]
    assert cpu["seedproof", "paced_64"] < STREAM_RATIO * cpu["bare_proxy", "paced_64"]
    assert result["seedproof"]["errors"] == 0
    assert result["seedproof"]["rss_mb"] < 150


def curve(rss, **other):
    start = {"requests": 0, "rss_mb": 80.0, "fds": 20, "threads": 10, "errors": 0}
    return [start, *({**start, "requests": 1000 * n, "rss_mb": mb, "fds": 150, **other} for n, mb in enumerate(rss, 1))]


@pytest.mark.parametrize(("rss", "other", "flat"), [
    ([90, 93, 92, 93, 91, 93, 92], {}, True), ([90, 92, 94, 96, 98, 100, 102], {}, False),
    ([120, 110, 93, 92, 91, 93, 92], {}, True), ([92] * 7, {"fds": 400}, False), ([92] * 7, {"threads": 60}, False),
    ([92] * 7, {"errors": 1}, False),
])
def test_what_a_flat_curve_is(rss, other, flat):
    assert judged(curve(rss, **other), limit=5.0)["flat"] is flat
