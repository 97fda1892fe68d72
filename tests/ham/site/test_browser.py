"""The pages in a real browser: no errors, no network, no sideways scrolling, keyboard, names, contrast."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import vega
from browser import contrasts, launch, nameless, opened
from sweep_files import finish

from ham.files import RESULTS
from ham.report.spec import RunSpec
from ham.site import sweep, theory
from ham.site.build import write_site
from ham.sweep.status import Sweeps

WIDTHS = (360, 1600)
PARTS = ("index.html", "tables.html", "runs.html", "curves.html", "study.html", "theory.html", "sweep.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launch() as own:
        yield own


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the committed records, and the page of a sweep."""
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed: run make test")
    folder = tmp_path_factory.mktemp("site")
    _, problems = write_site(RESULTS, folder)
    assert not problems
    sweeps = Sweeps(tmp_path_factory.mktemp("runs"))
    runs = [RunSpec("dense", seed, demo="tiny") for seed in range(4)]
    finish(runs[0], sweeps)
    for run, text in ((runs[1], "out of memory"), (runs[2], "2026-01-01 10:00:00  epoch 1/2  x " * 20)):
        run.folder(sweeps.runs).mkdir(parents=True)
        (run.folder(sweeps.runs) / "train.log").write_text(f"{text}\n")
    with (runs[2].folder(sweeps.runs) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        page = sweep.page(sweeps, {"dense": runs}, sweeps.survey(runs), datetime.now(UTC))
    (folder / "sweep.html").write_text(page)
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    """The pages of the menu, the page of a sweep, and three of each folder."""
    result = [site / name for name in PARTS]
    for folder in ("runs", "tables"):
        own = sorted((site / folder).glob("*.html"))
        result += [own[0], own[len(own) // 2], own[-1]]
    return result


def test_pages_load_without_errors_network_and_shifts_and_everything_has_a_name(
    browser: Any, pages: list[Path]
) -> None:
    """In a narrow window; names are those of everything that is operated or looked at."""
    complaints = {}
    for path in pages:
        with opened(browser, path, width=360, height=740) as own:
            wide = own.page.evaluate("document.documentElement.scrollWidth")
            shifted = own.page.evaluate("window.shifted")
            found = [*own.problems, *[f"scrolls to {wide} px"] * (wide > 360)]
            found += [f"shifts by {shifted:.3f}"] * (shifted >= 0.1)
            found += [f"has no name: {element}" for element in nameless(own.page)]
            assert own.page.evaluate("document.documentElement.lang") == "en"
            assert own.page.title().strip() and own.page.locator("h1").count() == 1
        if found:
            complaints[path.name] = found
    assert not complaints


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_wide_pages_do_not_scroll_sideways_or_shift_and_have_contrast_and_described_charts(
    browser: Any, pages: list[Path], theme: str
) -> None:
    charts = 0
    for path in pages:
        with opened(browser, path, width=1600, height=1000, theme=theme) as own:
            assert own.page.evaluate("document.documentElement.scrollWidth") <= 1600, path.name
            assert own.page.evaluate("window.shifted") < 0.1, path.name
            assert not own.problems, path.name
            back = own.page.evaluate("getComputedStyle(document.body).backgroundColor")
            ratios = contrasts(own.page)
            charts += check_charts(own.page, path.name)
        assert len(ratios) > 5 and (back == "rgb(255, 255, 255)") == (theme == "light"), path.name
        assert not [(text, ratio) for ratio, text in ratios if ratio < 4.5][:5], path.name
    assert charts >= len(theory.SECTIONS)


def check_charts(page: Any, name: str) -> int:
    """Each chart has a description and axes with labels for screen readers; returns their number."""
    plots = page.locator(".plot:has(svg)").all()
    for plot in plots:
        assert plot.get_attribute("role") == "graphics-document"
        label, title = plot.get_attribute("aria-label"), plot.get_attribute("aria-labelledby")
        assert label and len(label) > 20 and title is None, name  # which would replace the label
        axes = plot.locator("[aria-roledescription=axis]")
        names = axes.evaluate_all("(all) => all.map((axis) => axis.getAttribute('aria-label'))")
        assert len(names) >= 2 and all(names), (name, names)
    return len(plots)


def test_every_slider_moves_its_curve_by_keyboard_and_shows_its_value(browser: Any, site: Path) -> None:
    with opened(browser, site / "theory.html") as own:
        sliders = own.page.locator(".plot input[type=range]")
        assert sliders.count() == 18
        for place in range(sliders.count()):
            slider = sliders.nth(place)
            label = slider.evaluate("(it) => it.closest('label').textContent")
            at_end = slider.evaluate("(it) => it.value === it.max")
            before = drawn(slider)
            slider.focus()
            for _ in range(2):
                own.page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
            own.page.wait_for_function("([it, old]) => it.closest('label').textContent !== old",
                                       arg=[slider.element_handle(), label])  # fmt: skip
            assert slider.input_value() in slider.evaluate("(it) => it.closest('label').textContent")
            for _ in range(50):
                if drawn(slider) != before:
                    break
                own.page.wait_for_timeout(20)
            assert drawn(slider) != before, label
        assert not own.problems


def drawn(slider: Any) -> list[str]:
    """The shapes of the slider's chart."""
    marks = "[...it.closest('.plot').querySelectorAll('svg .marks path, svg g[class*=mark-] path')]"
    return slider.evaluate(f"(it) => {marks}.map((path) => path.getAttribute('d'))")


_MOVED = """async ({ spec, values }) => {
  const place = document.body.appendChild(document.createElement("div"));
  const made = await vegaEmbed(place, spec);
  for (const [name, value] of Object.entries(values)) await made.view.signal(name, value).runAsync();
  return made.vgSpec.data.map((data) => made.view.data(data.name))
    .filter((rows) => rows.length && "value" in rows[0])
    .map((rows) => rows.map((row) => [row.method, row.value])).at(-1);
}"""


@pytest.mark.parametrize("section", range(6))
def test_after_sliders_moved_vega_shows_what_the_interpreter_of_the_tests_calculates(
    browser: Any, site: Path, section: int
) -> None:
    """The tests of the formulas use that interpreter."""
    own = theory.SECTIONS[section]
    spec = theory.show(theory.DATA / f"{own.figure}.json", own.make).vega_lite
    sliders = {param["name"]: param["value"] for param in spec["params"] if "bind" in param}
    values = {name: value * 0.5 if name != "exponent" else 3.5 for name, value in sliders.items()}
    rows = vega.rows(spec["layer"][-1], vega.parameters(spec, values))
    expected = [(row["method"], row["value"]) for row in rows]
    with opened(browser, site / "theory.html") as page:
        found = page.page.evaluate(_MOVED, {"spec": {**spec, "width": 300}, "values": values})
    assert len(found) == len(expected) > 20
    for (method, value), (own_method, own_value) in zip(found, expected, strict=True):
        assert method == own_method and value == pytest.approx(own_value, rel=1e-9, abs=1e-12)


def column(page: Any, place: int) -> list[str]:
    """The texts of a column of the first table, in the rows that are shown."""
    rows = page.locator("table[data-sortable] tbody tr:not([hidden])")
    cells = f"(all) => all.map((row) => row.cells[row.cells.length - {place}].textContent.trim())"
    return rows.evaluate_all(cells)


def ascending(values: list[str]) -> bool:
    """Are the numbers in order, and empty cells last?"""
    numbers = [float(value) for value in values if value]
    return numbers == sorted(numbers) and values == [*filter(None, values), *[""] * values.count("")]


@pytest.mark.parametrize("how", ["click", "Enter", "Space"])
def test_a_column_sorts_the_runs_by_click_and_by_keyboard(browser: Any, site: Path, how: str) -> None:
    with opened(browser, site / "runs.html") as own:
        page = own.page
        head = page.get_by_role("columnheader", name="Sparsity")
        button, before = head.get_by_role("button"), column(page, 3)
        assert len({*before}) > 3 and not ascending(before)
        for order in ("descending", "ascending"):
            button.click() if how == "click" else button.press(how)
            assert head.get_attribute("aria-sort") == order
            values = column(page, 3)
            assert sorted(values) == sorted(before)
            shown = [*filter(None, values)]
            assert ascending(shown if order == "ascending" else shown[::-1])
            assert page.locator("th[aria-sort=ascending], th[aria-sort=descending]").count() == 1
        assert button.evaluate("(it) => it === document.activeElement")
        page.get_by_role("columnheader", name="Run").get_by_role("button").click()
        assert page.locator("tbody th").first.inner_text() > page.locator("tbody th").last.inner_text()
        assert not own.problems


def test_a_table_of_the_paper_sorts_its_methods_and_keeps_their_rows_together(
    browser: Any, site: Path
) -> None:
    with opened(browser, site / "tables" / "demo_table04.html") as own:
        table = own.page.locator("#numbers")
        rows = "(it) => [...it.tBodies].map((body) => [...body.rows].map((row) => row.textContent))"
        before = table.evaluate(rows)
        table.locator("thead button").last.click()
        after = table.evaluate(rows)
        assert after != before and sorted(after) == sorted(before) and len(after) > 3


def test_the_runs_are_filtered_by_words_and_setting(browser: Any, site: Path) -> None:
    with opened(browser, site / "runs.html") as own:
        page = own.page
        every, count = len(column(page, 1)), page.get_by_role("status")
        assert count.inner_text() == f"{every} of {every}" and every > 100
        page.get_by_role("searchbox").focus()
        page.keyboard.type("ACDC ham")
        shown = page.locator("tbody tr:visible")
        found = shown.count()
        assert 0 < found < every and count.inner_text() == f"{found} of {every}"
        assert all("acdc" in text and "ham" in text for text in shown.all_inner_texts())
        page.get_by_role("combobox").select_option(index=1)
        setting = page.get_by_role("combobox").input_value()
        assert all(setting in text for text in shown.all_inner_texts())
        page.get_by_role("searchbox").fill("no such run")
        assert shown.count() == 0 and count.inner_text() == f"0 of {every}"


def test_curves_are_chosen_by_keyboard(browser: Any, site: Path) -> None:
    with opened(browser, site / "curves.html") as own:
        page = own.page
        lines = page.locator("#choice path[aria-roledescription='line mark']")
        lines.first.wait_for()
        chosen = page.locator("input[name=curve]:checked").count()
        assert lines.count() == chosen > 1
        box = page.locator("input[name=curve]:not(:checked)").first
        box.press("Space")
        page.wait_for_function(
            "(count) => document.querySelectorAll('#choice path[aria-roledescription=\"line mark\"]').length"
            " === count",
            arg=chosen + 1,
        )
        before = lines.first.get_attribute("d")
        page.locator("#panel").press("ArrowDown")
        page.wait_for_function(
            "(d) => document.querySelector('#choice path[aria-roledescription=\"line mark\"]')"
            "?.getAttribute('d') !== d",
            arg=before,
        )
        while page.locator("input[name=curve]:checked").count():
            page.locator("input[name=curve]:checked").first.uncheck()
        assert "Nothing is chosen." in page.locator("#choice").inner_text()
        assert not own.problems


def test_a_command_is_copied(browser: Any, site: Path) -> None:
    with opened(browser, site / "tables" / "demo_table04.html") as own:
        button = own.page.get_by_role("button", name="Copy").first
        command = button.get_attribute("data-copy")
        button.press("Enter")
        own.page.get_by_text("Copied").wait_for()
        own.page.evaluate("document.body.append(document.createElement('textarea'))")
        own.page.locator("textarea").press("Control+V")
        assert own.page.locator("textarea").input_value() == command


def test_a_page_can_be_read_without_javascript(browser: Any, site: Path) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 740})
    page = context.new_page()
    for name in PARTS:
        page.goto((site / name).as_uri())
        assert page.locator("h1").inner_text().strip()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.goto((site / "theory.html").as_uri())
    assert page.locator(".plot:empty").count() == len(theory.SECTIONS)
    page.locator("details summary").first.click()
    assert page.locator("details table").first.is_visible()
    context.close()


def test_reloading_of_a_sweep_can_be_paused_by_keyboard(browser: Any, site: Path, tmp_path: Path) -> None:
    with opened(browser, site / "sweep.html") as own:
        pause = own.page.get_by_role("link", name="Pause reloading")
        pause.press("Enter")
        assert own.page.get_by_text("Reloading is paused.").is_visible() and not pause.is_visible()
    text = (site / "sweep.html").read_text()
    quick = tmp_path / "sweep.html"
    quick.write_text(text.replace(f"{sweep.RELOAD_SECONDS * 1000});", "3000);"))
    assert quick.read_text() != text
    with opened(browser, quick) as own:
        page = own.page
        page.evaluate("window.first = true")
        page.wait_for_function("window.first === undefined")  # it loads itself again
        page.goto(f"{quick.as_uri()}#paused")
        page.reload()
        page.evaluate("window.first = true")
        page.wait_for_timeout(4000)
        assert page.evaluate("window.first")
        page.get_by_role("link", name="Resume reloading").press("Enter")
        page.wait_for_function("window.first === undefined")
        assert not own.problems


class Links(HTMLParser):
    """The addresses and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.targets += [values[name] for name in ("href", "src") if values.get(name) is not None]
        self.anchors.add(values.get("id") or "")


def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    every = {path.resolve(): Links(path.read_text()) for path in site.rglob("*.html")}
    broken = []
    for path, links in every.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = every[place].anchors if place in every else set()
            if not place.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{path.name}: {target}")
    assert not broken
    assert sum(len(links.targets) for links in every.values()) > 20
