"""The page of paired differences by hand, of the committed records, and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import script
from scipy import stats

from ham.report import node_findings, node_report, node_rows, plan
from ham.report import spec as lock_file
from ham.report.node_findings import clear_differences, main_result, outside_paper
from ham.report.node_report import PAGE
from ham.report.node_rows import NodeRow
from ham.report.plan import Cell
from ham.report.spec import RunSpec
from ham.report.statistics import Sample

COMMAND = script("node_report")


@pytest.fixture
def runs(tmp_path: Path, make_summary: Callable[..., dict]) -> Path:
    """Three seeds of GCN and GCN+HAM on cora; one summary of another run and one incomplete."""

    def summary(exp: str, seed: int, valid: float, test: float) -> dict:
        metrics = {"valid_last": valid, "valid_best": valid, "test_at_best": test}
        content = make_summary(RunSpec(exp, seed), metrics=metrics)
        content["provenance"]["dirty"] = True  # the page may be written while code changes
        return content

    folder = tmp_path / "runs"
    cells = {"node/cora_gcn": [80, 81, 82], "node/cora_gcn_ham": [80.2, 81.4, 82]}
    texts = {
        f"{exp}/seed{seed}": json.dumps(summary(exp, seed, value, value + 3))
        for exp, values in cells.items()
        for seed, value in enumerate(values)
    }
    texts["node/cora_gcn_ham/seed3"] = json.dumps(summary("node/cora_gcn", 3, 99, 99))
    texts["node/cora_gcn_ham/seed4"] = '{"config_hash"'
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "summary.json").write_text(text)
    return folder


def test_the_page_by_hand(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences 0.2, 0.4, 0.0: mean 0.2, standard deviation 0.2, t 4.303 over sqrt(3): half width 0.50.

    t = 0.2 / (0.2 / sqrt(3)) = sqrt(3), and p = 1 - sqrt(3 / 5) = 0.225 with 2 degrees of freedom.
    """
    page = tmp_path / "page.md"
    assert COMMAND.main(["--runs", str(runs), "--to", str(page)]) == 1
    other, incomplete = (runs / "node" / "cora_gcn_ham" / f"seed{k}" / "summary.json" for k in (3, 4))
    first, second = capsys.readouterr().err.splitlines()
    moved = "it is the record of node/cora_gcn seed 3: move it to node/cora_gcn/seed3"
    assert first == f"node_report.py: left out {other}: {moved}"
    assert second.startswith(
        f"node_report.py: left out {incomplete}: it cannot be read, its JSON is incomplete"
    )
    text = page.read_text()
    base, ham = (line for line in text.splitlines() if line.startswith("| cora |"))
    assert base == "| cora | GCN | 3 of 5 | 81.00 ± 1.00 | 81.32 ± 0.30 |  |  |  |  | 84.00 ± 1.00 |  |  |"
    assert "| +0.20 [-0.30, +0.70] | +1.0 of 500 | 2 / 1 / 0 | +0.12 |" in ham
    assert text.splitlines()[2] == (
        "Of the 1 HAM row that was run, 1 is above its baseline, 0 are equal and 0 are below (mean "
        "difference +0.20 points, median +0.20); in the paper, 1 of the same rows is above (mean +0.12). "
        "No nHAM row was run beside its baseline."
    )
    # validation and test: two differences; t(0.9875, df = 2) = 6.205 over sqrt(3) = 3.58
    assert "The intervals of 0 of 2 differences exclude 0 (0 of 1 in validation, 0 of 1 in test)." in text
    assert "about one in twenty excludes 0: 0.1 of 2. None has a p below 0.05 after Holm's" in text
    assert "With 3 seeds, a mean difference must exceed 3.6 standard deviations for that." in text
    assert "excludes 0: 0 of 1 baselines, 0 of 1 HAM rows. Of 2 rows" in text
    assert "Without a run: cora (GCN+nHAM, GAT, GAT+HAM, GAT+nHAM, SAGE, SAGE+HAM" in text


def row(label: str, own: list[float], base: list[float], paper: tuple[float, float]) -> NodeRow:
    """A row of cora whose baseline is 81 +- 1 in the paper."""
    cells = [Cell("node/cora_gcn_ham", "valid_best", of, seeds=(0, 1, 2)) for of in (paper, (81.0, 1.0))]
    summaries = [
        {seed: {"metrics": {"valid_best": v, "test_at_best": v}} for seed, v in enumerate(values)}
        for values in (own, base)
    ]
    return NodeRow("cora", label, cells[0], summaries[0], cells[1], summaries[1])


BASE = [80.0, 81.0, 82.0]


