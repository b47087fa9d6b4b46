"""What a page is in a real browser: headless Chromium lays it out, and a script of ours reports what a person would see wrong."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FIRST = """<script>
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
</script>"""
LAST = """<script>
const bare = (text) => text.replace(/\\s+/g, " ").trim().slice(0, 80);
const numbers = (color) => (color.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
const light = (color) => {
  const [r, g, b] = numbers(color).map((c) => (c /= 255, c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if ((numbers(color)[3] ?? 1) > 0.99) return color;
  }
  return "rgb(255, 255, 255)";
};
const faint = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!bare(walker.currentNode.data) || element.closest("script, style, title") || !element.getClientRects().length) continue;
  const style = getComputedStyle(element), color = element.closest("svg") ? style.fill : style.color;
  const [a, b] = [light(color), light(behind(element.closest("svg") ?? element))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) faint.add(`${bare(walker.currentNode.data)} ${color} ${behind(element)}`);
}
const outside = [];
for (const text of document.querySelectorAll("svg text")) {
  const own = text.getBoundingClientRect(), box = text.ownerSVGElement.getBoundingClientRect();
  if (own.width && (own.left < box.left - 1 || own.right > box.right + 1)) outside.push(bare(text.textContent));
}
const unhinted = [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth - e.clientWidth > 8 && !e.classList.contains("more"));
const seen = document.createElement("pre");
seen.id = "seen";
seen.textContent = JSON.stringify({
  errors, outside, faint: [...faint], unhinted: unhinted.map((e) => bare(e.textContent)),
  beyond: document.documentElement.scrollWidth - document.documentElement.clientWidth,
});
document.body.append(seen);
</script>"""


@cache
def _program() -> str | None:
    """Return a Chromium that starts: Ubuntu's package of that name only says where another one is."""
    found = filter(None, map(shutil.which, NAMES))
    return next(
        (
            p
            for p in found
            if subprocess.run([p, "--version"], capture_output=True, check=False).returncode == 0
        ),
        None,
    )


def look(page: Path, folder: Path, width: int) -> dict[str, Any]:
    """Lay a page out at a width in pixels; skip the test where no Chromium is installed.

    Returns:
        errors of its scripts; texts outside of their figure; texts of a contrast below 4.5; tables that are cut without a hint; pixels
        by which the page is wider than the window.
    """
    program = _program()
    if program is None:
        pytest.skip("no Chromium on this machine")
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    copy = folder / f"{page.stem}-{width}.html"
    copy.write_text(
        text.replace("<head>", f"<head>{FIRST}", 1).replace("</body>", f"{LAST}</body>", 1), encoding="utf-8"
    )
    done = subprocess.run(
        [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
         f"--window-size={width},1000", "--virtual-time-budget=2000", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    return dict(json.loads(html.unescape(found[1])))


def check_looks(page: Path, folder: Path) -> None:
    """Hold that nothing of a page is cut, faint or broken, in a wide window and in a narrow one."""
    for width in (1280, 600):
        seen = look(page, folder, width)
        assert seen == {"errors": [], "outside": [], "faint": [], "unhinted": [], "beyond": 0}, width
