"""LaTeX tables fit a page, are escaped, and compile where there is a LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ham.files import RESULTS
from ham.report.latex import HEIGHT, SIZES, WIDTH, ems, escape, latex, width
from ham.report.render import Text, to_text
from ham.report.spec import PlanError
from ham.report.tables import build_table

TABLES = sorted((RESULTS / "tables").glob("*.tex"))
_ROW = re.compile(r"^  (.*) \\\\$", re.MULTILINE)
_DOCUMENT = (
    "\\documentclass[10pt]{article}\n\\usepackage[%s,margin=25mm]{geometry}\n\\usepackage{booktabs}\n"
    "\\begin{document}\n%s\\end{document}\n"
)
# em at 10 pt of the widest character in each group of Computer Modern Roman (cmr10.tfm)
_DIGIT, _SPACE, _SIGN, _PERIOD, _BRACKET = 0.5, 1 / 3, 7 / 9, 5 / 18, 5 / 18


def test_special_characters_are_escaped() -> None:
    assert escape(r"50 % & a_b #1 $x {y} ~^\ ") == (
        r"50 \% \& a\_b \#1 \$x \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
    )
    assert escape("76.71 +- 0.10") == r"76.71 $\pm$ 0.10"
    assert escape("-0.45 [-1.00, +0.10]") == "$-$0.45 {[}$-$1.00, $+$0.10]"
    assert escape("(200, 16e-3) AC/DC + HAM, CIFAR-100") == "(200, 16e-3) AC/DC + HAM, CIFAR-100"
    assert escape("ours - paper") == "ours $-$ paper"


def test_quotes_open_and_close() -> None:
    assert escape('"Base rows", "Where": see ("x").') == "``Base rows'', ``Where'': see (``x'')."
    assert escape('the paper\'s", of "its"') == "the paper's'', of ``its''"
    for path in TABLES:
        text = path.read_text()
        assert '"' not in text and text.count("``") == text.count("''"), path.name


def test_a_wide_table_becomes_parts_with_one_number() -> None:
    """Each part has all names of rows, and the parts have each column once, in order."""
    text = latex(to_text(build_table("table17", {})))
    parts = text.split("\\begin{table}\n")[1:]
    assert len(parts) > 1 and text.count("\\label{tab:table17}") == 1
    assert text.count("\\addtocounter{table}{-1}") == len(parts) - 1
    heads = [_ROW.findall(part)[0].split(" & ") for part in parts]
    assert [name for head in heads for name in head[2:]] == list(build_table("table17", {}).columns)
    assert all([row.split(" & ")[0] for row in _ROW.findall(part)][1] == "GCN" for part in parts)
    assert text.count("Ours: mean") == 1 and f"(part 2 of {len(parts)})" in text


def test_a_high_table_is_split_between_its_blocks() -> None:
    text = latex(to_text(build_table("table04", {})))
    parts = text.split("\\begin{table}\n")[1:]
    assert len(parts) == 2
    methods = [[row.split(" & ")[1] for row in _ROW.findall(part)] for part in parts]
    assert all(
        names[0] == "method" and names[1] for names in methods
    )  # each begins with a method's first row
    assert [name for names in methods for name in names[1:] if name.strip()] == [
        row.label for row in build_table("table04", {}).rows
    ]


def test_a_column_wider_than_a_page_is_an_error_with_the_cure() -> None:
    wide = Text("wide", "Wide", (), ("", "a", "b"), ((("x", "m" * 100, "y"),),))
    with pytest.raises(PlanError, match="wide: a column is wider than a page: shorten its cells"):
        latex(wide)
    high = Text("high", "High", (), ("", "a"), ((("x", "y"),) * 100,))
    with pytest.raises(PlanError, match="high: its notes and its longest block are higher"):
        latex(high)


def test_estimated_widths_are_those_of_computer_modern() -> None:
    """By hand: 20 characters of `+0.12 [-0.70, +0.94]`; in math mode a sign is as wide as +."""
    cell = 9 * _DIGIT + 3 * _PERIOD + 3 * _SIGN + 2 * _BRACKET + 2 * _SPACE + _PERIOD
    assert cell <= ems("+0.12 [-0.70, +0.94]") <= 1.05 * cell
    spread = 7 * _DIGIT + 2 * _PERIOD + _SIGN + 2 * _SPACE
    assert spread <= ems("81.44 +- 0.67") <= 1.08 * spread


def parse(part: str) -> Text:
    """A `table` environment as text again, with plain characters of the same widths."""
    plain = re.sub(r"\$(.*?)\$", "+", part.replace("{[}", "["))
    rows = [
        tuple(re.sub(r"\\text\w+\{\}", "W", row).replace("\\", "").split(" & "))
        for row in _ROW.findall(plain)
    ]
    return Text("", "", (), rows[0], (tuple(rows[1:]),))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_each_committed_table_fits_the_page(path: Path) -> None:
    """By the widths of characters: without a LaTeX this is the check of the layout."""
    for part in path.read_text().split("\\begin{table}\n")[1:]:
        command = re.search(r"^  (\\small|\\footnotesize)$", part, re.MULTILINE)[1]
        gap = 4.0 if "tabcolsep}{4pt}" in part else 6.0
        (size,) = [s for s in SIZES if (s.command, s.gap) == (command, gap)]
        table = parse(part)
        assert width(table, size) <= WIDTH
        assert len(set(map(len, [table.head, *table.blocks[0]]))) == 1
        notes = 9.5 * part.count("\\par\n")  # at least
        assert size.line * (1 + len(table.blocks[0])) + notes < HEIGHT


cells = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


@given(st.lists(st.tuples(cells, cells, cells, cells), min_size=1, max_size=5))
def test_the_parts_of_any_table_have_each_cell_once(rows: list[tuple[str, ...]]) -> None:
    table = Text("any", "Any", (), ("", "a", "b", "c"), tuple((row,) for row in rows))
    parts = latex(table).split("\\begin{table}\n")[1:]
    shown = [[row.split(" & ")[1:] for row in _ROW.findall(part)[1:]] for part in parts]
    expected = sorted("--" if cell == "-" else escape(cell) for row in rows for cell in row[1:])
    assert sorted(cell for part in shown for row in part for cell in row) == expected


@pytest.mark.parametrize("paper", ["a4paper", "letterpaper"])
def test_the_committed_tables_compile_without_an_overfull_box(paper: str, tmp_path: Path) -> None:
    """All tables in one article, compiled by a real LaTeX; each on pages of its own."""
    engine = next(filter(None, map(shutil.which, ("pdflatex", "lualatex", "xelatex"))), None)
    if engine is None:
        pytest.skip("no LaTeX (pdflatex, lualatex or xelatex) is installed")
    body = "".join(f"\\typeout{{table {p.stem}}}\n{p.read_text()}\\clearpage\n" for p in TABLES)
    (tmp_path / "tables.tex").write_text(_DOCUMENT % (paper, body))
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, errors="replace"
    )
    log = (tmp_path / "tables.log").read_text(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert not re.findall(r"Overfull .*|.*Float too large.*|^! .*", log, re.MULTILINE)
    numbers = set(re.findall(r"\{table\}\{\\numberline \{(\d+)\}", (tmp_path / "tables.aux").read_text()))
    assert len(numbers) == len(TABLES)  # parts share the number of their table
