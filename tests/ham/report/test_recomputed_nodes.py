"""Every number of node_reading.md and node_grid.md, computed again from the records by other code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import recomputed
from printed_numbers import (
    Check,
    accepted_alterations,
    agree,
    check,
    check_spread,
    could_print,
    markdown_tables,
    mistakes,
    numbers,
)
from recomputed import RESULTS, Comparison, GridRow, NodeRow
from scipy import stats

READING, GRID = RESULTS / "tables" / "node_reading.md", RESULTS / "tables" / "node_grid.md"


@cache
def reading() -> str:
    return READING.read_text()


def reading_tables() -> list[list[list[str]]]:
    """Those of the page by their heads: clear differences, rows that differ from the paper, all rows."""
    tables = markdown_tables(reading())
    heads = ("metric", "in standard errors", "+ / = / -")
    return [next((own[1:] for own in tables if head in own[0]), []) for head in heads]


def row_checks(line: list[str], row: NodeRow) -> Iterator[Check]:
    """The cells of a row in the table of all rows."""
    counts = dict.fromkeys([len(row.own), len(row.cell.seeds)])  # one number if all seeds have run
    yield check(line[0], row.cell.column)
    yield check(line[1], row.cell.row)
    yield check(line[2], " of ".join("#" for _ in counts), *counts)
    yield check_spread(line[3], recomputed.metric(row.own, "valid_best"))
    yield check(line[4], "# +- #", *row.cell.paper)
    yield check_spread(line[9], recomputed.metric(row.own, "test_at_best"))
    yield shares_check(line[11], row)
    if not row.shared:
        yield from (check(line[place], "") for place in (5, 6, 7, 8, 10))
        return
    differences = row.differences()
    yield check(line[5], *recomputed.paired(differences).cell)
    yield nodes_check(line[6], row)
    yield check(line[7], "# / # / #", *recomputed.above_equal_below(differences))
    yield check(line[8], "#", row.papers_gain)
    yield check(line[10], *recomputed.paired(row.differences("test_at_best")).cell)


def nodes_check(text: str, row: NodeRow) -> Check:
    graphs = [row.own[seed]["graph"] for seed in row.shared]
    if graphs[0]["metric"] != "accuracy":
        return check(text, "")
    counts = np.array([graph["nodes"]["valid"] for graph in graphs])
    return check(text, "# of #", (row.differences() * counts / 100).mean(), counts.mean())


def shares_check(text: str, row: NodeRow) -> Check:
    if row.method != "nHAM":
        return check(text, "")
    shares = [100 * recomputed.metric(row.own, f"negative_metric_{when}").mean() for when in ("best", "last")]
    return check(text, "# % / # %", *shares)


def all_row_checks() -> list[Check]:
    *_, lines = reading_tables()
    pairs = zip(lines, recomputed.node_rows(), strict=True)
    return [own for line, row in pairs for own in row_checks(line, row)]


def test_all_rows_of_the_reading_are_those_of_the_records() -> None:
    checks = all_row_checks()
    assert not mistakes(checks)
    assert len(checks) == 12 * len(recomputed.node_rows()) >= 12 * 48
    *_, lines = reading_tables()
    checked = sum(len(own.values) for own in checks)
    assert checked == sum(len(numbers(cell)) for line in lines for cell in line) >= 700


@cache
def gains() -> list[tuple[NodeRow, str, Comparison]]:
    """The differences that have an interval, of validation and test."""
    tests = [
        (row, name, recomputed.paired(row.differences(key)))
        for row in recomputed.node_rows()
        for name, key in (("validation", "valid_best"), ("test", "test_at_best"))
        if row.shared
    ]
    return [own for own in tests if own[2].has_interval]


def check_p(text: str, p: float) -> Check:
    return check(text, "#", p) if p >= 1e-4 else check(text, "< #", 1e-4)


def clear_checks() -> list[Check]:
    lines, *_ = reading_tables()
    adjusted = recomputed.holm([own.p for *_, own in gains()])
    clear = [(*own, p) for own, p in zip(gains(), adjusted, strict=True) if own[2].excludes_0]
    checks = []
    for line, (row, name, own, p) in zip(lines, clear, strict=True):
        texts = [row.cell.column, row.cell.row, name]
        checks += [check(text, word) for text, word in zip(line[:3], texts, strict=True)]
        checks += [check(line[3], "#", len(row.shared)), check(line[4], *own.cell)]
        checks += [check_p(line[5], own.p), check_p(line[6], p)]
    return checks


def outside_checks() -> list[Check]:
    _, lines, _ = reading_tables()
    tests = [(row, own) for row in recomputed.node_rows() if (own := row.against_paper).has_interval]
    adjusted = recomputed.holm([own.p for _, own in tests])
    outside = [(*own, p) for own, p in zip(tests, adjusted, strict=True) if own[1].excludes_0]
    checks = []
    for line, (row, own, p) in zip(lines, outside, strict=True):
        values, paper = recomputed.metric(row.own, "valid_best"), row.cell.paper
        error = np.hypot(stats.sem(values), paper[1] / np.sqrt(len(row.cell.seeds)))
        checks += [check(line[0], row.cell.column), check(line[1], row.cell.row)]
        checks += [check_spread(line[2], values), check(line[3], "# +- #", *paper), check(line[4], *own.cell)]
        checks += [check(line[5], "#", own.value / error), check_p(line[6], own.p), check_p(line[7], p)]
    return checks


def test_what_excludes_0_and_what_differs_from_the_paper_is_listed_with_its_p() -> None:
    assert not mistakes(clear_checks()) and not mistakes(outside_checks())


def sentence(start: str) -> list[str]:
    """The numbers of the paragraph of the reading that starts so."""
    return numbers(next(line for line in reading().splitlines() if line.startswith(start)))


def test_the_first_sentences_of_the_reading_are_the_main_result() -> None:
    expected = []
    for method in ("HAM", "nHAM"):
        own = [row for row in recomputed.node_rows() if row.method == method and row.shared]
        ours, papers = np.array([row.gain for row in own]), np.array([row.papers_gain for row in own])
        expected += [len(own), *recomputed.above_equal_below(ours), ours.mean(), np.median(ours)]
        expected += [(papers > 1e-9).sum(), papers.mean()]
    assert reading().splitlines()[2].startswith("Of the ")
    assert agree(sentence("Of the "), expected)


def after_holm(tests: list[Comparison]) -> list[float]:
    """The numbers of `N have a p below 0.05 after Holm's correction over all M`; None is no number."""
    count = sum(recomputed.holm([own.p for own in tests]) < 0.05)
    return [*([count] if count else []), 0.05, len(tests)]


def test_the_counts_of_intervals_are_right() -> None:
    tests = [own for *_, own in gains()]
    total, fewest = len(tests), min(len(row.shared) for row, *_ in gains())
    expected: list[float] = [sum(own.excludes_0 for own in tests), total, 0]
    for name in ("validation", "test"):
        part = [own for _, of, own in gains() if of == name]
        expected += [sum(own.excludes_0 for own in part), len(part)]
    needed = stats.t.isf(0.05 / total / 2, fewest - 1) / np.sqrt(fewest)
    expected += [0, total / 20, total, *after_holm(tests), fewest, needed]
    for method in ("HAM", "nHAM"):
        valid = [(row, own) for row, of, own in gains() if of == "validation" and row.method == method]
        expected += [sum(row.papers_gain > own.high for row, own in valid)]
        expected += [sum(row.papers_gain < own.low for row, own in valid), len(valid)]
    assert agree(sentence("The intervals of "), expected)


def test_the_counts_of_rows_that_differ_from_the_paper_are_right() -> None:
    tests = [(row.method, own) for row in recomputed.node_rows() if (own := row.against_paper).has_interval]
    expected: list[float] = [95, 14, 15, 17, 18, 0]
    for name in ("base", "HAM", "nHAM"):
        part = [own for method, own in tests if method == name]
        expected += [sum(own.excludes_0 for own in part), len(part)]
    expected += [len(tests), len(tests) / 20, *after_holm([own for _, own in tests]), 12]
    assert agree(sentence("A row differs "), expected)


# node_grid.md


@cache
def grids() -> list[GridRow]:
    return [
        row for path in sorted((RESULTS / "node_grid").glob("*.json")) for row in recomputed.grid_rows(path)
    ]


def search_checks() -> list[Check]:
    (_, *lines), *_ = markdown_tables(GRID.read_text())
    return [own for line, row in zip(lines, grids(), strict=True) for own in search_row_checks(line, row)]


def search_row_checks(line: list[str], row: GridRow) -> Iterator[Check]:
    means = row.valid.mean(axis=1)
    chosen, papers = int(means.round(9).argmax()), row.pairs.index(row.papers_pair)
    equal = int((abs(means - means[chosen]) < 1e-9).sum()) - 1
    seeds = row.valid.shape[1]
    others = [np.delete(row.valid, seed, axis=1).mean(axis=1).round(9).argmax() for seed in range(seeds)]
    left_out = np.mean([row.valid[best, seed] for seed, best in enumerate(others)])
    above, same = (means > means[papers] + 1e-9).sum(), (abs(means - means[papers]) < 1e-9).sum()
    rank = ["#-#", above + 1, above + same] if same > 1 else ["#", above + 1]
    gain, *bounds = recomputed.paired(row.valid[papers]).cell
    yield check(line[0], row.graph)
    yield check(line[1], f"{row.arch}+{row.method}")
    yield check(line[2], "#", seeds)
    yield check(line[3], "(#, #)" + ", # equal" * (equal > 0), *row.pairs[chosen], *[equal] * (equal > 0))
    yield check(line[4], *recomputed.paired(row.valid[chosen]).cell)
    yield check(line[5], "# / #", (row.flipped_best >= means[chosen] - 1e-9).sum(), 2**seeds)
    yield check(line[6], "#", row.flipped_best.mean())
    yield check(line[7], "#", left_out)
    yield check(line[8], *recomputed.paired(row.test[chosen]).cell)
    yield check(line[9], f"(#, #): {gain}, {rank[0]} of #", *row.papers_pair, *bounds, *rank[1:], 12)


def square_checks() -> list[Check]:
    """The tables of all gains; alpha = 0 is beta alone."""
    paths = sorted((RESULTS / "node_grid").glob("*.json"))
    _, *tables = markdown_tables(GRID.read_text())
    checks = []
    for path, (head, *lines) in zip(paths, tables, strict=True):
        points = recomputed.grid_points(path)
        for line in lines:
            for place, text in enumerate(line[1:], 1):
                gains = points[float(line[0]), float(head[place].removeprefix("beta = "))]
                checks.append(check(text, "# / #", *gains))
        assert sum(len(line) - 1 for line in lines) == len(points)
    return checks


def test_the_search_is_that_of_the_grids() -> None:
    checks = search_checks()
    assert not mistakes(checks) and not mistakes(square_checks())
    assert len(checks) == 10 * len(grids()) and grids()
    printed = re.findall(r"^Baseline: .*? seeds\.", GRID.read_text(), re.MULTILINE)
    paths = sorted((RESULTS / "node_grid").glob("*.json"))
    assert all(agree(numbers(a), recomputed.grid_base(b)) for a, b in zip(printed, paths, strict=True))


def test_what_choosing_gains_by_chance_is_in_the_reading() -> None:
    printed = sentence("Choosing the best of 12 pairs gains ")
    assert agree(printed, [12, *(row.flipped_best.mean() for row in grids())])


# The checks themselves


def test_only_a_correct_rounding_is_accepted() -> None:
    assert could_print("0.12", 0.1249) and not could_print("0.12", 0.1251) and not could_print("0.13", 0.1249)
    assert could_print("0.12", 0.125) and could_print("0.13", 0.125)  # a tie
    assert could_print("-0.00", -0.004) and not could_print("+0.00", -0.004) and could_print("+0.00", -1e-12)
    assert could_print("5", 5) and not could_print("5", 6) and could_print("-200", -200)
    assert not check("+0.20 [-0.30, +0.70]", "# [#, #]", 0.2, -0.3, 0.7).mistake
    assert check("+0.20 [-0.30, +0.70]", "#", 0.2).mistake and check("not run", "# +- #", 1, 2).mistake
    assert numbers("(10, 0.01): 7-9 of 12, s -0.5 +- 0.1") == ["10", "0.01", "7", "9", "12", "-0.5", "0.1"]


def test_a_changed_digit_is_found_in_every_cell() -> None:
    checks = [*all_row_checks(), *clear_checks(), *outside_checks(), *search_checks(), *square_checks()]
    assert not accepted_alterations(checks)
    assert sum(len(own.values) for own in checks) > 900
