"""The overview counts what the coverage page counts, states what node_reading.md states; its commands run."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import script
from printed_numbers import markdown_tables
from site_pages import Element, data_of, grid, parse, stale

from ham.files import RESULTS
from ham.report import captions, plan
from ham.report.scales import SCALES
from ham.report.spec import RunSpec
from ham.report.table_files import SHEETS
from ham.site import build, commands
from ham.sweep.selection import Selection

SCALE_NAMES = ["the paper's setting", *(scale.summary for scale in SCALES.values())]


@pytest.fixture(scope="module")
def overview(committed: dict[str, str]) -> Element:
    return parse(committed["index.html"])


def table(page: Element, caption: str) -> Element:
    return next(own for own in page.all("table") if own.all("caption")[0].text.startswith(caption))


def heat(page: Element) -> dict[str, list[Element]]:
    """Label of a part -> its state and a cell for each setting."""
    rows = grid(table(page, "Coverage"))
    return {next(own.text for own in [*row[0].all("a"), row[0]]): row[1:] for row in rows}


def test_the_heat_map_counts_what_the_coverage_page_counts(overview: Element) -> None:
    pages = markdown_tables((RESULTS / "tables" / "coverage.md").read_text())
    shown = heat(overview)
    head = [own.text for own in table(overview, "Coverage").all("thead")[0].all("th")]
    assert head == ["Part", "State", *SCALE_NAMES]
    compared = 0
    for column, page in enumerate(pages, start=1):
        for name, _, _, complete, parts, _, state in page[1:]:
            if name in ("all tables", "everything"):
                continue
            match = next(own for key, own in shown.items() if re.fullmatch(rf"{name}(?!\d).*", key))
            if parts == "-":
                assert match[0].text.endswith(state)
                continue
            sign, words = match[column].text.split(": ")
            assert words == f"{complete} of {parts}" and sign.endswith(state), (name, column)
            share = re.fullmatch(r"--share: ([\d.]+)%", match[column].attrs["style"])
            assert float(share[1]) == pytest.approx(100 * int(complete) / int(parts), abs=0.06)
            compared += 1
    assert compared > 50


def test_the_committed_overview_is_of_the_records(committed: dict[str, str]) -> None:
    assert not stale(committed, "index.html")


def test_a_part_that_only_smaller_scales_have_is_called_scaled_down(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    write_record(tmp_path, RunSpec("deit_acdc_s50", 0, demo="digits"))
    for seed in range(3):
        write_record(tmp_path, RunSpec("deit", seed))
        write_record(tmp_path, RunSpec("deit_ham", seed))
    write_record(tmp_path, RunSpec("cifar100_ham", 0))
    states = {
        key[:8].strip(): row[0].text[2:]
        for key, row in heat(parse(build.render_site(tmp_path)[0]["index.html"])).items()
    }
    expected = {"Table 9": "scaled down", "Table 8": "complete", "Table 7": "partial", "Table 12": "not run"}
    assert {key: states[key] for key in expected} == expected
    assert (
        states["Table 5"] == "settings"
        and states["Table 1"] == "as stated"
        and states["Figure 1"] == "not run"
    )


def test_the_findings_are_those_of_the_page_on_node_classification(overview: Element) -> None:
    text = (RESULTS / "tables" / "node_reading.md").read_text()
    for sentence in text.split("\n\n"):
        if sentence.startswith(("Of the ", "The intervals of ", "A row differs ")):
            assert " ".join(sentence.split("\n|")[0].split()) in overview.text
    (rows,) = [own for own in markdown_tables(text) if "paper's difference" in own[0]]
    for method in ("HAM", "nHAM"):
        drawn = data_of(overview, "data-chart")[f"gains-{method.lower()}"]["data"]["values"].splitlines()[1:]
        expected = [row for row in rows[1:] if row[1].endswith(f"+{method}") and row[5]]
        assert len(drawn) == len(expected) > 10
        for line, row in zip(drawn, expected, strict=True):
            name, low, mean, high, paper, _ = re.fullmatch(r'"(.*)",(.*),(.*),(.*),(.*),(.*)', line).groups()
            assert name == f"{row[0]}, {row[1].split('+')[0]}"
            numbers = re.findall(r"[+-]\d+\.\d+", row[5])
            shown = [mean, low, high] if len(numbers) == 3 else [mean]
            pairs = zip([*numbers, row[8]], [*shown, paper], strict=True)
            assert all(abs(float(a) - float(b)) < 0.0051 for a, b in pairs), line


def test_every_table_with_intervals_is_summed_up(committed: dict[str, str], overview: Element) -> None:
    expected = {}
    for name, text in committed.items():
        cells = [own for own in parse(text).all("td") if own.text and "data-value" in own.attrs]
        counts = [sum(mark in own.classes for own in cells) for mark in ("above", "within", "below", "open")]
        if name.startswith("tables/") and any(counts):
            expected[name] = counts
    rows = grid(table(overview, "Intervals of all tables"))
    assert {row[0].all("a")[0].attrs["href"]: [int(own.text) for own in row[2:]] for row in rows} == expected
    assert len(rows) == len(expected) >= 5


# Commands


def parsers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], argparse.Namespace]:
    """Parses the arguments of a script, without running it."""

    class Parsed(Exception):
        pass

    def parse_arguments(name: str, words: list[str]) -> argparse.Namespace:
        original = argparse.ArgumentParser.parse_args

        def stop(self: argparse.ArgumentParser, *args: object) -> None:
            raise Parsed(original(self, *args))

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            with pytest.raises(Parsed) as parsed:
                script(name).main(words)
        return parsed.value.args[0]

    return parse_arguments


@pytest.mark.parametrize("demo", ["", *SCALES])
def test_the_commands_select_what_they_are_beside(demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their options are parsed by the scripts, and name the table or figure and its scale."""
    read = parsers(monkeypatch)
    names = [*plan.tables(), *plan.figures(), *([] if demo else [*SHEETS, *captions.THEORY])]
    for name in names:
        is_figure = name.startswith("figure")
        line = commands.for_figure(name, demo) if is_figure else commands.for_table(name, demo)
        found = {}
        for words in map(shlex.split, line.split(" && ")):
            python, path, *rest = words
            assert python == "python"
            own = path.removeprefix("scripts/").removesuffix(".py")
            if own == "sweep":
                selection, options = script("sweep").parse(rest)
                shown = plan.figure(name) if is_figure else plan.table(name)
                assert options.mode == "local" and selection.demo == demo
                if shown.has_scale(demo):
                    assert selection.runs(None) == {name: shown.runs(demo=demo)}
            else:
                found[own] = read(own, rest)
        last = found[own]
        chosen = last.figure if is_figure else last.table
        complete = plan.figure_name if is_figure else plan.table_name
        assert [complete(one) for one in chosen] == [name]
        assert getattr(last, "demo", "") == demo and ("collect" not in found or found["collect"].demo == demo)
        assert bool(getattr(last, "theory", False)) == (name in captions.THEORY)
    assert isinstance(script("sweep").parse(["--table", "4"])[0], Selection)


def test_every_part_has_its_command_and_a_button_that_copies_it(
    overview: Element, committed: dict[str, str]
) -> None:
    rows = grid(table(overview, "The command of each part"))
    assert len(rows) == len(plan.tables()) + len(plan.figures()) + len(SHEETS) + len(captions.THEORY)
    for row in rows:
        (code,), (button,) = row[1].all("code"), row[1].all("button")
        assert code.text == button.attrs["data-copy"]
    for name in plan.tables():
        assert commands.for_table(name) in parse(committed[f"tables/{name}.html"]).text
    assert commands.for_table("table04", "digits") in parse(committed["tables/demo_table04.html"]).text
