"""The pictures of docs/images, from a demo that really runs: `make screenshots`."""

import sys

from browser import ROOT, chromium, demo, watched
from test_browser import drawn, links

IMAGES = ROOT / "docs" / "images"


def main() -> None:
    """Take them all."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with demo(requests=16, max_tokens=96) as shown, chromium() as browser:
        overview, _, exchange, stream, *_ = links(shown)
        with watched(browser, shown.dashboard, width=1200, height=660) as seen:
            seen.open(overview).screenshot(path=IMAGES / "overview.png")
            page = seen.open(stream)
            drawn(page)
            page.set_viewport_size({"width": 1200, "height": 860})
            page.wait_for_timeout(300)
            page.screenshot(path=IMAGES / "stream.png")
            page = seen.open(exchange)
            page.set_viewport_size({"width": 1200, "height": 900})
            page.locator("#tokens .t.m6, #tokens .t.m5").first.hover()
            page.screenshot(path=IMAGES / "exchange.png")
        with watched(browser, shown.dashboard, scheme="dark", width=390, height=844) as seen:
            page = seen.open(exchange)
            page.locator("#tokens .t:not(.m0)").first.hover()
            page.screenshot(path=IMAGES / "phone.png")
    for path in sorted(IMAGES.glob("*.png")):
        sys.stdout.write(f"{path.relative_to(ROOT)}  {path.stat().st_size // 1024} KiB\n")


if __name__ == "__main__":
    main()
