"""What configs/ ships for Prometheus and Grafana: rules that promtool accepts, queries that real servers answer."""

import asyncio
import json
import re
import shutil
import subprocess
import warnings
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text
from test_proxy_forward import BODY, JSON_BODY
from test_proxy_metrics import chat, free_port, running, until
from upstreams import Reply
from watched import fill

from storage.database import open_database

CONFIGS = Path(__file__).parents[1] / "configs"
DASHBOARD = json.loads((CONFIGS / "grafana/dashboards/seedproof.json").read_text())
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
VARIABLES = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
needs_prometheus = pytest.mark.skipif(
    not all(map(shutil.which, ("prometheus", "promtool"))), reason="not installed: apt-get install prometheus"
)


@needs_prometheus
@pytest.mark.parametrize("command", [["check", "rules", "rules.yml"], ["check", "config", "prometheus.yml"],
                                     ["test", "rules", "rules_test.yml"]])  # fmt: skip
def test_promtool_accepts(command):
    done = subprocess.run(
        ["promtool", *command], cwd=CONFIGS / "prometheus", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr


def test_every_alert_has_its_test():
    alerts = set(re.findall(r"alert: (\w+)", (CONFIGS / "prometheus/rules.yml").read_text()))
    tested = set(re.findall(r"alertname[:=] ?\"?(\w+)", (CONFIGS / "prometheus/rules_test.yml").read_text()))
    assert len(alerts) == 11
    assert alerts == tested


def test_the_dashboard_is_whole():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & own, panel["title"]
        cells |= own
        for target in panel.get("targets", []):
            assert target["datasource"] == panel["datasource"]
            assert target["datasource"]["uid"] in ("${prometheus}", "${postgres}")
        assert len({target["refId"] for target in panel.get("targets", [])}) == len(panel.get("targets", []))
    named = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(panels))) - {"__rate_interval", "__timeFilter"} <= named
    queried = {target["datasource"]["type"] for target in TARGETS}
    assert queried == {"prometheus", "grafana-postgresql-datasource"}


def lost(told, kept, place="") -> list[str]:
    """Where `kept` lacks what `told` has."""
    if not isinstance(told, (dict, list)) or type(told) is not type(kept):
        return [] if told == kept else [place]
    parts = told.items() if isinstance(told, dict) else enumerate(told)
    known = kept if isinstance(kept, dict) else dict(enumerate(kept))
    return [at for name, value in parts for at in lost(value, known.get(name), f"{place}/{name}")]


def as_grafana_reads_it(dashboard: dict) -> dict:
    """Through the types that Grafana publishes: what they do not know is dropped."""
    pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # newer than what files are read as
        from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))


def test_grafanas_own_types_know_all_of_the_dashboard():
    assert lost(DASHBOARD, as_grafana_reads_it(DASHBOARD)) == []


@pytest.mark.parametrize(
    "place",
    [(), ("panels", 1), ("panels", 1, "fieldConfig", "defaults"), ("panels", 1, "targets", 0),
     ("templating", "list", 2)],
)  # fmt: skip
def test_a_mistake_in_the_dashboard_is_seen(place):
    changed = json.loads(json.dumps(DASHBOARD))
    part = changed
    for name in place:
        part = part[name]
    part["colour"] = "red"
    assert lost(changed, as_grafana_reads_it(changed)) == ["/".join(["", *map(str, place), "colour"])]


@asynccontextmanager
async def prometheus(target: str, directory: Path):
    """A real Prometheus that scrapes a proxy every half second with our rules; yields its address."""
    host = target.removeprefix("http://").removesuffix("/metrics")
    rules = CONFIGS / "prometheus/rules.yml"
    (directory / "p.yml").write_text(
        f"global: {{scrape_interval: 500ms, evaluation_interval: 1s}}\nrule_files: ['{rules}']\n"
        f"scrape_configs: [{{job_name: seedproof, static_configs: [{{targets: ['{host}']}}]}}]\n"
    )
    port = free_port()
    options = [f"--config.file={directory / 'p.yml'}", f"--storage.tsdb.path={directory / 'data'}"]
    command = ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"]
    process = await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)


async def asked(address: str, expr: str) -> list:
    url, query = f"{address}/api/v1/query", {"query": expr}
    async with aiohttp.ClientSession() as session, session.get(url, params=query) as answer:
        told = await answer.json()
    assert told["status"] == "success", (expr, told)
    return told["data"]["result"]


WAITED_FOR = (
    'ALERTS{alertname="SeedproofProviderDeviates",alertstate="firing"}', "rate(seedproof_requests_total[10s]) > 0"
)


def promql(expr: str) -> str:
    return expr.replace("$__rate_interval", "10s").replace("$upstream", ".*")


@needs_prometheus
async def test_a_real_prometheus_answers_every_query_of_the_dashboard(sqlite_url, tmp_path):
    async with open_database(sqlite_url) as database:
        await fill(database)
    async with (
        running(sqlite_url, Reply([JSON_BODY])) as (address, metrics, _),
        prometheus(metrics, tmp_path) as server,
    ):

        async def deviates() -> bool:
            await chat(address, {**BODY, "model": "m"})
            try:
                return all([await asked(server, query) for query in WAITED_FOR])
            except aiohttp.ClientError:
                return False

        await until(deviates)
        queries = [promql(target["expr"]) for target in TARGETS if "expr" in target]
        chosen = [re.fullmatch(r"label_values\((\w+), (\w+)\)", one["definition"]).groups() for one in VARIABLES]
        queries += [f"group by ({label}) ({metric})" for metric, label in chosen]
        empty = {query for query in queries if not await asked(server, query)}
        # of a provider that never failed, and of clients that never left, there is no series
        assert not [query for query in empty if not re.search("errors|disconnects|refused", query)]


async def test_a_real_postgres_answers_every_query_of_the_dashboard(postgres_url):
    async with open_database(postgres_url) as database:
        await fill(database)
        async with database.reading() as session:
            for target in TARGETS:
                if "rawSql" not in target:
                    continue
                day = r"\1 BETWEEN now() - interval '1 day' AND now()"
                query = re.sub(r"\$__timeFilter\((\w+)\)", day, target["rawSql"])
                rows = (await session.execute(text(query.replace("${upstream:regex}", ".*")))).mappings().all()
                assert rows or "proxy_processes" in query, query
                if target["format"] == "time_series":
                    assert {"time", "metric"} < set(rows[0])
