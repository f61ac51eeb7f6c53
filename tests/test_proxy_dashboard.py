"""The dashboard over HTTP: pages, API, CSV, login, and what a hostile provider or another site tries."""

import asyncio
import gzip
import hashlib
import re
import shutil
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from watched import TOKENS, fill

from proxy.config import parse_config
from proxy.dashboard import make_dashboard, static_files
from proxy.dashboard_login import password_hash
from proxy.errors import ConfigError
from storage import alerts
from storage.database import open_database

API = Path(__file__).parents[1] / "docs/api.md"

PASSWORD = "correct horse"
STREAM = {"upstream": "cheap", "model": "smollm2", "reference": "smollm2-bf16", "sampler": "vllm@0.26.0/v2"}
HASH = password_hash(PASSWORD, b"0123456789abcdef")


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A database file with two weighed streams, whose exchanges hold hostile text."""
    path = tmp_path_factory.mktemp("dashboard") / "audit.db"

    async def fill_it() -> None:
        async with open_database(f"sqlite:///{path}") as database:
            await fill(database, hostile=True)

    asyncio.run(fill_it())
    return path


def configured(store: str, **dashboard):
    document = {
        "store": store, "seed": {"secret_env": "SECRET"},
        "upstreams": [{"name": "honest", "base_url": "http://127.0.0.1:1/v1", "api_key_env": "KEY"}],
        "dashboard": {"listen": "127.0.0.1:0", **dashboard},
    }  # fmt: skip
    environment = {"SECRET": "s" * 32, "KEY": "sk-canary", "HASH": HASH, "TOKEN": "t" * 16}
    return parse_config(document, environment)


@pytest.fixture
async def clients(filled, tmp_path):
    """Gives clients of dashboards; what a test changes stays its own."""
    opened = []
    shutil.copy(filled, tmp_path / "audit.db")

    async def client(**dashboard) -> TestClient:
        config = configured(f"sqlite:///{tmp_path / 'audit.db'}", **dashboard)
        database = open_database(config.store)
        made = TestClient(TestServer(make_dashboard(config, await database.__aenter__())))
        opened.append((made, database))
        await made.start_server()
        return made

    yield client
    for made, database in opened:
        await made.close()
        await database.__aexit__(None, None, None)


class Inert(HTMLParser):
    """Fails at whatever a page could do beside loading this origin's files."""

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert tag not in ("style", "iframe", "object", "embed", "base")
        assert tag != "script" or found["src"].startswith("/dashboard/static/")
        assert not [name for name in found if name.startswith("on") or name == "style"]
        for name in ("href", "src", "action"):
            assert found.get(name, "/")[0] in "/?#"


async def text_of(client: TestClient, path: str, status: int = 200, **params) -> str:
    async with client.get(path, params=params) as answer:
        assert answer.status == status, await answer.text()
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return await answer.text()


async def test_every_page_shows_its_rows_and_no_script_or_style_stands_in_it(clients):
    client = await clients()
    overview = await text_of(client, "/dashboard")
    assert "deviates" in overview
    assert "consistent" in overview or "inconclusive" in overview
    stream = await text_of(client, "/dashboard/stream", **STREAM)
    assert "margin tail" in stream
    assert "4-bit weights" in stream
    listed = await text_of(client, "/dashboard/exchanges", upstream="cheap")
    assert len(set(re.findall(r"/dashboard/exchanges/(0193-\d+)", listed))) == 8
    settings = await text_of(client, "/dashboard/settings")
    assert "http://127.0.0.1:1/v1" in settings
    assert "sk-canary" not in settings
    assert "ssssssss" not in settings
    exchange = await text_of(client, "/dashboard/exchanges/0193-0001")
    for page in (overview, stream, listed, settings, exchange):
        Inert().feed(page)


async def test_hostile_text_is_shown_and_never_meant(clients):
    client = await clients()
    page = await text_of(client, "/dashboard/exchanges/0193-0001")
    assert "&lt;script&gt;document.title=" in page
    assert "<script>document" not in page
    assert "⟨U+001B⟩[31mred" in page
    assert "⟨U+202E⟩gnp.exe" in page
    assert "⟨U+2028⟩" in page
    assert "😀" in page
    for character in "\x00\x1b\u202e\u2028":
        assert character not in page
    csv = await text_of(client, "/dashboard/api/v1/tokens.csv", exchange_id="0193-0001")
    assert "\"'=HYPERLINK(\"\"x\"\")\"" in csv
    assert len(csv.split("\r\n")) == TOKENS + 2


async def test_tokens_carry_the_shade_of_their_margin(clients):
    client = await clients()
    page = await text_of(client, "/dashboard/exchanges/0193-0001")
    shades = re.findall(r'<span class="t m(\d)( a)?" data-row', page)
    assert len(shades) == TOKENS
    assert {shade for shade, _ in shades} == {"0", "5", "7"}
    assert [place for place, (_, open_id) in enumerate(shades) if open_id] == [0, 1]
    assert page.count("<td>ambiguous</td>") == 2
    rows = (await (await client.get("/dashboard/api/v1/tokens.json?exchange_id=0193-0001")).json())["rows"]
    assert [row["margin"] for row in rows].count(None) == 1
    assert rows[-1]["inside_support"] is False
    assert page.count("<td>outside</td>") == 1


