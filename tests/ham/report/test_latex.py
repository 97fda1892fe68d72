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
from ham.report.latex import HEIGHT, SIZES, WIDTH, Size, ems, escape, latex, width
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
    assert escape('"Baselines", "Where": see ("x").') == "``Baselines'', ``Where'': see (``x'')."
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


@pytest.mark.parametrize(
    ("characters", "em"),
    [("il.,:;", 5 / 18), ("t()-r", 7 / 18), ("f", 0.306), ("aceg0", 0.5), ("bdhknpu", 5 / 9)]
    + [("A", 0.75), ("w", 13 / 18), ("m@W", 0.833), ("M", 0.917), ("W", 1.028)],
)
def test_no_character_is_wider_than_estimated(characters: str, em: float) -> None:
    """cmr10.tfm; what is not listed, such as m and @, counts as W, the widest."""
    for char in characters:
        assert em <= ems(char) < em + 0.2


def test_sizes_are_those_of_latex() -> None:
    """A4 and letter without margins of 25 mm, in points of 1 / 72.27 inch; size10.clo; cmr9, cmr8."""
    assert 160 / 25.4 * 72.27 - 1 < WIDTH <= 160 / 25.4 * 72.27
    assert (279.4 - 50) / 25.4 * 72.27 - 35 < HEIGHT < (279.4 - 50) / 25.4 * 72.27 - 30
    assert [(size.command, size.line, size.gap) for size in SIZES] == [
        ("\\small", 11, 6),
        ("\\small", 11, 4),
        ("\\footnotesize", 9.5, 4),
    ]
    for size, quad in zip(SIZES, (9.25, 9.25, 8.5), strict=True):
        assert quad <= size.em < 1.002 * quad


def test_the_width_of_a_table_is_that_of_its_widest_cells_and_the_gaps_between() -> None:
    """At 10 pt a digit has 5 pt: 15 + 10 + 5, and two gaps of twice 4 pt."""
    table = Text("", "", (), ("", "00", "0"), ((("000", "0", ""),), (("0", "", "0"),)))
    assert width(table, Size("", 10.0, 11.0, 4.0)) == pytest.approx(15 + 10 + 5 + 16)


def blocks_of(*lengths: int) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple((("x", "y"),) * length for length in lengths)


@pytest.mark.parametrize(
    ("rows", "notes", "parts"),
    [
        ((25, 20), ("n",) * 5, 1),  # 22 + 22 + 6 x 12 + 45 x 11 + 2 x 4.5 = 620
        ((24, 20), ("n",) * 6, 2),  # 621
        ((25, 20), ("n" * 89, *("n",) * 4), 1),  # 89 characters are a line
        ((25, 20), ("n" * 90, *("n",) * 4), 2),
        ((25, 20), ("n",) * 6, 2),
        ((40, 40), ("n",) * 2, 2),
        ((40, 40, 40), ("n",) * 2, 3),
        ((25, 20, 25, 20), ("n",) * 3, 2),
    ],
)
def test_a_table_is_split_where_it_is_higher_than_620_points(
    rows: tuple[int, ...], notes: tuple[str, ...], parts: int
) -> None:
    table = Text("high", "T", notes, ("", "a"), blocks_of(*rows))
    assert latex(table).count("\\begin{table}") == parts


def test_rows_are_shared_out_evenly() -> None:
    """Seven blocks of 22 rows, of which two have 577 pt and three 823: two, two, two and one."""
    text = latex(Text("high", "T", (), ("", "a"), blocks_of(*[22] * 7)))
    counts = [part.count("  x & y") // 22 for part in text.split("\\begin{table}\n")[1:]]
    assert counts == [2, 2, 1, 2]


@pytest.mark.parametrize(
    ("cells", "command", "parts"),
    [
        ((40, 40), "\\small", 1),
        ((45, 46), "\\small", 1),
        ((49, 50), "\\footnotesize", 1),
        ((60, 60), "\\footnotesize", 2),
        ((80, 80, 80), "\\footnotesize", 3),
    ],
)
def test_a_wide_table_is_set_smaller_and_then_split(cells: tuple[int, ...], command: str, parts: int) -> None:
    """Digits of half an em: 455 pt hold 98 at 9.26 pt and 106 at 8.51 pt, less the gaps."""
    head = ("", *map(str, range(len(cells))))
    table = Text("wide", "T", (), head, ((("x", *("0" * count for count in cells)),),))
    text = latex(table)
    assert text.count("\\begin{table}") == parts and f"  {command}\n" in text
    shown = [row.split(" & ")[1:] for row in _ROW.findall(text)[1::2]]
    assert [cell for row in shown for cell in row] == ["0" * count for count in cells]


def test_parts_share_caption_label_and_notes() -> None:
    """By hand: the first part has label and caption, the last one the notes; a name of one column."""
    table = Text("t", "Table 3. A & B", ("A note.",), ("", "a"), blocks_of(40, 40), "A caption.")
    first, last = latex(table).split("\\end{table}\n")[:2]
    assert first.startswith("% needs booktabs") and "addtocounter" not in first and "minipage" not in first
    assert "  \\caption{A \\& B (part 1 of 2). A caption.}\\smallskip\n  \\label{tab:t}\n" in first
    assert "  \\addtocounter{table}{-1}\n" in last and "\\label" not in last
    assert "  \\caption{A \\& B (part 2 of 2).}\\smallskip\n" in last
    assert last.endswith("\\raggedright\n  A note.\\par\n  \\end{minipage}\n")
    for part in (first, last):
        assert "\\begin{tabular}{@{}lc@{}}\n  \\toprule\n   & a \\\\\n  \\midrule\n  x & y" in part
        assert "tabcolsep" not in part


def test_blocks_are_separated_and_a_narrow_gap_is_set() -> None:
    table = Text("t", "T", (), ("", "a"), ((("x", "-"),), (("-", "0" * 95),)))
    text = latex(table)
    assert "  x & -- \\\\\n  \\addlinespace\n  -- & 000" in text and text.count("addlinespace") == 1
    assert "  \\small\n  \\setlength{\\tabcolsep}{4pt}\n" in text and "minipage" not in text


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
