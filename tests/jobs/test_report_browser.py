"""The report in a real browser: Debian's chromium, headless, through its own driver.

`apt-get install chromium chromium-driver`. On a developer's machine without them these tests are skipped and
say so; in CI (`CI=true`) their absence is a failure.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.report import ReportConfig, report
from tests.jobs.report_world import HOSTILE, World, build

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TITLE = "What a small web became"
SIZES = {"wide": (1280, 900), "narrow": (420, 900)}

pytestmark = [pytest.mark.prove, pytest.mark.prove_ci]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def page(world: World) -> Path:
    path = world.root / "report.html"
    report(ReportConfig(**world.options(path), thumbnails=60, title=TITLE))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    missing = [str(path) for path in (CHROMIUM, DRIVER) if not path.exists()]
    if missing:
        message = f"{', '.join(missing)} missing; apt-get install chromium chromium-driver"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(message)
        pytest.skip(message)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def opened(browser: Any, page: Path) -> tuple[list[str], list[str]]:
    """Opens the page; returns what its console said, and which addresses it asked for and was
    not stopped from asking by its own policy."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    time.sleep(0.3)
    console = [entry["message"] for entry in browser.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    stopped = {
        e["params"]["requestId"]
        for e in events
        if e["method"] == "Network.loadingFailed" and e["params"].get("blockedReason") == "csp"
    }
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return console, [s["request"]["url"] for s in sent if s["requestId"] not in stopped]


def test_nothing_fails_and_nothing_is_loaded(browser: Any, page: Path) -> None:
    console, asked = opened(browser, page)
    assert console == []
    assert [address for address in asked if not address.startswith("data:")] == [page.as_uri()]


def test_pictures_are_decoded(browser: Any, page: Path) -> None:
    opened(browser, page)
    widths = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth])")
    assert len(widths) > 100
    assert all(complete and width > 0 for complete, width in widths)


def test_planted_script_is_shown_and_does_not_run(browser: Any, page: Path) -> None:
    opened(browser, page)
    assert browser.title == TITLE
    assert browser.execute_script("return document.scripts.length") == 0
    assert HOSTILE in browser.execute_script("return document.body.innerText")


def test_policy_stops_a_script_that_would_get_into_the_page(browser: Any, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(text.replace("</main>", f"{HOSTILE}</main>"), encoding="utf-8")
    console, asked = opened(browser, broken)
    assert browser.title == TITLE
    assert any("Content Security Policy" in message for message in console)
    assert not [address for address in asked if address.endswith("/x")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_its_window_and_has_contrast(browser: Any, page: Path, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "narrow"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme_feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_feature)
    opened(browser, page)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for selector in (
        "body",
        ".lead",
        ".percent",
        ".reasons .share",
        ".card .meta",
        ".flag",
        ".card a",
        "thead th",
    ):
        assert browser.execute_script(CONTRAST, selector) >= 4.5, (selector, size, scheme)
    if folder := os.environ.get("PAIRMILL_SCREENSHOTS"):
        metrics["height"] = browser.execute_script("return document.documentElement.scrollHeight")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.save_screenshot(str(Path(folder) / f"report-{size}-{scheme}.png"))


#: WCAG contrast of an element's text against the nearest painted ground behind it
CONTRAST = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const element = document.querySelector(arguments[0]);
let ground = element;
const painted = e => getComputedStyle(e).backgroundColor;
while (ground.parentElement && rgb(painted(ground))[3] === 0) ground = ground.parentElement;
const pair = [getComputedStyle(element).color, painted(ground)].map(c => light(rgb(c)));
return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
"""
