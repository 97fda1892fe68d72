"""The index links every result, and the coverage counts the records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import script

from ham.files import RESULTS, ROOT
from ham.report import captions, coverage, grid, index, plan
from ham.report.records import DEMOS, read_all, write_divergence
from ham.report.spec import PlanError, RunSpec

COMMAND = script("index")
CONFIGS = ROOT / "configs"
LOCK = json.loads((CONFIGS / "lock.json").read_text())


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    """The runs of each scale that have a committed record."""
    return {demo: read_all(demo)[0] for demo in ("", *DEMOS)}


def rows(text: str) -> list[dict[str, list[str]]]:
    """First cell -> the other cells, for each table of a markdown page."""
    tables = re.split(r"^\|(?:---\|)+$", text, flags=re.MULTILINE)[1:]
    lines = [[line for line in table.splitlines() if line.startswith("| ")] for table in tables]
    cells = [[[c.strip() for c in line.strip("|").split("|")] for line in table] for table in lines]
    return [{row[0]: row[1:] for row in table} for table in cells]


def test_the_committed_pages_are_of_the_committed_results(records: dict[str, Any]) -> None:
    simulated = {path.stem for path in (RESULTS / "theory").glob("*.json")}
    expected = {
        "README.md": index.index(RESULTS, records, grid.read_all()[0]),
        "figures/README.md": index.gallery(RESULTS),
        "tables/coverage.md": coverage.page(records, simulated),
    }
    for name, text in expected.items():
        assert (RESULTS / name).read_text() == text, f"results/{name} is stale: run python scripts/index.py"


def test_every_table_figure_and_record_is_linked_and_every_link_resolves() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (RESULTS / "README.md").read_text())
    linked = {(RESULTS / link).resolve() for link in links}
    assert all(path.exists() for path in linked)
    files = {path for folder in ("tables", "figures") for path in (RESULTS / folder).iterdir()}
    with_records = {path.parent for path in RESULTS.rglob("*.json")}
    assert len(files) > 90 and len(with_records) > 100
    assert files | with_records <= linked
    pictures = set(re.findall(r"\]\(([^)]+)\)", (RESULTS / "figures" / "README.md").read_text()))
    assert pictures == {path.name for path in (RESULTS / "figures").glob("*.png")}


def files_of(folder: str, exp: str, seeds: list[int]) -> list[bool]:
    """By the names of files: which seeds have a record?"""
    return [(RESULTS / folder / exp / f"seed{seed}.json").exists() for seed in seeds]


def cells_of(content: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Experiment and seeds of each cell of a table's yaml."""
    seeds = content.get("column_seeds") or [content["seeds"]] * len(content["columns"])
    return [
        (cell["exp"], own)
        for row in content["rows"]
        for cell, own in zip(row["cells"], seeds, strict=True)
        if cell
    ]


@pytest.mark.parametrize(("place", "folder"), [(0, "runs"), (1, "demo")])
def test_the_counts_of_tables_are_those_of_the_files(place: int, folder: str) -> None:
    """Recomputed from the yaml files and the names of the records, without the code under test."""
    page = rows((RESULTS / "tables" / "coverage.md").read_text())[place]
    every: dict[tuple[str, int], bool] = {}
    sums = [0, 0, 0]
    for path in sorted((CONFIGS / "tables").glob("*.yaml")):
        cells = cells_of(yaml.safe_load(path.read_text()))
        label = re.sub(r"^table0?(\d+)$", r"Table \1", path.stem)
        if folder == "demo" and any(exp not in LOCK["digits"] for exp, _ in cells):
            assert label not in page
            continue
        present = [files_of(folder, exp, seeds) for exp, seeds in cells]
        counts = [sum(map(any, present)), sum(map(all, present)), len(cells)]
        runs = {(exp, seed) for exp, seeds in cells for seed in seeds}
        done = {run for run in runs if files_of(folder, run[0], [run[1]])[0]}
        state = "complete" if counts[1] == counts[2] else "partial" if counts[0] else "not run"
        assert page[label][1:] == [*map(str, counts), f"{len(done)} of {len(runs)}", state], path.stem
        if path.stem.startswith("table"):
            every |= {run: run in done for run in runs}
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
    assert page["all tables"][1:5] == [*map(str, sums), f"{sum(every.values())} of {len(every)}"]
    assert sum(every.values()) > 100