def test_the_main_result_by_hand() -> None:
    """Mean differences 0.3, 0, -0.1, and of nHAM -3; the paper's are 0.5, 0, 0.1 and 1."""
    rows = [
        row("GCN", BASE, BASE, (81.0, 1.0)),
        row("GCN+HAM", [80.2, 81.4, 82.3], BASE, (81.5, 1.0)),
        row("GAT+HAM", [80.1, 80.9, 82.0], BASE, (81.0, 1.0)),
        row("SAGE+HAM", [80.0, 80.9, 81.8], BASE, (81.1, 1.0)),
        row("GCN+nHAM", [77.0, 78.0, 79.0], BASE, (82.0, 1.0)),
    ]
    assert main_result(rows) == (
        "Of the 3 HAM rows that were run, 1 is above its baseline, 1 is equal and 1 is below "
        "(mean difference +0.07 points, median +0.00); in the paper, 2 of the same rows are above "
        "(mean +0.20). Of the 1 nHAM row that was run, 0 are above their baseline, 0 are equal and "
        "1 is below (mean difference -3.00 points, median -3.00); in the paper, 1 of the same rows is above "
        "(mean +1.00)."
    )


def test_differences_that_exclude_0_have_their_p_after_holm() -> None:
    """Differences 1, 1.1, 0.9: t = sqrt(3) / 0.1, p = 1 - t / sqrt(t^2 + 2) = 0.0033, twice (valid, test).

    1, 1, 0.9 has t = 29, p = 0.0012; 1, 2, 3 has t = 2 sqrt(3), p = 0.074: six tests in all.
    """
    rows = [
        row("GCN+HAM", [81.0, 82.1, 82.9], BASE, (81.5, 1.0)),
        row("GAT+HAM", [81.0, 82.0, 82.9], BASE, (81.5, 1.0)),
        row("SAGE+HAM", [81.0, 83.0, 85.0], BASE, (81.5, 1.0)),
        row("GCN+nHAM", [81.0, 82.0, 83.0], BASE, (81.5, 1.0)),  # equal differences: no interval
    ]
    text, _, _, _, *table = clear_differences(rows)
    assert text.startswith(
        "The intervals of 4 of 6 differences exclude 0 (2 of 3 in validation, 2 of 3 in test)."
    )
    assert "excludes 0: 0.3 of 6. 4 have a p below 0.05 after Holm's correction over all 6." in text
    assert "above it in 0 and below it in 2 of 3 HAM rows, above it in 0 and below it in 0 of 0" in text
    # the smaller p are taken 6 and 5 times, where 5 x 0.0012 is raised to 6 x 0.0012; then 4 and 3 times
    assert [line.split(" | ")[-2:] for line in table] == [
        ["0.0033", "0.0133 |"],
        ["0.0033", "0.0133 |"],
        ["0.0012", "0.0071 |"],
        ["0.0012", "0.0071 |"],
    ]


def test_a_tiny_p_is_not_printed_as_0() -> None:
    """t = 1730 with 2 degrees of freedom: p = 1 / t^2 = 3e-7."""
    *_, line, _ = clear_differences([row("GCN+HAM", [81.0, 82.001, 82.999], BASE, (81.5, 1.0))])
    assert line.endswith("| < 0.0001 | < 0.0001 |")


def test_rows_that_differ_from_the_paper_are_named() -> None:
    """Both have standard deviation 1 and three runs: df = 4, t(0.975) = 2.776, half width 2.27."""
    rows = [
        row("GCN", BASE, BASE, (78.8, 1.0)),
        row("GCN+HAM", [80.0, 81.0, 82.0], BASE, (78.7, 1.0)),
        row("GCN+nHAM", [80.0, 81.0, 82.0], BASE, (83.3, 1.0)),
    ]
    text, _, _, _, *table = outside_paper(rows)
    assert "excludes 0: 0 of 1 baselines, 1 of 1 HAM rows, 1 of 1 nHAM rows. Of 3 rows" in text
    assert "about 0.15 would differ. None has a p below 0.05 after Holm's correction over all 3." in text
    assert [line.split(" | ")[1:6] for line in table] == [
        ["GCN+HAM", "81.00 ± 1.00", "78.70 ± 1.00", "+2.30 [+0.03, +4.57]", "+2.8"],
        ["GCN+nHAM", "81.00 ± 1.00", "83.30 ± 1.00", "-2.30 [-4.57, -0.03]", "-2.8"],
    ]


def test_a_page_without_pairs_claims_nothing() -> None:
    base = row("GCN", BASE, BASE, (81.0, 1.0))
    assert main_result([base]) == (
        "No HAM row was run beside its baseline. No nHAM row was run beside its baseline."
    )
    assert clear_differences([base]) == ["No difference has an interval."]
    alone = NodeRow("cora", "GCN", base.cell, {0: base.own[0]}, base.cell, base.own)
    assert outside_paper([alone]) == ["No row has an interval of its difference to the paper."]
    assert node_findings.chance([]) == []


