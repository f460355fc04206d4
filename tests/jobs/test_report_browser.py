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

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs.report import ReportConfig, report
from pipeline import columns
from pipeline.selection import Selection
from tests.jobs import curated_world
from tests.jobs.curated_world import Curated
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
def curated(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curated_world.build(tmp_path_factory.mktemp("curated"))


@pytest.fixture(scope="module")
def curated_page(curated: Curated) -> Path:
    path = curated.root / "report.html"
    report(ReportConfig(**curated.options(path), title=TITLE))
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
    scripts = browser.execute_script("return [...document.scripts].map(s => s.type)")
    assert scripts == ["application/json", ""]  # the numbers, and ours
    assert HOSTILE in browser.execute_script("return document.body.innerText")


def test_policy_stops_a_script_that_would_get_into_the_page(browser: Any, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(text.replace("</main>", f"{HOSTILE}</main>"), encoding="utf-8")
    console, asked = opened(browser, broken)
    assert browser.title == TITLE
    assert any("Content Security Policy" in message for message in console)
    assert not [address for address in asked if address.endswith("/x")]


def joined(curated: Curated) -> pa.Table:
    """All rows with all columns, as pack reads them."""
    images = sorted((curated.root / "images").glob("0*.parquet"))
    return pa.concat_tables(
        columns.read_joined(str(path), [f"{folder}/{path.name}" for folder in curated.folders])
        for path in images
    )


def kept_by_pack(curated: Curated, where: str) -> set[str]:
    table = joined(curated)
    return set(table.filter(pc.is_null(Selection(where=where).reasons(table)))["key"].to_pylist())


def panel_of(browser: Any, name: str) -> Any:
    """The panel of the first threshold of this name, opened."""
    for panel in browser.find_elements("css selector", ".panel"):
        if panel.find_element("css selector", "summary code").text == name:
            if panel.get_attribute("open") is None:
                # by the keyboard: a click misses what still moves while pictures above are laid out
                panel.find_element("css selector", "summary").send_keys("\ue007")
            assert panel.get_attribute("open") is not None, name
            return panel
    raise AssertionError(name)


def press(browser: Any, panel: Any, key: str, times: int) -> None:
    """Moves a slider as a keyboard does."""
    panel.find_element("css selector", "input[type=range]").send_keys(key * times)


def data(element: Any, *names: str) -> list[int]:
    return [int(element.get_attribute(f"data-{name}")) for name in names]


def told_rule(browser: Any) -> str:
    """The rule that the page offers for `pairmill pack --where`."""
    return str(browser.execute_script("return document.querySelector('.together code').textContent"))


def test_a_moved_threshold_counts_as_pack_would(browser: Any, curated: Curated, curated_page: Path) -> None:
    console, asked = opened(browser, curated_page)
    assert console == []
    assert [address for address in asked if not address.startswith("data:")] == [curated_page.as_uri()]
    before = kept_by_pack(curated, curated_world.WHERE)
    panel = panel_of(browser, "clip_score")
    together = browser.find_element("css selector", ".together")
    assert not together.is_displayed()
    for key, times in (("\ue012", 15), ("\ue014", 40)):  # left: looser, right: stricter
        press(browser, panel, key, times)
        after = kept_by_pack(curated, told_rule(browser))
        numbers = [len(after), len(after - before), len(before - after)]
        assert told_rule(browser) != curated_world.WHERE
        assert data(panel.find_element("css selector", ".outcome"), "kept", "enter", "leave") == numbers
        assert data(together, "kept", "enter", "leave") == numbers
        assert together.is_displayed()
        crossing = panel.find_elements("css selector", ".rung.enters, .rung.leaves")
        assert bool(crossing) == (before != after)
        shown = [c for c in panel.find_elements("css selector", ".rung") if c.is_displayed()]
        assert 0 < len(shown) <= 10
    time.sleep(0.6)  # what is read out waits until the hand rests
    live = browser.find_element("css selector", "[aria-live=polite]").get_attribute("textContent")
    assert f"{numbers[0]} kept" in live
    panel.find_element("css selector", ".reset").click()
    assert data(panel.find_element("css selector", ".outcome"), "kept") == [len(before)]
    assert not together.is_displayed()


def test_several_moved_thresholds_count_as_pack_would(
    browser: Any, curated: Curated, curated_page: Path
) -> None:
    opened(browser, curated_page)
    before = kept_by_pack(curated, curated_world.WHERE)
    right, left = "\ue014", "\ue012"
    moves = [("clip_score", left, 12), ("unsafe", left, 60), ("near_distance", left, 5),
             ("quality_sharpness", right, 9), ("semantic_similarity", left, 40)]  # fmt: skip
    for name, key, times in moves:
        press(browser, panel_of(browser, name), key, times)
    together = browser.find_element("css selector", ".together")
    after = kept_by_pack(curated, told_rule(browser))
    for part in ("unsafe < ", "near_distance > ", "quality_sharpness >= ", "semantic_similarity < "):
        assert part in told_rule(browser)
    assert together.get_attribute("data-exact") == "true"
    assert data(together, "kept", "enter", "leave") == [len(after), len(after - before), len(before - after)]
    assert after - before
    assert before - after
    browser.find_element("css selector", ".reset-all").send_keys("\ue007")
    assert data(together, "kept") == [len(before)]


def test_a_threshold_can_be_typed_and_goes_to_the_nearest_counted(
    browser: Any, curated: Curated, curated_page: Path
) -> None:
    opened(browser, curated_page)
    panel = panel_of(browser, "unsafe")
    field = panel.find_element("css selector", "input[type=number]")
    field.send_keys("\ue009a")  # all of it
    field.send_keys("\ue000")
    field.send_keys("0.2512\t")
    assert field.get_attribute("value") == "0.250"
    where = told_rule(browser)
    assert "unsafe < 0.250" in where
    assert data(panel.find_element("css selector", ".outcome"), "kept") == [len(kept_by_pack(curated, where))]
    slider = panel.find_element("css selector", "input[type=range]")
    assert slider.get_attribute("aria-valuetext").startswith("0.250: ")
    assert slider.get_attribute("aria-label") == "threshold of unsafe"


def test_estimates_say_so(browser: Any, curated: Curated, tmp_path: Path) -> None:
    path = tmp_path / "small.html"
    report(ReportConfig(**curated.options(path), sample=60))
    opened(browser, path)
    press(browser, panel_of(browser, "clip_score"), "\ue012", 12)
    together = browser.find_element("css selector", ".together")
    assert together.get_attribute("data-exact") == "true"  # one alone is counted over all rows
    press(browser, panel_of(browser, "unsafe"), "\ue012", 60)
    assert together.get_attribute("data-exact") == "false"
    assert "estimated from 60 rows" in together.text
    truth = len(kept_by_pack(curated, told_rule(browser)))
    assert data(together, "kept")[0] == pytest.approx(truth, abs=40)


def test_hostile_captions_of_all_sections_are_text(browser: Any, curated_page: Path) -> None:
    console, _ = opened(browser, curated_page)
    assert console == []
    assert browser.title == TITLE
    text = browser.execute_script("return document.body.textContent")
    assert text.count("<script>document.title") > 5
    assert "coco/val2014_1</script>.jpg" in text
    assert browser.execute_script("return document.scripts.length") == 2


def test_without_a_script_the_page_still_tells(browser: Any, curated_page: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.html"
    text = curated_page.read_text(encoding="utf-8")
    bare.write_text(text[: text.rindex("<script>")] + "</body></html>", encoding="utf-8")
    opened(browser, bare)
    panel = panel_of(browser, "clip_score")
    shown = [c for c in panel.find_elements("css selector", ".rung") if c.is_displayed()]
    assert len(shown) == 10
    assert "Kept, at least 0.28" in panel.text
    assert not [c for c in browser.find_elements("css selector", "input, button") if c.is_displayed()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curated_page_fits_its_window_and_has_contrast(
    browser: Any, curated_page: Path, size: str, scheme: str
) -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "narrow"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme_feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_feature)
    opened(browser, curated_page)
    press(browser, panel_of(browser, "clip_score"), "\ue012", 15)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    selectors = (
        ".panel .state", ".panel .outcome", ".enters .cross", ".mini .meta", ".chosen", "h4", ".ends",
        ".together .enter", ".together .leave", ".together code", "button",
    )  # fmt: skip
    for selector in selectors:
        assert browser.execute_script(CONTRAST, selector) >= 4.5, (selector, size, scheme)
    if folder := os.environ.get("PAIRMILL_SCREENSHOTS"):
        metrics["height"] = browser.execute_script("return document.documentElement.scrollHeight")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.save_screenshot(str(Path(folder) / f"curated-{size}-{scheme}.png"))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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
