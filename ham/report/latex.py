r"""Renders tables as LaTeX that fits a page of an `article`: 10 pt, A4 or letter, margins of 25 mm.

A table that is too wide is set smaller, then split into parts with some of its columns; one that is too high
is split between its blocks of rows. All parts have one number. Nothing is scaled, and no font is smaller than
`\footnotesize`. Widths are estimated from those of Computer Modern, the default font.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .render import NONE, Text
from .spec import PlanError

WIDTH = 455.0  # TeX points of A4's 160 mm, the narrower page
HEIGHT = 620.0  # of letter's 229 mm, the lower page, without 30 pt for what the estimate misses
RULES = 22.0  # height of a table's three rules with their space
BLOCK_SPACE = 4.5  # height between two blocks
_PREAMBLE = "% needs booktabs; fits an article at 10 pt with margins of 25 mm, on A4 or letter\n"
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}"}
_SPECIAL |= {char: f"\\{char}" for char in "&%$#_{}"}
_SPECIAL |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "*": r"$\ast$"}
_NUMBER = re.compile(r"^Table \d+\. ")  # LaTeX numbers tables itself
_CLASSES = {  # em -> characters that are at most as wide
    0.28: ".,:;'`!|[]il",
    0.40: " ()-frtjsI",
    0.50: "0123456789acegoz/J",
    0.56: "bdhknpquvxyS",
    0.79: "ABCDEFGHKLNOPQRTUVXYZ+<=>$_&#\\^~w",
}
_EM = {char: em for em, chars in _CLASSES.items() for char in chars}
_WIDEST = 1.03  # em of W, and of what is not listed


@dataclass(frozen=True)
class Size:
    r"""A size of the text of a table.

    Args:
        command: LaTeX's.
        em: points of a character that is 1 em wide at 10 pt.
        line: points from one line to the next.
        gap: points on each side of a column, `\tabcolsep`.
    """

    command: str
    em: float
    line: float
    gap: float

    def column_width(self, cells: Sequence[str]) -> float:
        """Width of the widest of these cells, without the gaps."""
        return self.em * max(map(ems, cells))


SIZES = (
    Size(r"\small", 9.26, 11.0, 6.0),
    Size(r"\small", 9.26, 11.0, 4.0),
    Size(r"\footnotesize", 8.51, 9.5, 4.0),
)


def latex(table: Text) -> str:
    """The table as one or more `table` environments with one number; needs booktabs.

    Raises:
        PlanError: a column is wider than a page.
    """
    size, columns = _columns(table)
    rows = _row_parts(table, size)
    parts = [_part(table, chosen, blocks) for chosen in columns for blocks in rows]
    return _PREAMBLE + "".join(_environment(part, size, k, len(parts)) for k, part in enumerate(parts))


def _columns(table: Text) -> tuple[Size, list[range]]:
    """The size, and the columns of numbers of each part: one part if a size lets all fit."""
    names, total = table.name_columns, len(table.head)
    for size in SIZES:
        if width(table, size) <= WIDTH:
            return size, [range(names, total)]
    for count in range(2, total - names + 1):
        parts = _boundaries(total - names, count)
        columns = [range(names + a, names + b) for a, b in pairwise(parts)]
        if all(width(_part(table, chosen, table.blocks), size) <= WIDTH for chosen in columns):
            return size, columns
    raise PlanError(f"{table.name}: a column is wider than a page: shorten its cells")


def _row_parts(table: Text, size: Size) -> list[tuple[tuple[tuple[str, ...], ...], ...]]:
    """The blocks of each part, as few parts as the height allows; a block is never split."""
    text = [*table.notes, table.title, table.caption]
    around = RULES + 2 * size.line + 12 * sum(math.ceil(5.1 * len(line) / WIDTH) for line in text)
    for count in range(1, len(table.blocks) + 1):
        cuts = _boundaries(len(table.blocks), count)
        parts = [table.blocks[a:b] for a, b in pairwise(cuts)]
        heights = [size.line * sum(map(len, part)) + BLOCK_SPACE * len(part) for part in parts]
        if around + max(heights) <= HEIGHT:
            return parts
    raise PlanError(f"{table.name}: its notes and its longest block are higher than a page: shorten them")


def _boundaries(length: int, count: int) -> list[int]:
    """Where `count` nearly equal parts of `length` items begin, and the end."""
    return [round(part * length / count) for part in range(count + 1)]


def _part(table: Text, columns: range, blocks: tuple[tuple[tuple[str, ...], ...], ...]) -> Text:
    """The table with these columns of numbers and these blocks."""
    keep = [*range(table.name_columns), *columns]
    chosen = tuple(tuple(tuple(row[k] for k in keep) for row in block) for block in blocks)
    return replace(table, head=tuple(table.head[k] for k in keep), blocks=chosen)


def width(table: Text, size: Size) -> float:
    """Estimated width in points, with the gaps between columns; at least the true one."""
    rows = [table.head, *(row for block in table.blocks for row in block)]
    columns = zip(*rows, strict=True)
    return sum(map(size.column_width, columns)) + 2 * size.gap * (len(table.head) - 1)


def ems(plain: str) -> float:
    """Estimated width of a cell in units of em; at least the true one."""
    signs = re.sub(r"\+-|(?<!\w)-(?=\d)|(?<= )-(?= )", "+", plain)  # set in math mode
    return sum(_EM.get(char, _WIDEST) for char in signs)


def _environment(table: Text, size: Size, part: int, parts: int) -> str:
    """One `table`; only the first part has the label and the caption, only the last one the notes."""
    names = table.name_columns
    blocks = ["".join(f"  {_row(row, table)}\n" for row in block) for block in table.blocks]
    gap = "" if size.gap == 6 else f"  \\setlength{{\\tabcolsep}}{{{size.gap:g}pt}}\n"
    return (
        "\\begin{table}\n"
        + ("  \\addtocounter{table}{-1}\n" if part else "")
        + f"  \\centering\n  {size.command}\n{gap}"
        + f"  \\caption{{{_caption(table, part, parts)}}}\\smallskip\n"
        + ("" if part else f"  \\label{{tab:{table.name}}}\n")
        + f"  \\begin{{tabular}}{{@{{}}{'l' * names}{'c' * (len(table.head) - names)}@{{}}}}\n  \\toprule\n"
        + f"  {_row(table.head, table)}\n  \\midrule\n"
        + "  \\addlinespace\n".join(blocks)
        + "  \\bottomrule\n  \\end{tabular}\n"
        + (_notes(table.notes) if part + 1 == parts else "")
        + "\\end{table}\n"
    )


def _caption(table: Text, part: int, parts: int) -> str:
    title = escape(_NUMBER.sub("", table.title))
    if parts > 1:
        title += f" (part {part + 1} of {parts})"
    return f"{title}." + (f" {escape(table.caption)}" if table.caption and not part else "")


def _notes(notes: Sequence[str]) -> str:
    """Ragged right, since a minipage of justified text can be overfull."""
    if not notes:
        return ""
    lines = "".join(f"  {escape(note)}\\par\n" for note in notes)
    return (
        "  \\par\\smallskip\n  \\begin{minipage}{\\linewidth}\\footnotesize\\raggedright\n"
        + lines
        + "  \\end{minipage}\n"
    )


def _row(cells: Sequence[str], table: Text) -> str:
    shown = (
        f"${table.formulas[cell]}$" if cell in table.formulas else "--" if cell == NONE else escape(cell)
        for cell in cells
    )
    return " & ".join(shown) + r" \\"


def escape(plain: str) -> str:
    """Plain text as LaTeX: special characters escaped, quotes paired, +- and signs in math mode."""
    quoted = re.sub(r'(?<![^\s(\[])"', "``", plain).replace('"', "''")
    escaped = "".join(_SPECIAL.get(char, char) for char in quoted)
    escaped = escaped.replace("+-", r"$\pm$").replace(" - ", " $-$ ")
    return re.sub(r"(?<![\w$.])([+-])(?=\d)", r"$\1$", escaped)
