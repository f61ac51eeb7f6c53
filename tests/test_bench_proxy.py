"""The proxy's price in CPU time, beside a bare pass-through in the same run: what CI gates instead of wall time."""

from bench.proxy import Case, run

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
