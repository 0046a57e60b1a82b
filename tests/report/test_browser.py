"""The page holds together in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clpdd.config.settings import Settings
from clpdd.stages.report import write_report
from clpdd.storage.layout import Layout
from tests.browser import asked_schemes, emulate

CUT_OFF = """
const found = [], seen = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
for (let node = seen.nextNode(); node; node = seen.nextNode()) {
  const element = node.parentElement;
  if (!node.data.trim() || element.closest('.scroll') || !element.checkVisibility({visibilityProperty: true})) continue;
  range.selectNodeContents(node);
  for (const box of range.getClientRects())
    if (box.left < -0.5 || box.right > document.documentElement.clientWidth + 0.5) found.push(node.data);
  for (let outer = element; outer !== document.body; outer = outer.parentElement) {
    const style = getComputedStyle(outer);
    const clips = style.overflowX !== 'visible' || style.overflowY !== 'visible' || style.textOverflow === 'ellipsis';
    if (clips && (outer.scrollWidth > outer.clientWidth + 1 || outer.scrollHeight > outer.clientHeight + 1))
      found.push(node.data);
  }
}
return found;
"""

CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const rgba = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const light = rgb => [...rgb].slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
let worst = 21;
for (const element of document.querySelectorAll('p, span, td, th, dt, dd, li, h1, h2, h3, a, code, small, summary')) {
  if (!element.innerText.trim() || !element.checkVisibility({visibilityProperty: true})) continue;
  let behind = element;
  while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
  const a = light(rgba(getComputedStyle(element).color)), b = light(rgba(getComputedStyle(behind).backgroundColor));
  worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
}
return worst;
"""


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["plain", "hostile", "many"])
def test_page_holds_together_in_a_browser(
    which: str, scheme: str, width: int, browser: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    layout, settings = request.getfixturevalue(which)
    emulate(browser, width, prefers_color_scheme=scheme)
    asked_schemes(browser)
    browser.get(write_report(layout, settings, tmp_path)["report.html"].as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")

    assert browser.get_log("browser") == []
    page = "document.documentElement"
    assert browser.execute_script(f"return {page}.scrollWidth <= {page}.clientWidth")
    assert browser.execute_script(CUT_OFF) == []
    assert browser.execute_script("return [...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    assert browser.execute_script(CONTRAST) >= 4.5
    for box in browser.execute_script("return [...document.querySelectorAll('.scroll')].map(b => b.clientWidth)"):
        assert box <= width

    assert asked_schemes(browser) <= {"file", "data"}


def test_readers_who_ask_for_less_motion_see_the_last_frame(
    browser: Any, plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    layout, settings = plain
    address = write_report(layout, settings, tmp_path)["report.html"].as_uri()
    emulate(browser, 1280, prefers_reduced_motion="reduce")
    browser.get(address)
    assert browser.execute_script("return document.getAnimations().length") == 0
    assert lowest_frame(browser)
    emulate(browser, 1280, prefers_reduced_motion="no-preference")
    browser.get(address)
    assert browser.execute_script("return document.getAnimations().map(a => a.playState)") == ["running"]


def lowest_frame(browser: Any) -> bool:
    """Whether the window on the strip of frames shows the last one."""
    strip, window = (f"document.querySelector('.film{part}').getBoundingClientRect()" for part in (" img", ""))
    below = browser.execute_script(f"return {strip}.bottom - {window}.bottom")
    return abs(float(below)) < 3  # the border of the window, and what rounding adds


def test_the_timelapse_is_paused_by_its_box_without_a_script(
    browser: Any, plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    layout, settings = plain
    emulate(browser, 1280, prefers_reduced_motion="no-preference")
    browser.get(write_report(layout, settings, tmp_path)["report.html"].as_uri())
    state = "return document.getAnimations().map(a => a.playState)"
    seen = [browser.execute_script(state)]
    for _ in range(2):
        browser.find_element("css selector", "label.pause").click()
        seen.append(browser.execute_script(state))
    assert seen == [["running"], ["paused"], ["running"]]
    ends = "const a = document.getAnimations()[0]; a.pause(); a.currentTime = 0.9 * a.effect.getTiming().duration"
    browser.execute_script(ends)
    assert lowest_frame(browser)  # which is held for the last quarter


def test_a_narrow_page_turns_the_images_by_a_quarter(
    browser: Any, plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    layout, settings = plain
    address = write_report(layout, settings, tmp_path)["report.html"].as_uri()
    where = (
        "return [...document.querySelectorAll('.gallery img')].map(i => i.getBoundingClientRect()).map(b => [b.x, b.y])"
    )
    for width, same in ((1280, 1), (400, 0)):
        emulate(browser, width)
        browser.get(address)
        places = np.array(browser.execute_script(where)).reshape(10, 3, 2)  # class, kind, (x, y)
        assert np.ptp(places[:, :, same], axis=0).max() < 1  # the images of a kind share a row, or a column
        assert np.ptp(places[:, :, 1 - same], axis=1).max() < 1  # the images of a class share a column, or a row