@pytest.mark.parametrize(("place", "folder"), [(0, "runs"), (1, "demo")])
def test_the_counts_of_figures_are_those_of_the_files(place: int, folder: str) -> None:
    """A point of a grid has a run if some record has its configuration hash."""
    page = rows((RESULTS / "tables" / "coverage.md").read_text())[place]
    contents = [json.loads(path.read_text()) for path in (RESULTS / folder).rglob("*.json")]
    hashes = {(content["config_hash"], content["seed"]) for content in contents}
    known = LOCK["" if folder == "runs" else "digits"]
    for path in sorted((CONFIGS / "figures").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        specs = [own["exp"] for own in content.get("series", {}).values()]
        specs += [
            f"{content['exp']} ham.alpha={alpha} ham.beta={beta}"
            for alpha in content.get("alpha", ())
            for beta in content.get("beta", ())
        ]
        present = [
            [(known[spec]["config_hash"], seed) in hashes for seed in content["seeds"]] for spec in specs
        ]
        counts = [sum(map(any, present)), sum(map(all, present)), len(specs)]
        label = re.sub(r"^figure0?(\d+\w?)$", r"Figure \1", path.stem)
        assert page[label][1:4] == list(map(str, counts)), path.stem
        assert page[label][4] == f"{sum(map(sum, present))} of {len(specs) * len(content['seeds'])}"


def test_partial_tables_and_grids_are_counted(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    """By hand: Table 9 with three seeds of one cell and one of the other; one point of Figure 11's grid."""
    for exp, seed in (
        ("deit_acdc_s50", 0),
        ("deit_acdc_s50", 1),
        ("deit_acdc_s50", 2),
        ("deit_acdc_ham_s50", 1),
    ):
        write_record(tmp_path, RunSpec(exp, seed))
    write_record(tmp_path, RunSpec("cifar100_ham", 0))  # the point (200, 0.016)
    write_record(tmp_path, plan.figure("11").points[50, 0.001])
    assert COMMAND.main(["--results", str(tmp_path)]) == 0
    page = rows((tmp_path / "tables" / "coverage.md").read_text())[0]
    assert page["Table 9"][1:] == ["2", "1", "2", "4 of 6", "partial"]
    assert page["Figure 11"][1:] == ["2", "2", "35", "2 of 35", "partial"]
    assert page["Table 7"][1:] == ["1", "0", "8", "1 of 24", "partial"]
    assert page["Table 12"][1:] == ["0", "0", "8", "0 of 24", "not run"]
    assert page["Table 11"][1:] == ["0", "0", "36", "0 of 12", "not run"]
    assert page["Figure 1"][1:] == ["-", "-", "-", "-", "not run"]
    assert page["everything"][4] == f"6 of {len(set(plan.every_run()))}"
    readme = (tmp_path / "README.md").read_text()
    assert "| Figure 11 |" in readme and "partial (2 of 35)" in readme
    assert (
        "| [deit_acdc_s50](runs/deit_acdc_s50) | Table 4, AC/DC + HAM, s = 0.9 | 3 |" in readme
    )  # its own text
    assert readme.count("with overrides | 1 |") == 1


def test_the_records_of_a_folder_are_counted_by_experiment(
    tmp_path: Path, write_record: Callable[..., Path], make_summary: Callable[..., dict[str, Any]]
) -> None:
    """Two seeds and one that diverged, another that diverged, and one that names no cell."""
    for seed in (0, 1):
        write_record(tmp_path, RunSpec("snip_s90", seed), cell="SNIP")
    lost = make_summary(RunSpec("snip_s90", 2), status="diverged", reason="the loss is inf", epochs=1)
    write_divergence(RunSpec("snip_s90", 2), lost, tmp_path)
    lost = make_summary(RunSpec("dense", 0), status="diverged", reason="the loss is inf", epochs=1)
    write_divergence(RunSpec("dense", 0), lost, tmp_path)
    write_record(tmp_path, RunSpec("acdc_s90", 0, demo="digits"), cell=None)
    (tmp_path / "theory").mkdir()
    for name in ("figure02b", "other"):
        (tmp_path / "theory" / f"{name}.json").write_text("{}")
    (tmp_path / "site").mkdir()
    assert COMMAND.main(["--results", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert page.partition("## Records\n\n")[2] == (
        "### demo\n\n[demo](demo): Runs scaled down to 8x8 digits; not the paper's setting; 1 record.\n\n"
        "| records | of | n |\n|---|---|---|\n| [acdc_s90](demo/acdc_s90) | acdc_s90 | 1 |\n\n"
        "### runs\n\n[runs](runs): Runs at the paper's setting, one record per experiment and seed: metrics, "
        "sparsity, provenance; 4 records.\n\n| records | of | n |\n|---|---|---|\n"
        "| [dense](runs/dense) | dense, diverged | 1 |\n| [snip_s90](runs/snip_s90) | SNIP | 3 |\n\n"
        "### theory\n\n[theory](theory): Simulated data of the theory's figures, with provenance; 1 record.\n"
        "\n"
        "| records | of | n |\n|---|---|---|\n"
        "| [figure02b](theory/figure02b.json) | Figure 2b. HAM's Bregman function | 1 |\n"
    )
    assert "In a browser" not in page
    (tmp_path / "site" / "index.html").touch()
    assert COMMAND.main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text().count("**In a browser**: [site/index.html]") == 1


def test_a_folder_without_records_has_no_table(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert COMMAND.main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "README.md").read_text().endswith("provenance; 0 records.\n\n")


def test_tables_are_linked_with_their_files_and_the_papers_come_first(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "tables").mkdir()
    for name, title in (
        ("control_str.md", "# STR again"),
        ("table12.md", "# Table 12. Graphs\n\n# Table 12. more"),
        ("demo_table04.md", "# Scaled down"),
        ("table05.md", "# Table 5. Training details"),
        ("table01.md", "# Table 1. Properties"),
    ):
        (tmp_path / "tables" / name).write_text(title)
    for name in ("table12.csv", "table12.tex", "table01.tex"):
        (tmp_path / "tables" / name).touch()
    assert COMMAND.main(["--results", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    counts = [len(plan.table(name).cells) for name in ("control_str", "4")]
    lines = page.partition("|---|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert lines == [
        "| [Table 1](tables/table01.md) | Properties | as stated | [tex](tables/table01.tex) |",
        "| [Table 5](tables/table05.md) | Training details | settings | - |",
        "| [Table 12](tables/table12.md) | Graphs | not run (0 of 8) | [csv](tables/table12.csv), "
        "[tex](tables/table12.tex) |",
        f"| [control_str](tables/control_str.md) | STR again | not run (0 of {counts[0]}) | - |",
        "| [coverage](tables/coverage.md) | Coverage of the paper's tables and figures | - | - |",
        f"| [demo_table04](tables/demo_table04.md) | Scaled down | not run (0 of {counts[1]}) | - |",
    ]


def test_the_state_of_a_part_by_hand() -> None:
    counts = {(0, 0, 0): "not run", (2, 0, 0): "not run", (2, 1, 0): "partial", (2, 2, 1): "partial"}
    counts |= {(2, 2, 2): "complete"}
    for (parts, started, complete), state in counts.items():
        assert coverage.Coverage("", "", parts, started, complete).state == state
    labels = {"table04": "Table 4", "table10": "Table 10", "figure02a": "Figure 2a", "control": "control"}
    assert {name: coverage.label_of(name) for name in labels} == labels


def test_the_sum_of_parts_counts_a_shared_run_once() -> None:
    one, two, three = (RunSpec("dense", seed) for seed in range(3))
    counts = [
        coverage.Coverage("a", "", 3, 2, 1, frozenset({one, two}), frozenset({one})),
        coverage.Coverage("b", "", 5, 1, 0, frozenset({two, three}), frozenset({one, three})),
    ]
    assert coverage.total("sum", counts) == coverage.Coverage(
        "sum", "", 8, 3, 1, frozenset({one, two, three}), frozenset({one, three})
    )


def test_an_invalid_record_is_reported_and_not_counted(
    tmp_path: Path, write_record: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_record(tmp_path, RunSpec("deit", 0))
    path.write_text(path.read_text().replace('"dirty": false', '"dirty": true'))
    assert COMMAND.main(["--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"index.py: left out {path}: ")
    assert rows((tmp_path / "tables" / "coverage.md").read_text())[0]["Table 8"][4] == "0 of 6"


def test_odd_divergences_and_grids_are_reported(
    tmp_path: Path, make_summary: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    lost = make_summary(RunSpec("dense", 0), status="diverged", reason="the loss is inf", epochs=1)
    path = write_divergence(RunSpec("dense", 0), lost | {"reason": 1}, tmp_path)
    odd = tmp_path / "node_grid" / "cora_sage.json"
    odd.parent.mkdir()
    odd.write_text("{")
    assert COMMAND.main(["--results", str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"index.py: left out {path}: ")
    assert second.startswith(f"index.py: left out {odd}: ")


def test_what_has_no_caption_is_an_error_that_names_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study").mkdir()
    assert COMMAND.main(["--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'study'} is not a folder of results: move it away, or add it to FOLDERS" in said
    (tmp_path / "study").rmdir()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "forest.png").touch()
    assert COMMAND.main(["--results", str(tmp_path)]) == 2
    assert "no caption for the figure 'forest': add it to ham/report/captions.py" in capsys.readouterr().err


def test_every_figure_has_a_title_and_a_caption_that_says_what_its_marks_are() -> None:
    assert list(captions.RUNS) == plan.figures()
    for name in (*captions.THEORY, *captions.RUNS, "demo_figure02a"):
        title, caption = captions.figure_texts(name)
        assert len(caption) > 100 and caption.endswith(".") and caption.isascii() and title
    assert captions.figure_texts("figure02b")[0] == "Figure 2b. HAM's Bregman function"
    assert captions.figure_texts("demo_figure02a")[1].startswith("Scaled down to 8x8 digits, not the paper's")
    assert (
        captions.figure_texts("demo_figure11")[0]
        == "Scaled down to 8x8 digits, not the paper's setting: the runs of Figure 11"
    )
    assert captions.figure_texts("study_cifar16_forest") == captions.STUDIES["study_cifar16_forest"]
    for name in ("figure13", "demo_figure01", "demo_"):
        with pytest.raises(PlanError, match=f"no caption for the figure '{name}'"):
            captions.figure_texts(name)


def test_the_numbers_of_the_theorys_captions_are_those_of_the_data() -> None:
    def settings(name: str) -> dict[str, Any]:
        return json.loads((RESULTS / "theory" / f"{name}.json").read_text())["settings"]

    texts = {name: caption for name, (_, caption) in captions.THEORY.items()}
    strengths = settings("figure01")["strengths"]
    assert f"gamma = {strengths['product']['gamma']:g}," in texts["figure01"]
    assert f"alpha = {strengths['ham']['alpha']:g}." in texts["figure01"]
    at, path = settings("figure03")["map"], settings("figure03")["path"]
    assert (
        f"gradient {at['gradient']:g}, learning rate {at['lr']:g} and alpha = {at['alpha']:g}"
        in texts["figure03"]
    )
    assert f"from {path['start']:g} to the optimum {path['optimum']:g}" in texts["figure03"]
    for name in ("figure06", "figure07", "figure08"):
        of = settings(name)
        assert f"{of['nonzeros']} nonzero of {of['dim']} weights" in texts[name]
        assert (
            f"{of['samples']} samples" in texts[name]
            and len(of["seeds"]) == 10
            and "ten seeds" in texts[name]
        )
