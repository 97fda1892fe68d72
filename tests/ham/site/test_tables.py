"""Every number on the pages of tables is that of the rendered csv and Markdown, and links to its runs."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from printed_numbers import could_print, markdown_tables
from site_pages import Element, grid, parse, stale

from ham.files import RESULTS
from ham.report import plan
from ham.report.records import metrics_path, write_divergence
from ham.report.spec import RunSpec
from ham.report.table_files import SHEETS
from ham.site import build
from ham.site.pages import signs

RENDERED = sorted(
    path.stem
    for path in (RESULTS / "tables").glob("*.csv")
    if re.fullmatch(r"((demo|cifar16|smollm|epochs20)_)?(table\d\d|control_\w+)", path.stem)
)
SIGNS = {"above": "▲", "below": "▼", "within": "≈", "open": ""}
COLUMNS = {"ours": "mean", "paper": "paper_mean", "difference": "difference", "sparsity": "achieved_sparsity"}


def table_of(page: str) -> Element:
    (table,) = [own for own in parse(page).all("table") if own.attrs.get("id") == "numbers"]
    return table


def texts_of(table: Element) -> list[list[str]]:
    """The body as rows of texts, without the signs of differences."""
    return [["" if own is None else own.without("mark") for own in row] for row in grid(table)]


def head_of(table: Element) -> list[str]:
    return [own.text for own in table.all("thead")[0].all("th", "td")]


def rendered(name: str) -> list[list[str]]:
    """The table of the Markdown page."""
    text = (RESULTS / "tables" / f"{name}.md").read_text()
    (own,) = markdown_tables(text.replace("\\|", "\0"))
    return [[signs(" ".join(cell.replace("\0", "|").split())) for cell in row] for row in own]


def csv_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def cells_of(page: str) -> dict[tuple[str, str, str], dict[str, Element]]:
    """Group, row and column -> kind of number -> cell."""
    table = table_of(page)
    head, found = head_of(table), {}
    names = head.index("")
    for body in table.all("tbody"):
        if "data-fixed" in body.attrs:
            continue
        rows = grid(Element("table", {}, [body]))
        own = [cell.text for cell in rows[0][:names] if cell]
        for row in rows:
            for column, cell in zip(head[names + 1 :], row[names + 1 :], strict=True):
                key = (own[0] if names > 1 else "", own[-1], column)
                found.setdefault(key, {})[row[names].text] = cell
    return found


def differences(page: str, name: str) -> list[str]:
    """What the numbers of a page, shown or sorted by, and those of the rendered files disagree about."""
    table, expected = table_of(page), rendered(name)
    head = [own if own or place else "method" for place, own in enumerate(expected[0])]
    wrong = [] if head_of(table) == head else [f"{name}: other columns"]
    shown = texts_of(table)
    wrong += [f"{name}: {a} is not {b}" for a, b in zip(shown, expected[1:], strict=True) if a != b]
    bodies = [own for own in table.all("tbody") if name in SHEETS or "data-fixed" in own.attrs]
    plain = [cell for own in bodies for cell in own.all("td") if "data-value" in cell.attrs]
    wrong += [own.text for own in plain if own.text.split(" / ")[0] != own.attrs["data-value"]]
    if name in SHEETS:
        return wrong
    cells = cells_of(page)
    rows = csv_of(name)
    if len(rows) != sum(len(own) > 0 and own["ours"].text != "-" for own in cells.values()):
        wrong.append(f"{name}: another number of cells")
    for row in rows:
        own = cells[row["group"], row["row"], row["column"]]
        for kind, cell in own.items():
            value = cell.attrs.get("data-value") or ""
            if kind != "paired" and value != row[COLUMNS[kind]]:
                wrong.append(
                    f"{name}, {row['row']}, {row['column']}: {kind} {value} is not {row[COLUMNS[kind]]}"
                )
    return wrong


@pytest.mark.parametrize("name", RENDERED)
def test_the_numbers_are_those_of_the_rendered_table(name: str, committed: dict[str, str]) -> None:
    assert not differences(committed[f"tables/{name}.html"], name)


def test_every_rendered_table_has_a_page_and_all_numbers_are_compared(committed: dict[str, str]) -> None:
    assert {f"tables/{name}.html" for name in RENDERED} == {
        page for page in committed if page[:7] == "tables/"
    }
    compared = [
        cell for name in RENDERED for row in rendered(name)[1:] for cell in row if re.search(r"\d", cell)
    ]
    assert len(RENDERED) > 25 and len(compared) > 900


def test_the_committed_pages_of_tables_are_of_the_records(committed: dict[str, str]) -> None:
    assert not stale(committed, "tables")


@pytest.mark.parametrize("name", ["table14", "table17", "demo_table04", "table11", "table16", "table05"])
def test_the_comparison_notices_every_changed_number(name: str, committed: dict[str, str]) -> None:
    """Each number that a cell shows or is sorted by, changed alone."""
    page = committed[f"tables/{name}.html"]
    start = page.index('<table id="numbers"')
    body = page[start : page.index("</table>", start)]
    places = [*re.finditer(r'data-value="[^"]*\d', body), *re.finditer(r">[^<>]*\d(?=[^<>]*</(td|a)>)", body)]
    assert len(places) > 15
    for place in places[:: max(1, len(places) // 40)]:
        at = start + place.end() - 1
        changed = page[:at] + str((int(page[at]) + 1) % 10) + page[at + 1 :]
        is_of_settings = name in SHEETS and place[0].startswith("data-value")
        assert differences(changed, name) or is_of_settings, place[0]


@pytest.mark.parametrize("name", [name for name in RENDERED if name not in SHEETS])
def test_differences_are_marked_by_their_interval(name: str, committed: dict[str, str]) -> None:
    cells = cells_of(committed[f"tables/{name}.html"])
    for row in csv_of(name):
        own = cells[row["group"], row["row"], row["column"]].get("difference")
        if own is None or not row["difference"]:
            assert own is None or not {*own.classes} & SIGNS.keys()
            continue
        low, high = (float(row[key]) if row[key] else None for key in ("low", "high"))
        mark = "open" if low is None else "above" if low > 0 else "below" if high < 0 else "within"
        assert {*own.classes} & SIGNS.keys() == {mark}, row
        (sign,) = [part for part in own.all("span") if "mark" in part.classes]
        assert sign.text.startswith(SIGNS[mark]) and (mark == "open" or len(sign.text) > 4)
        if low is not None:
            numbers = re.findall(r"[+-]?\d+\.\d+", own.without("mark"))
            assert all(map(could_print, numbers, (float(row["difference"]), low, high)))


def test_each_cell_of_ours_leads_to_the_runs_that_its_mean_is_of(committed: dict[str, str]) -> None:
    """The seeds that the csv lists are rows of the linked page, and their metric has the csv's mean."""
    linked = 0
    for name in RENDERED:
        if name in SHEETS:
            continue
        cells = cells_of(committed[f"tables/{name}.html"])
        for row in csv_of(name):
            links = cells[row["group"], row["row"], row["column"]]["ours"].all("a")
            assert bool(links) == bool(row["mean"]), row
            if not links:
                continue
            page = parse(committed[links[0].attrs["href"].removeprefix("../")])
            table = next(own for own in page.all("table") if own.all("caption")[0].text == "Seeds")
            head = head_of(table)
            shown = {cells[0].text: cells[head.index(row["metric"])].text for cells in grid(table)}
            values = [float(shown[seed]) for seed in row["seeds"].split()]
            assert statistics.mean(values) == pytest.approx(float(row["mean"]), abs=0.006), row
            linked += 1
    assert linked > 80


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("table05", ["dataset", "model", "optimizer", "lr schedule"]),  # and sizes, rates and epochs
        ("table04", ["type", "method"]),
        ("table14", ["method"]),
    ],
)
def test_columns_of_words_are_sorted_as_words_and_the_others_as_numbers(
    name: str, words: list[str], committed: dict[str, str]
) -> None:
    heads = table_of(committed[f"tables/{name}.html"]).all("thead")[0].all("th")
    kinds = {head.text: head.all("button")[0].attrs["data-sort"] for head in heads}
    assert [text for text, kind in kinds.items() if kind == "text"] == words
    assert [head.text for head in heads if "number" not in head.classes] == words
    assert {*kinds.values()} == {"text", "number"}