async def test_without_payloads_neither_page_nor_api_tells_a_text(clients):
    client = await clients(payloads=False)
    for path in ("/dashboard/exchanges/0193-0001", "/dashboard/api/v1/exchanges/0193-0001",
                 "/dashboard/api/v1/tokens.json?exchange_id=0193-0001"):  # fmt: skip
        async with client.get(path) as answer:
            told = await answer.text()
        assert answer.status == 200
        assert "HYPERLINK" not in told
        assert "gnp.exe" not in told


@pytest.mark.parametrize("table", ["streams", "history", "verdicts", "latest", "worst", "exchanges", "waiting"])
async def test_every_table_is_there_as_json_and_as_csv(clients, table):
    client = await clients()
    async with client.get(f"/dashboard/api/v1/{table}.json", params=STREAM) as answer:
        rows = (await answer.json())["rows"]
    async with client.get(f"/dashboard/api/v1/{table}.csv", params=STREAM) as answer:
        assert answer.headers["Content-Disposition"].startswith("attachment")
        lines = (await answer.text()).strip().split("\r\n")
    assert rows
    assert len(lines) == len(rows) + 1
    assert set(lines[0].split(",")) <= set(rows[0])


async def test_every_table_of_the_documented_api_is_there_and_no_other(clients):
    section = API.read_text().partition("## Tables")[2].partition("## The rest")[0]
    first_cells = " ".join(re.findall(r"^\| (`.+?) \|", section, re.MULTILINE))
    documented = set(re.findall(r"`(\w+)`", first_cells))
    client = await clients()
    for name in documented:
        for kind in ("json", "csv"):
            await text_of(client, f"/dashboard/api/v1/{name}.{kind}", **STREAM, exchange_id="0193-0001")
    async with client.get("/dashboard/api/v1/other.json") as answer:
        assert answer.status == 404
        assert documented == set(re.findall(r"'(\w+)'", (await answer.json())["error"]["message"])) - {"other"}


async def test_alerts_are_shown_and_kept_quiet_by_a_form_of_the_page_alone(clients, tmp_path):
    client = await clients()
    now = datetime.now(timezone.utc)
    async with open_database(f"sqlite:///{tmp_path / 'audit.db'}") as database, database.writing() as session:
        alert = {
            "fingerprint": "f", "rule": "Deviates", "severity": "critical", "state": "firing", "value": 1.0,
            "labels": {"upstream": "cheap"}, "summary": "cheap <b>deviates</b>", "started_at": now, "seen_at": now,
            "fired_at": now, "resolved_at": None, "told": "firing", "told_at": now, "silenced": False,
        }  # fmt: skip
        await alerts.keep(session, [alert], [])
        await alerts.post(session, [alerts.NewNotice("ops", "rule:Deviates", {"text": "secret-ish"})], now=now)
    shown = await text_of(client, "/dashboard/alerts")
    Inert().feed(shown)
    assert "cheap &lt;b&gt;deviates" in shown
    assert "rule:Deviates" in shown
    assert "secret-ish" not in shown + await text_of(client, "/dashboard/api/v1/notices.csv")
    form = {"upstream": "cheap", "hours": "4", "comment": "=known"}
    async with client.post("/dashboard/alerts/silence", data=form) as answer:
        assert answer.status == 403
    form["form_token"] = re.search(r'name="form_token" value="([^"]+)"', shown)[1]
    async with client.post("/dashboard/alerts/silence", data={**form, "hours": "9999"}) as answer:
        assert answer.status == 400
    async with client.post("/dashboard/alerts/silence", data=form) as answer:
        assert answer.status == 200
    (row,) = (await (await client.get("/dashboard/api/v1/silences.json")).json())["rows"]
    assert (row["matchers"], row["comment"]) == ({"upstream": "cheap"}, "=known")
    assert "'=known" in await text_of(client, "/dashboard/api/v1/silences.csv")
    async with client.post("/dashboard/alerts/unsilence", data={**form, "id": str(row["id"])}) as answer:
        assert answer.status == 200
    assert (await (await client.get("/dashboard/api/v1/silences.json")).json())["rows"] == []


