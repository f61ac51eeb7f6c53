"""A real Chromium, driven by Playwright, and a running demo for it to look at."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

ROOT = Path(__file__).parents[1]
AXE = Path(os.environ.get("SEEDPROOF_BROWSER", Path.home() / ".cache/seedproof/browser")) / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
SERIOUS = {"serious", "critical"}


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's own browser, headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page and all that must not happen on it."""

    page: Page
    origin: str
    troubles: list[str] = field(default_factory=list)
    transferred: int = 0

    def open(self, path: str) -> Page:
        self.page.goto(self.origin + path)
        return self.page

    def violations(self) -> list[str]:
        """What axe-core finds serious or critical, with the element."""
        session = self.page.context.new_cdp_session(self.page)
        # past the page's own policy, which rightly lets no such script in
        session.send("Runtime.evaluate", {"expression": AXE.read_text()})
        found = self.page.evaluate("async () => (await axe.run()).violations")
        return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in SERIOUS]

    def is_too_wide(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@contextmanager
def watched(
    browser: Browser, url: str, *, scheme: str = "light", width: int = 1280, height: int = 900
) -> Iterator[Watched]:
    """A page of a new context; console errors, page errors, dialogs and requests elsewhere are kept as troubles."""
    viewport = {"width": width, "height": height}
    context = browser.new_context(color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
    try:
        seen = Watched(context.new_page(), "{0.scheme}://{0.netloc}".format(urlsplit(url)))

        def console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                seen.troubles.append(f"console: {message.text}")

        def request(asked: Request) -> None:
            if not asked.url.startswith((seen.origin + "/", "data:")):
                seen.troubles.append(f"request elsewhere: {asked.url}")

        seen.page.on("console", console)
        seen.page.on("pageerror", lambda error: seen.troubles.append(f"page: {error}"))
        seen.page.on("request", request)
        seen.page.on("dialog", lambda dialog: (seen.troubles.append("a dialog"), dialog.dismiss()))
        yield seen
    finally:
        context.close()


@dataclass
class Demo:
    dashboard: str
    honest: str
    """Base URL of the honest provider, behind the proxy."""
    directory: Path


@contextmanager
def demo(*, requests: int, max_tokens: int) -> Iterator[Demo]:
    """`seedproof demo`, when it has audited all its chats; it serves on until the block ends."""
    options = ["--requests", str(requests), "--max-tokens", str(max_tokens)]
    command = [sys.executable, "-m", "seedproof", "demo", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        said = []
        for line in process.stdout or ():
            said.append(line)
            if "Ctrl-C ends everything" in line:
                break
        text = "".join(said)
        found = [re.search(pattern, text) for pattern in (
            r"Dashboard: (\S+)", r'base_url="(\S+/honest/v1)"', r"Logs and database: (\S+)"
        )]  # fmt: skip
        assert all(found), text
        dashboard, honest, directory = (match[1] for match in found if match)
        yield Demo(dashboard, honest, Path(directory))
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