def test_notes_and_captions_are_those_of_the_rendered_table(committed: dict[str, str]) -> None:
    for name in RENDERED:
        text = parse(committed[f"tables/{name}.html"]).text
        lines = (
            (RESULTS / "tables" / f"{name}.md").read_text().split("\n| ")[0].removeprefix("# ").split("\n")
        )
        assert [line for line in lines if " ".join(line.split()) not in text] == []


def test_runs_that_diverged_and_paired_differences_are_shown(
    tmp_path: Path, write_record: Callable[..., Path], make_summary: Callable[..., dict]
) -> None:
    """Table 12 at 20 epochs has paired differences; a table whose runs diverged says so and links them."""
    (paired,) = [row for row in plan.table("12").rows if any(cell and cell.against for cell in row.cells)][:1]
    cell = next(cell for cell in paired.cells if cell and cell.against)
    for seed, gain in ((0, 1.0), (1, 1.5), (2, 1.2)):
        for exp, metric in ((cell.exp, 70 + gain), (cell.against, 70)):
            path = write_record(tmp_path, RunSpec(exp, seed, demo="epochs20"), metric)
            metrics_path(path).unlink()  # graphs have other metrics
    lost = RunSpec("cifar100_ham", 0)
    content = make_summary(lost, status="diverged", reason="the loss became nan at epoch 3", epochs=3)
    write_divergence(lost, content, tmp_path)
    pages, problems = build.render_site(tmp_path)
    assert not problems
    rows = cells_of(pages["tables/epochs20_table12.html"]).values()
    (own,) = [own["paired"] for own in rows if "paired" in own and own["paired"].text != "-"]
    assert own.without("mark").startswith("+1.23 [+0.61, +1.86]") and "above" in own.classes
    page = pages["tables/table07.html"]
    assert 'href="../runs/cifar100_ham.html">diverged (1 of 3)</a>' in page
    assert (
        "the loss became nan at epoch 3" in page
        and "the loss became nan at epoch 3" in pages["runs/cifar100_ham.html"]
    )