def test_the_papers_gain_is_compared_with_each_interval() -> None:
    """Differences 1, 1.1, 0.9 have the interval 1 +- 0.248; the paper's gains are 0.5, 1, 1.5 and 2."""
    rows = [row("GCN+HAM", [81.0, 82.1, 82.9], BASE, (81.0 + gain, 1.0)) for gain in (0.5, 1.0, 1.5, 2.0)]
    rows.append(row("GCN+nHAM", [79.0, 79.9, 81.1], BASE, (81.0, 1.0)))
    assert node_findings.intervals_of_papers_gains(rows) == (
        "The paper's difference, taken as exact, is outside our interval: above it in 2 and below it in 1 of "
        "4 HAM rows, above it in 1 and below it in 0 of 1 nHAM rows."
    )


def test_the_row_with_the_fewest_seeds_says_what_can_be_found() -> None:
    """Four differences: t at 1 - 0.05 / 4 / 2 with 1 and 2 degrees of freedom, over sqrt(2) and sqrt(3)."""
    rows = [row("GCN+HAM", [81.0, 82.1, 82.9], BASE, (81.0, 1.0))]
    rows.append(row("GAT+HAM", [81.0, 82.1], BASE[:2], (81.0, 1.0)))
    needed = stats.t.isf(0.05 / 8, 1) / 2**0.5
    text = clear_differences(rows)[0]
    assert f"With 2 seeds, a mean difference must exceed {needed:.1f} standard deviations for that." in text
    assert "about one in twenty excludes 0: 0.2 of 4." in text


@pytest.mark.parametrize(("count", "subject"), [(0, "None has"), (1, "1 has"), (2, "2 have")])
def test_survivors_of_the_correction_are_counted(count: int, subject: str) -> None:
    text = f"{subject} a p below 0.05 after Holm's correction over all 6."
    assert node_findings._survivors(count, 6) == text


@pytest.mark.parametrize(("p", "text"), [(1e-4, "0.0001"), (0.99e-4, "< 0.0001"), (0.25, "0.2500")])
def test_a_p_has_four_digits(p: float, text: str) -> None:
    assert node_findings._digits(p) == text


def test_tables_follow_an_empty_line_and_only_where_they_have_rows() -> None:
    assert node_findings._table("a | b", ["| 1 | 2 |"]) == ["", "| a | b |", "|---|---|", "| 1 | 2 |"]
    assert node_findings._table("a | b", []) == []
    assert node_findings.spread(Sample(81.0, None, 1)) == "81.00"
    assert node_findings.spread(Sample(81.0, 0.0, 2)) == "81.00 ± 0.00"


def with_graph(own: NodeRow, metric: str, counts: list[int]) -> NodeRow:
    for summary, count in zip(own.own.values(), counts, strict=True):
        summary["graph"] = {"metric": metric, "nodes": {"valid": count}}
    return own


def test_a_difference_in_nodes_is_of_an_accuracy() -> None:
    """1 % of 500, 1.1 % of 400 and 0.9 % of 600 nodes: 5, 4.4 and 5.4, on average 4.93 of 500."""
    own = row("GCN+HAM", [81.0, 82.1, 82.9], BASE, (81.0, 1.0))
    assert node_report.in_nodes(with_graph(own, "accuracy", [500, 400, 600])) == "+4.9 of 500"
    assert node_report.in_nodes(with_graph(own, "rocauc", [500, 400, 600])) == ""
    equal = row("GCN+HAM", BASE, BASE, (81.0, 1.0))
    assert node_report.in_nodes(with_graph(equal, "accuracy", [500] * 3)) == "+0.0 of 500"
    assert node_report.in_nodes(row("GCN", BASE, BASE, (81.0, 1.0))) == ""


def test_seeds_above_equal_and_below_are_counted() -> None:
    assert node_report.signs(row("GCN+HAM", [81.0, 81.0, 81.0], BASE, (81.0, 1.0))) == "1 / 1 / 1"
    assert node_report.signs(row("GCN+HAM", [81.0, 82.0, 82.0], BASE, (81.0, 1.0))) == "2 / 1 / 0"
    assert node_report.signs(row("GCN", BASE, BASE, (81.0, 1.0))) == ""


def test_inverted_weights_are_percentages_at_the_best_and_at_the_last_epoch() -> None:
    own = row("GCN+nHAM", BASE, BASE, (81.0, 1.0))
    assert node_report.inverted(own) == ""
    for seed, summary in own.own.items():
        summary["metrics"] |= {"negative_metric_best": 0.01 * seed, "negative_metric_last": 0.5}
    assert node_report.inverted(own) == "1.0 % / 50.0 %"
    del own.own[1]["metrics"]["negative_metric_last"]
    assert node_report.inverted(own) == ""