async def test_the_api_pages_through_all_exchanges(clients):
    client = await clients()
    seen, before = [], ""
    while before is not None:
        async with client.get("/dashboard/api/v1/exchanges", params={"limit": 5, "before": before}) as answer:
            page = await answer.json()
        seen += [row["id"] for row in page["rows"]]
        before = page["next"]
    assert len(seen) == len(set(seen)) == 18


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dashboard/exchanges/no-such", 404),
        ("/dashboard/stream?upstream=x&model=y&reference=z", 404),
        ("/dashboard/stream", 400),
        ("/dashboard/exchanges?outcome=%3Cscript%3E", 400),
        ("/dashboard/exchanges?before=nonsense", 400),
        ("/dashboard/exchanges?match_below=nan", 400),
        ("/dashboard?period=2y", 400),
        ("/dashboard/api/v1/nonsense.json", 404),
        ("/dashboard/api/v1/exchanges?limit=-1", 400),
        ("/dashboard/static/../config.py", 404),
        ("/dashboard/static/%2e%2e/config.py", 404),
        ("/elsewhere", 404),
    ],
)
async def test_what_is_not_there_says_so(clients, path, status):
    client = await clients()
    async with client.get(path) as answer:
        told = await answer.text()
    assert answer.status == status
    assert "Traceback" not in told
    assert "<script>" not in told


async def test_a_login_is_asked_given_and_taken_back(clients):
    client = await clients(password_hash_env="HASH")
    async with client.get("/dashboard/exchanges?upstream=cheap", allow_redirects=False) as answer:
        assert answer.status == 303
        login = answer.headers["Location"]
    assert login == "/dashboard/login?next=/dashboard/exchanges%3Fupstream%3Dcheap"
    async with client.get("/dashboard/api/v1/streams.json") as answer:
        assert answer.status == 401
    async with client.post("/dashboard/login", data={"password": "wrong"}) as answer:
        assert answer.status == 403
    form = {"password": PASSWORD, "next": "/dashboard/exchanges"}
    async with client.post("/dashboard/login", data=form, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/dashboard/exchanges")
        cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    page = await text_of(client, "/dashboard")
    token = re.search(r'name="form_token" value="([^"]+)"', page)[1]
    async with client.post("/dashboard/logout", data={"form_token": "x" * len(token)}) as answer:
        assert answer.status == 403
    async with client.post("/dashboard/logout", data={"form_token": token}, allow_redirects=False) as answer:
        assert answer.status == 303
    async with client.get("/dashboard", allow_redirects=False) as answer:
        assert answer.status == 303


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/\\evil.example", "/dashboard\\@evil"])
async def test_a_login_leads_nowhere_else(clients, target):
    client = await clients(password_hash_env="HASH")
    form = {"password": PASSWORD, "next": target}
    async with client.post("/dashboard/login", data=form, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/dashboard")


async def test_the_api_token_opens_the_api_alone(clients):
    client = await clients(password_hash_env="HASH", api_token_env="TOKEN")
    bearer = {"Authorization": f"Bearer {'t' * 16}"}
    async with client.get("/dashboard/api/v1/streams.json", headers=bearer) as answer:
        assert answer.status == 200
    async with client.get("/dashboard/api/v1/streams.json", headers={"Authorization": "Bearer wrong"}) as answer:
        assert answer.status == 401
    async with client.get("/dashboard", headers=bearer, allow_redirects=False) as answer:
        assert answer.status == 303


async def test_other_sites_reach_neither_by_name_nor_by_form(clients):
    client = await clients(hosts=["audit.example"])
    async with client.get("/dashboard", headers={"Host": "rebound.example"}) as answer:
        assert answer.status == 421
    async with client.get("/dashboard", headers={"Host": "audit.example:8081"}) as answer:
        assert answer.status == 200
    for header in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        async with client.post("/dashboard/logout", headers=header) as answer:
            assert answer.status == 403


async def test_a_database_that_stops_is_a_sentence(clients, tmp_path):
    client = await clients()
    (tmp_path / "audit.db").write_bytes(b"no database" * 1000)
    for rest in ("-wal", "-shm"):
        (tmp_path / f"audit.db{rest}").unlink(missing_ok=True)
    told = await text_of(client, "/dashboard", 503)
    assert "does not work" in told or "cannot open" in told


def test_the_first_load_is_small():
    sizes = {name: len(gzip.compress(data)) for name, (_, data) in static_files().items()}
    assert set(sizes) == {"dashboard.css", "dashboard.js", "icon.svg", *VENDORED}
    assert sum(sizes.values()) < 40_000


VENDORED = {
    "vendor/uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "vendor/uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}


def test_what_was_taken_from_elsewhere_is_as_it_was():
    assert {name: hashlib.sha256(static_files()[name][1]).hexdigest() for name in VENDORED} == VENDORED


def test_a_dashboard_for_others_needs_a_login():
    with pytest.raises(ConfigError, match="without a login"):
        configured("sqlite:///x.db", listen="0.0.0.0:8081")
    assert configured("sqlite:///x.db", listen="0.0.0.0:8081", password_hash_env="HASH").dashboard.password_hash == HASH
    with pytest.raises(ConfigError, match="password_hash is none"):
        configured("sqlite:///x.db", password_hash_env="TOKEN")
    with pytest.raises(ConfigError, match="did you mean 'payloads'"):
        configured("sqlite:///x.db", payload=True)
    assert "scrypt" not in repr(configured("sqlite:///x.db", password_hash_env="HASH"))
