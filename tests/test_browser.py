"""The dashboard in a real Chromium, over the demo's real database: `make test-browser`."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from browser import AXE, CHROMIUM, ROOT, chromium, demo, watched  # noqa: E402
from playwright.sync_api import expect  # noqa: E402
from storage_rows import exchange  # noqa: E402
from test_proxy_processes import free_port  # noqa: E402
from watched import NOW, fill  # noqa: E402

from proxy.dashboard_login import password_hash  # noqa: E402
from storage import exchanges  # noqa: E402
from storage.database import open_database  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(not AXE.exists(), reason="no axe-core: make test-browser fetches it"),
]
LOOKS = {"wide and light": ("light", 1280, 900), "narrow and dark": ("dark", 390, 844)}
PASSWORD = "correct horse"
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def shown():
    with demo(requests=6, max_tokens=48) as running:
        yield running


def done(work) -> None:
    """Run a coroutine in a thread of its own: Playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


@contextmanager
def dashboard_of(directory: Path, **more):
    """`seedproof dashboard serve` over `directory`'s database."""
    path, port = directory / "dashboard.toml", free_port()
    lines = [f"{name} = {json.dumps(value)}" for name, value in more.items()]
    path.write_text(
        f'store = "sqlite:///{directory / "audit.db"}"\n[seed]\nsecret_env = "S"\n'
        f'[dashboard]\nlisten = "127.0.0.1:{port}"\n' + "\n".join(lines) + "\n"
        '[[upstreams]]\nname = "honest"\nbase_url = "http://127.0.0.1:1/v1"\n'
    )
    command = [sys.executable, "-m", "seedproof", "dashboard", "serve", "--config", str(path)]
    environment = {**os.environ, "S": "s" * 32, "PYTHONPATH": str(ROOT), "HASH": password_hash(PASSWORD, b"s" * 16)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield re.search(r"http\S+", process.stdout.readline())[0]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def api_rows(shown, path: str) -> list[dict]:
    """The rows that the dashboard's API tells."""
    with urllib.request.urlopen(f"{shown.dashboard}/api/v1/{path}") as answer:
        return json.load(answer)["rows"]


def longest_answer(shown) -> dict:
    """The audited 4-bit answer of most tokens: seeds are new in every run, so any answer may end early."""
    return max(api_rows(shown, "exchanges?upstream=int4&auditing=verified"), key=lambda row: row["tokens"])


def links(shown) -> list[str]:
    """A path of every kind of page, with a stream and an exchange that are there."""
    streams = {row["upstream"]: row for row in api_rows(shown, "streams.json")}
    key = urlencode({name: streams["int4"][name] for name in ("upstream", "model", "reference", "sampler")})
    pages = ["", "/exchanges", f"/exchanges/{longest_answer(shown)['id']}", f"/stream?{key}", "/alerts", "/settings"]
    return [f"/dashboard{page}" for page in pages]


def drawn(page) -> None:
    """Every chart has its points: each is fetched by itself, the detectors' all at once."""
    page.wait_for_selector("#detector-margin[data-points]")
    expect(page.locator("figure.chart:not([data-points])")).to_have_count(0)


@pytest.mark.parametrize("look", LOOKS)
def test_pages_are_accessible_and_keep_to_themselves(browser, shown, look):
    scheme, width, height = LOOKS[look]
    with watched(browser, shown.dashboard, scheme=scheme, width=width, height=height) as seen:
        for path in links(shown):
            page = seen.open(path)
            if "stream?" in path:
                drawn(page)
            assert page.locator("h1").count() == 1
            assert seen.violations() == []
            assert not seen.is_too_wide(), path
        assert seen.troubles == []


def test_charts_are_drawn_and_their_numbers_are_a_table(browser, shown):
    with watched(browser, shown.dashboard) as seen:
        page = seen.open(links(shown)[3])
        drawn(page)
        inked = page.evaluate("""() => [...document.querySelectorAll('figure.chart canvas')].map(canvas => {
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            return data.filter((value, place) => place % 4 === 3 && value).length;
        })""")
        assert len(inked) >= 7
        assert min(inked) > 500
        figure = page.locator("#chart-match")
        figure.locator("summary").click()
        rows = figure.locator(".twin tbody tr")
        # a browser tells that `details` opened in a task of its own, and only then is the table written
        expect(rows).to_have_count(int(figure.get_attribute("data-points")))
        expect(rows.first.locator("td").nth(2)).to_have_text(re.compile(r"0\.\d+|1"))
        assert seen.violations() == []
        assert seen.troubles == []


def test_filters_and_the_search_for_an_id_find_what_they_must(browser, shown):
    with watched(browser, shown.dashboard) as seen:
        page = seen.open("/dashboard")
        page.get_by_role("link", name="Exchanges").click()
        page.locator("select[name=upstream]").select_option("int4")
        page.get_by_label("Match rate below").fill("0.95")
        page.get_by_role("button", name="Filter").click()
        page.wait_for_url("**match_below=0.95**")
        upstreams = page.locator("tbody tr td:nth-child(3)").all_inner_texts()
        below = api_rows(shown, "exchanges?upstream=int4&match_below=0.95")
        assert len(upstreams) == len(below) > 0
        assert all(text.startswith("int4") for text in upstreams)
        wanted = page.locator("tbody th a").first.inner_text()
        page.get_by_label("Id, its beginning").fill(wanted[9:])
        page.get_by_role("button", name="Find").click()
        page.wait_for_url("**/exchanges?id=*")
        assert page.locator("tbody th a").all_inner_texts() == [wanted]
        page.locator("tbody th a").click()
        page.wait_for_selector("#tokens")
        assert seen.troubles == []


def test_tokens_tell_their_detail_by_pointer_and_by_keyboard(browser, shown):
    with watched(browser, shown.dashboard) as seen:
        page = seen.open(links(shown)[2])
        texts = page.locator("#tokens .t").all_inner_texts()
        assert len(texts) == longest_answer(shown)["tokens"] > 8
        page.locator("#tokens .t").nth(4).hover()
        detail = page.locator("#token-detail")
        expect(detail).to_have_text(re.compile(r"Token 5\D"))
        page.mouse.move(0, 0)  # else tokens that the focus scrolls under the pointer are pointed at
        page.locator("#tokens").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        expect(detail).to_have_text(re.compile(r"Token 8\D"))
        assert all(word in detail.inner_text() for word in ("Claimed", "Probability", "Margin", "Logit rank"))
        other = page.locator("#tokens .t:not(.m0)").first
        other.hover()
        expect(detail).not_to_contain_text("the same")
        shades = page.evaluate("""() => new Set([...document.querySelectorAll('#tokens .t:not(.m0)')]
            .map(token => getComputedStyle(token).backgroundColor)).size""")
        assert shades >= 2
        assert seen.troubles == []


def test_the_keyboard_alone_reaches_content_and_navigation(browser, shown):
    with watched(browser, shown.dashboard) as seen:
        page = seen.open("/dashboard")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText") == "int4":
                break
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        page.keyboard.press("Enter")
        page.wait_for_url("**/dashboard/stream?**")
        assert outline == "solid"


def test_the_overview_renews_itself(browser, shown):
    with watched(browser, shown.dashboard) as seen:
        page = seen.open("/dashboard")
        page.evaluate("window.sameDocument = true")
        row = page.locator("tr", has=page.get_by_role("link", name="honest", exact=True)).locator("td").nth(4)
        assert "6 answers" in row.inner_text()
        body = {"model": "SmolLM2-135M-Instruct", "max_tokens": 16, "messages": [{"role": "user", "content": "Hi!"}]}
        asked = urllib.request.Request(
            f"{shown.honest}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked) as answer:
            assert answer.status == 200
        row.filter(has_text="7 answers").wait_for(timeout=120_000)
        assert page.evaluate("window.sameDocument")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#live-state")).to_have_text("Paused")
        assert seen.troubles == []


def test_hostile_answers_are_text(browser, tmp_path):
    store = f"sqlite:///{tmp_path / 'audit.db'}"
    line = "<script>document.title='owned'</script>\x1b[2J\u202e" + "A" * 1_000_000

    async def fill_it():
        async with open_database(store) as database:
            await fill(database, hostile=True)
            async with database.writing() as session:
                said = {"choices": [{"index": 0, "text": line}]}
                asked = {"messages": [{"role": "<img src=x onerror=alert(1)>", "content": line}, 7, None]}
                await exchanges.record(session, [exchange(800, created_at=NOW, request=asked, response=said)])

    done(fill_it())
    with dashboard_of(tmp_path) as url, watched(browser, url, width=390, height=844) as seen:
        for path in ("/dashboard/exchanges/0193-0001", "/dashboard/exchanges/0193-0800", "/dashboard/exchanges"):
            page = seen.open(path)
            page.wait_for_load_state("networkidle")
            assert page.title().endswith("· seedproof")
            assert not seen.is_too_wide(), path
            assert seen.violations() == []
        hatched = "t => getComputedStyle(t).backgroundImage.startsWith('repeating-linear-gradient')"
        tokens = seen.open("/dashboard/exchanges/0193-0001").locator("#tokens .t")
        assert [tokens.nth(place).evaluate(hatched) for place in range(4)] == [True, True, False, False]
        page = seen.open("/dashboard/exchanges/0193-0800")
        text = page.locator(".message .text").first.inner_text()
        assert text.startswith("<script>document.title='owned'</script>⟨U+001B⟩[2J⟨U+202E⟩AAAA")
        assert "980,0" in text
        assert page.locator("img[src='x']").count() == 0
        assert seen.troubles == []


def test_a_login_lets_in_and_out(browser, tmp_path):
    async def make():
        async with open_database(f"sqlite:///{tmp_path / 'audit.db'}") as database:
            await fill(database, answers=1)

    done(make())
    with dashboard_of(tmp_path, password_hash_env="HASH") as url, watched(browser, url) as seen:
        page = seen.open("/dashboard/exchanges?upstream=cheap")
        assert seen.violations() == []
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/dashboard/exchanges?upstream=cheap")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/dashboard/login")
        page.goto(url)
        assert page.url.endswith("/dashboard/login?next=/dashboard")
        assert seen.troubles == []


def test_the_first_load_of_a_page_is_small(browser, shown):
    with watched(browser, shown.dashboard) as seen:
        session = seen.page.context.new_cdp_session(seen.page)
        session.send("Network.enable")
        sizes = []
        session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
        drawn(seen.open(links(shown)[3]))
        assert 20_000 < sum(sizes) < 200_000
