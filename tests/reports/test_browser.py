"""The report in a real browser: it asks nothing of a network, logs no error, and fits a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tables_fixture import curves, record, results

from reports.render import render

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with its network and console logged."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(results(), curves(), record(), tmp_path_factory.mktemp("run"))


def requested(browser: Any) -> list[str]:
    """Addresses that the page made the browser ask for since the log was last read."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def visit(browser: Any, address: str) -> tuple[list[str], list[str]]:
    """Open an address; what was asked of a network, and what the console complained of."""
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(address)
    browser.execute_script("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    asked = [url for url in requested(browser) if not url.startswith(("file:", "data:", "about:"))]
    return asked, [entry["message"] for entry in browser.get_log("browser")]


def test_the_report_opens_without_network_or_console_error(browser: Any, page: Path) -> None:
    assert visit(browser, page.as_uri()) == ([], [])
    assert browser.find_elements("css selector", "section h2")
    assert all(svg.size["width"] > 100 for svg in browser.find_elements("css selector", "figure svg"))


def test_the_watch_sees_a_request_and_an_error(browser: Any, tmp_path: Path) -> None:
    """A page that asks for a picture and throws: else the test above could never fail."""
    bad = tmp_path / "bad.html"
    bad.write_text('<!DOCTYPE html><title>bad</title><img src="http://127.0.0.1:9/x.png"><script>throw new Error("boom")</script>')
    asked, said = visit(browser, bad.as_uri())
    assert asked == ["http://127.0.0.1:9/x.png"]
    assert any("boom" in line for line in said)


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)])
def test_the_page_never_scrolls_sideways(browser: Any, page: Path, width: int, height: int) -> None:
    """Wide pictures and tables scroll inside their own frames."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    )
    try:
        visit(browser, page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_picture_has_a_name_and_a_description(browser: Any, page: Path) -> None:
    """As assistive technology computes them, from the ids that the picture refers to."""
    visit(browser, page.as_uri())
    pictures = browser.find_elements("css selector", "figure svg")
    assert len(pictures) >= 8
    for picture in pictures:
        assert picture.accessible_name.strip()
        assert picture.aria_role in {"img", "image"}


def test_ids_are_unique(browser: Any, page: Path) -> None:
    visit(browser, page.as_uri())
    twice = browser.execute_script(
        "const n = {}; document.querySelectorAll('[id]').forEach(e => n[e.id] = (n[e.id] || 0) + 1);"
        "return Object.keys(n).filter(k => n[k] > 1)"
    )
    assert twice == []


def test_ink_turns_light_in_the_dark(browser: Any, page: Path) -> None:
    """Pictures follow the page: their ink is the page's."""
    mark = "document.querySelector('figure svg g[id*=text] g')"
    script = f"return getComputedStyle(document.body).color + '|' + getComputedStyle({mark}).fill"
    colours = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        visit(browser, page.as_uri())
        colours.append(browser.execute_script(script))
    assert colours[0] != colours[1]
    assert all(colour.split("|")[0] == colour.split("|")[1] for colour in colours)
