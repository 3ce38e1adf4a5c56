"""The report in a real browser, as wide pages and phones show it, light and dark: nothing overflows, no label lies on
another, every text is large enough and stands out from what is behind it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastfill_ray.log.state import State
from fastfill_ray.report.html import report_html
from tests.report.logs import finished, flipped, grouped, judged, living, plan, predicted, rolled_back, running

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

# Runs in the page around the reports, which themselves allow no script; each lies in a frame of the tested width.
MEASURE = """
const faults = {};
const channels = color => (color.match(/[\\d.]+/g) || []).map(Number);
function luminance(color) {
  const linear = channels(color).slice(0, 3).map(c => c / 255).map(
    c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
function behind(element, view) {
  for (let e = element; e; e = e.parentElement) {
    const color = view.getComputedStyle(e).backgroundColor;
    if (channels(color).length === 3 || channels(color)[3] > 0) return color;
  }
  return "rgb(255, 255, 255)";
}
function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function inspect(frame) {
  const found = [], page = frame.contentDocument, view = frame.contentWindow, width = page.documentElement.clientWidth;
  const what = e => `${e.tagName} ${e.getAttribute("class")} "${e.textContent.trim().slice(0, 40)}"`;
  const isShown = e => e.getClientRects().length > 0;
  if (page.documentElement.scrollWidth > width) found.push(`page is ${page.documentElement.scrollWidth} px wide`);
  for (const e of page.body.querySelectorAll("*")) {
    if (!isShown(e)) continue;
    const box = e.getBoundingClientRect();
    if (box.right > width + 0.5 || box.left < -0.5) found.push(`overflows the page: ${what(e)}`);
    if (e.matches(".wide, td, th, p, dd, li") && e.scrollWidth > e.clientWidth + 1) found.push(`cut off: ${what(e)}`);
    const style = view.getComputedStyle(e), color = e.matches("svg text") ? style.fill : style.color;
    const hasText = [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (hasText && !e.matches("title") && contrast(color, behind(e, view)) < 4.5) found.push(`too pale: ${what(e)}`);
  }
  for (const picture of page.querySelectorAll("svg")) {
    if (!isShown(picture)) continue;
    const frameBox = picture.getBoundingClientRect();
    const fontSize = 12 * frameBox.width / picture.viewBox.baseVal.width;
    if (fontSize < 11) found.push(`texts of ${fontSize.toFixed(1)} px: ${picture.getAttribute("aria-label")}`);
    const texts = [...picture.querySelectorAll("text")], boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((one, i) => {
      if (one.left < frameBox.left - 0.5 || one.right > frameBox.right + 0.5) found.push(`cut off: ${what(texts[i])}`);
      boxes.slice(i + 1).forEach((other, j) => {
        // The boxes of two lines of text touch: what is drawn in them does not.
        const above = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
        const beside = Math.min(one.right, other.right) - Math.max(one.left, other.left);
        if (above > 3 && beside > 0) found.push(`${what(texts[i])} lies on ${what(texts[i + 1 + j])}`);
      });
    });
  }
  return found;
}
window.onload = () => {
  for (const frame of document.querySelectorAll("iframe")) faults[frame.title] = inspect(frame);
  document.getElementById("faults").textContent = JSON.stringify(faults);
};
"""


def states() -> dict[str, State]:
    return {
        "empty": State(),
        "plan": running(0),
        "plan without a prediction": State(plans=(plan(),)),
        "one version": running(1),
        "three versions": running(3),
        "rolled back": rolled_back(running(3), 1),
        "finished": judged(finished()),
        "with flips": flipped(),
        "with groups": grouped({"a group with a long name": 0.05, "a_name_without_any_blank_of_40_characters": -0.1}),
        "predicted": predicted(),
        "living": judged(living()),
    }


def faults(folder: Path, pages: Mapping[str, str], width: int, scheme: str) -> dict[str, list[str]]:
    """{page: what is wrong with it} as the browser shows it in a frame of `width` px."""
    frames = "".join(
        f'<iframe title="{name}" width="{width}" height="800" style="border: 0" srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
    )
    around = folder / "around.html"
    around.write_text(f'<!doctype html><pre id="faults"></pre>{frames}<script>{MEASURE}</script>', encoding="utf-8")
    assert BROWSER is not None
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
        *("--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"),
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        *("--window-size=1400,900", "--dump-dom", around.as_uri()),
    ]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    written = re.search(r'<pre id="faults">(.+?)</pre>', dumped, re.DOTALL)
    assert written is not None, dumped[:500]
    measured: Any = json.loads(html.unescape(written[1]))
    return {str(name): list(found) for name, found in measured.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 1040, 800, 390])
def test_every_page_fits_and_can_be_read(tmp_path: Path, width: int, scheme: str) -> None:
    pages = {name: report_html(state) for name, state in states().items()}
    assert faults(tmp_path, pages, width, scheme) == {name: [] for name in pages}


def test_what_does_not_fit_is_noticed(tmp_path: Path) -> None:
    text = '<text x="10" y="20">one</text><text x="12" y="22">other</text>'
    page = f'<div style="width: 500px; color: #ddd">wide</div><svg viewBox="0 0 800 40" aria-label="small">{text}</svg>'
    [found] = faults(tmp_path, {"bad": f"<!doctype html>{page}"}, 390, "light").values()
    for fault in ("page is ", "overflows the page: DIV", "too pale: DIV", "texts of ", ' lies on text null "other"'):
        assert any(fault in each for each in found), (fault, found)