def test_rows_without_a_run_are_named_and_those_that_diverged_marked() -> None:
    """cora has one row, citeseer none and pubmed none, of which one diverged."""
    summary = {"metrics": {"valid_best": 81.0, "test_at_best": 80.0}}
    lost = [RunSpec("node/pubmed_gcn_ham", 4)]
    report = node_rows.report_of({RunSpec("node/cora_gcn", 4): summary}, lost)
    (own,) = report.rows
    assert (own.graph, own.label, own.seeds, own.gain(), own.own) == ("cora", "GCN", [], None, {4: summary})
    assert own.base_cell is own.cell
    labels = [own.label for own in plan.table("17").rows]
    assert report.missing["cora"] == labels[1:] and report.missing["citeseer"] == labels
    assert report.missing["pubmed"] == [f"{x}: diverged" if x == "GCN+HAM" else x for x in labels]
    text = node_report._missing({name: report.missing[name] for name in ("cora", "citeseer", "pubmed")})
    assert text.startswith(
        f"Without a run: cora ({', '.join(labels[1:])}), citeseer, pubmed (GCN, GCN+HAM: div"
    )


def test_odd_records_are_reported_once_and_divergences_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RunSpec("node/cora_gat", 1)
    monkeypatch.setattr(node_rows, "read_runs", lambda specs: ({}, ["a", "b"]))
    monkeypatch.setattr(node_rows, "read_diverged", lambda: ({lost: "the loss is inf"}, ["b", "c"]))
    report = node_rows.build_report()
    assert report.problems == ["a", "b", "c"] and report.rows == []
    assert [label for label in report.missing["cora"] if "diverged" in label] == ["GAT: diverged"]


def test_run_directories_that_diverged_are_read(
    tmp_path: Path, make_summary: Callable[..., dict], runs: Path
) -> None:
    """A result counts before a divergence, and one of another run is reported."""
    for exp, place in (
        ("node/cora_gat", "node/cora_gat/seed0"),
        ("node/cora_gcn", "node/cora_gcn/seed0"),
        ("node/cora_gat", "node/cora_sage/seed0"),
    ):
        lost = make_summary(RunSpec(exp, 0), status="diverged", reason="the loss is inf", epochs=1)
        (runs / place).mkdir(parents=True, exist_ok=True)
        (runs / place / "diverged.json").write_text(json.dumps(lost))
    report = node_rows.build_report(runs)
    assert report.missing["cora"][:3] == ["GCN+nHAM", "GAT: diverged", "GAT+HAM"]
    assert [own.label for own in report.rows] == ["GCN", "GCN+HAM"]
    path = runs / "node" / "cora_sage" / "seed0" / "diverged.json"
    (problem,) = (line for line in report.problems if "diverged" in line)
    assert problem == f"{path}: it is the record of node/cora_gat seed 0: move it to node/cora_gat/seed0"
    assert len(report.problems) == 3


def test_an_invalid_grid_is_one_line(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(COMMAND, "FOLDER", tmp_path)
    (tmp_path / "cora_sage.json").write_text("{")
    capsys.readouterr()
    assert COMMAND.main(["--runs", str(runs), "--to", str(tmp_path / "page.md")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("node_report.py: ") and "cora_sage.json: it cannot be read" in line
    (tmp_path / "cora_sage.json").unlink()
    assert COMMAND.main(["--runs", str(runs), "--to", str(tmp_path / "page.md")]) == 1  # for the two runs
    assert "by chance" not in (tmp_path / "page.md").read_text()


def test_the_page_of_run_directories_is_written_among_them(runs: Path) -> None:
    committed = PAGE.read_text()
    assert COMMAND.main(["--runs", str(runs)]) == 1
    assert (runs / "node_reading.md").exists() and PAGE.read_text() == committed


def test_wrong_use_is_one_line_and_status_2(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "empty").mkdir()
    assert COMMAND.main(["--runs", str(runs / "empty")]) == 2
    assert "no node run in" in capsys.readouterr().err
    assert COMMAND.main(["--runs", str(runs), "--to", "/proc/page.md"]) == 2
    assert COMMAND.main(["--runs", str(runs / "none")]) == 2
    assert "none is not a directory" in capsys.readouterr().err


def test_the_committed_page_is_that_of_the_committed_records(tmp_path: Path) -> None:
    assert COMMAND.main(["--to", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()


def test_changed_configurations_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock_file.lock.cache_clear()
    monkeypatch.setattr(lock_file, "configs_digest", lambda: "another")
    try:
        assert COMMAND.main(["--to", str(tmp_path / "page.md")]) == 2
    finally:
        lock_file.lock.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert "configs/ has changed since lock.json was written" in line
    assert not (tmp_path / "page.md").exists()
