"""Every mean, +-, interval, sparsity and count of the tables of cells, computed again from the records."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import recomputed
from printed_numbers import (
    Check,
    accepted_alterations,
    check,
    check_spread,
    markdown_tables,
    mistakes,
    numbers,
)
from recomputed import RESULTS, ROOT, Cell, Comparison

TABLES = RESULTS / "tables"
NAMES = sorted(path.stem for path in (ROOT / "configs" / "tables").glob("*.yaml"))
LEAST = {"table14": 22, "table15": 10, "table17": 33, "table18": 15}  # cells that have runs


def rendered() -> list[tuple[str, str, str]]:
    """File, table and scale of every rendered table of cells: demo_table04, table04, demo."""
    files = {path.stem for path in TABLES.glob("*.md")}
    found = [(name, name, "runs") for name in NAMES if name in files]
    scaled = {(file, name) for file in files for name in NAMES if file.endswith(f"_{name}")}
    return found + sorted((file, name, file.removesuffix(f"_{name}")) for file, name in scaled)


FILES = rendered()


def table_checks(file: str, name: str, scale: str) -> list[Check]:
    """All cells of a rendered table; its blocks must be the rows of the plan."""
    (_, *lines), *_ = markdown_tables((TABLES / f"{file}.md").read_text())
    body = [line for line in lines if not line[0].startswith("#")]  # numbers of nodes are of no record
    rows, checks = recomputed.table(name), []
    width = len(rows[0])
    starts = [place for place, line in enumerate(body) if line[-width - 1] == "ours"]
    assert len(starts) == len(rows) and starts[0] == 0, f"{file}: {len(starts)} rows of {len(rows)}"
    for start, end, cells in zip(starts, [*starts[1:], len(body)], rows, strict=True):
        label = next(cell.row for cell in cells if cell)
        assert label in body[start][: -width - 1], f"{file}: no row {label}"
        for line in body[start:end]:
            kind = KINDS[line[-width - 1]]
            for text, cell in zip(line[-width:], cells, strict=True):
                is_there = cell is not None and recomputed.exists(cell, scale)
                checks.append(kind(text, cell, scale) if is_there else check(text, "-"))
    return checks


def ours_check(text: str, cell: Cell, scale: str) -> Check:
    values = recomputed.metric(recomputed.found(cell, scale), cell.metric)
    if not len(values):
        return check(text, "not run")
    own = check_spread(re.sub(r" \(n = .*", "", text), values)
    of = re.search(r"\(n = \d+", text)  # a reason for a missing seed may follow
    return check(f"{own.text} {of and of[0]})", f"{own.template} (n = #)", *own.values, len(values))


def paper_check(text: str, cell: Cell, scale: str) -> Check:
    if not cell.paper:
        return check(text, "-")
    return check(text, " +- ".join("#" * len(cell.paper)) + " (*)" * cell.single_run, *cell.paper)


def against_paper(cell: Cell, scale: str) -> Comparison | None:
    values = recomputed.metric(recomputed.found(cell, scale), cell.metric)
    if not len(values) or not cell.paper:
        return None
    return recomputed.welch(values, cell.paper, 1 if cell.single_run else len(cell.seeds))


def difference_check(text: str, cell: Cell, scale: str) -> Check:
    apart = against_paper(cell, scale)
    return check(text, *apart.cell) if apart else check(text, "-")


def paired_check(text: str, cell: Cell, scale: str) -> Check:
    own = recomputed.found(cell, scale)
    base = recomputed.found(replace(cell, exp=cell.against), scale) if cell.against else {}
    seeds = sorted({*own} & {*base})
    if not seeds:
        return check(text, "-")
    gains = [own[seed]["metrics"][cell.metric] - base[seed]["metrics"][cell.metric] for seed in seeds]
    return check(text, *recomputed.paired(np.array(gains)).cell)


def sparsity_check(text: str, cell: Cell, scale: str) -> Check:
    records = recomputed.found(cell, scale)
    if not records:  # the target of the configuration
        return check(text, *(("dense",) if text == "dense" else ("target # %", float(numbers(text)[0]))))
    targets = {own["sparsity"]["target"] for own in records.values()}
    if targets == {0}:
        return check(text, "dense")
    achieved = np.mean([own["sparsity"]["overall"] for own in records.values()])
    return check(text, "# % (target # %)", 100 * achieved, 100 * targets.pop())


KINDS: dict[str, Callable[[str, Cell, str], Check]] = {
    "ours": ours_check,
    "paper": paper_check,
    "difference": difference_check,
    "paired": paired_check,
    "sparsity": sparsity_check,
}


@pytest.mark.parametrize(("file", "name", "scale"), FILES, ids=[file for file, *_ in FILES])
def test_the_cells_of_a_table_are_those_of_the_records(file: str, name: str, scale: str) -> None:
    assert (RESULTS / scale).is_dir(), f"{file}: no records in results/{scale}: extend rendered()"
    checks = table_checks(file, name, scale)
    assert not mistakes(checks)
    cells = [cell for row in recomputed.table(name) for cell in row if cell]
    with_runs = [cell for cell in cells if recomputed.found(cell, scale) and recomputed.exists(cell, scale)]
    checked = sum(len(own.values) for own in checks if "n = #" in own.template)
    assert checked == sum(3 if len(recomputed.found(cell, scale)) > 1 else 2 for cell in with_runs)
    assert len(with_runs) >= (LEAST.get(name, 0) if scale == "runs" else 1)


@pytest.mark.parametrize(("file", "name", "scale"), FILES, ids=[file for file, *_ in FILES])
def test_the_csv_has_the_same_numbers(file: str, name: str, scale: str) -> None:
    """To ten digits; a cell without a record has no number but the paper's."""
    with (TABLES / f"{file}.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    cells = [
        cell for row in recomputed.table(name) for cell in row if cell and recomputed.exists(cell, scale)
    ]
    for line, cell in zip(rows, cells, strict=True):
        records = recomputed.found(cell, scale)
        values = recomputed.metric(records, cell.metric)
        apart = against_paper(cell, scale) if scale == "runs" else None
        paper = cell.paper if scale == "runs" else ()
        achieved = [own["sparsity"]["overall"] for own in records.values()]
        expected = {
            "mean": values.mean() if len(values) else None,
            "std": values.std(ddof=1) if len(values) > 1 else None,
            "paper_mean": paper[0] if paper else None,
            "paper_std": paper[1] if len(paper) > 1 else None,
            "difference": apart and apart.value,
            "low": apart.low if apart and apart.has_interval else None,
            "high": apart.high if apart and apart.has_interval else None,
            "achieved_sparsity": np.mean(achieved) if achieved else None,
        }
        assert (line["group"], line["row"], line["column"]) == (cell.group, cell.row, cell.column)
        assert (line["exp"], line["seeds"]) == (cell.exp, " ".join(map(str, records)))
        assert int(line["n"]) == len(values)
        for key, value in expected.items():
            if value is None:
                assert line[key] == "", (cell, key)
            else:
                assert float(line[key]) == pytest.approx(value, rel=6e-10, abs=1e-12), (cell, key)


@pytest.mark.parametrize(("file", "name", "scale"), FILES, ids=[file for file, *_ in FILES])
def test_a_changed_digit_is_found(file: str, name: str, scale: str) -> None:
    checks = [own for own in table_checks(file, name, scale) if own.template != "target # %"]
    assert not accepted_alterations(checks)
