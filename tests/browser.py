"""The system's Chromium, driven by playwright, for the tests of pages: without a network, and watched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 30.0  # for a page, on a busy machine
_DRAWN = """() => [...document.querySelectorAll("script[data-chart]")].every((source) => {
  const place = document.getElementById(source.dataset.chart);
  return place === null || place.offsetParent === null || place.querySelector("svg") !== null;
})"""
_SHIFTS = """
  window.shifted = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
"""

_CONTRASTS = """() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const [r, g, b] = color.map((part) => part / 255).map((part) =>
      part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backs = (element) => { // several under a gradient
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      const stops = [...style.backgroundImage.matchAll(/((?:rgba?|color)\\([^)]*\\)) ([\\d.]+)%/g)];
      // a color that ends where it begins is not seen
      const seen = stops.filter(([, , end], place) => Number(end) !== (place ? 100 : 0));
      if (stops.length) return seen.map(([, color]) => rgb(color));
      const color = rgb(style.backgroundColor);
      if (color[3] === 255) return [color];
    }
    return [rgb("white")];
  };
  const result = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const box = element.getBoundingClientRect();
    if (!own || box.width < 2 || box.height < 2 || element.closest("script, style, noscript")) continue;
    const style = getComputedStyle(element);
    const front = rgb(element instanceof SVGElement ? style.fill : style.color);
    if (front[3] < 255) continue;
    const ratios = backs(element).map((behind) => {
      const [low, high] = [front, behind].map((own) => luminance(own.slice(0, 3))).sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    });
    const text = `${element.tagName} ${element.textContent.trim().slice(0, 40)}`;
    result.push([Math.min(...ratios), text]);
  }
  return result;
}"""
_NAMELESS = """() => {
  const text = (ids) => (ids ?? "").split(" ")
    .map((id) => document.getElementById(id)?.textContent ?? "").join("");
  const name = (it) => it.getAttribute("aria-label") || text(it.getAttribute("aria-labelledby"))
    || [...(it.labels ?? [])].map((label) => label.textContent).join("") || it.getAttribute("alt")
    || it.querySelector(":scope > figcaption, :scope > caption, :scope > legend")?.textContent
    || (["BUTTON", "A", "SUMMARY"].includes(it.tagName) ? it.textContent : "");
  const every = "a[href], button, select, input, textarea, img, figure, progress, table, summary, fieldset, "
    + "[role=region], [role=group], [role=img], [role=graphics-document]";
  return [...document.querySelectorAll(every)].filter((it) => !name(it).trim())
    .map((it) => it.outerHTML.slice(0, 120));
}"""


@contextmanager
def launch() -> Iterator[Any]:
    """A browser; skips the test, with the reason, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: run make test")
    found = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    if found is None:
        pytest.skip("Chromium is not installed: run scripts/install_browser.sh")
    options = ["--no-sandbox"] if os.getuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=options)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page that is open, and what went wrong on it."""

    page: Any
    problems: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Note messages of the console, exceptions, failed requests and requests that leave the disk."""
        page = self.page
        page.on("console", lambda it: self._note(it.type in ("error", "warning"), f"{it.type}: {it.text}"))
        page.on("pageerror", lambda error: self._note(True, f"exception: {error}"))
        page.on("requestfailed", lambda it: self._note(True, f"failed: {it.url}"))
        page.on("request", lambda it: self._note(not it.url.startswith(("file:", "data:")), f"asks {it.url}"))

    def _note(self, is_problem: bool, text: str) -> None:
        if is_problem:
            self.problems.append(text[:300])


@contextmanager
def opened(
    browser: Any, path: Path, *, width: int = 1280, height: int = 800, theme: str = "light"
) -> Iterator[Watched]:
    """A page from disk, once its charts are drawn."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    context.set_offline(True)
    context.set_default_timeout(SECONDS * 1000)
    context.add_init_script(_SHIFTS)
    try:
        watched = Watched(context.new_page())
        watched.watch()
        watched.page.goto(path.as_uri())
        watched.page.wait_for_function(_DRAWN)
        yield watched
    finally:
        context.close()


def contrasts(page: Any) -> list[tuple[float, str]]:
    """The least contrast of each text to what is behind it (WCAG), and the text."""
    return [(ratio, text) for ratio, text in page.evaluate(_CONTRASTS)]


def nameless(page: Any) -> list[str]:
    """The controls, pictures and regions that have no name for screen readers."""
    return page.evaluate(_NAMELESS)
