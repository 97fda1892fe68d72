"""Tables show the paper's and our numbers, the same in each format."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import script
from hypothesis import given
from hypothesis import strategies as st

from ham.files import RESULTS, ROOT
from ham.report import hyperparameters, plan, records, render, table_files
from ham.report.latex import latex
from ham.report.records import Record, record
from ham.report.scales import SCALES
from ham.report.spec import RunSpec
from ham.report.statistics import Difference, Sample
from ham.report.tables import CellResult, RowResult, TableResult, build_table

COMMAND = script("tables")
_NUMBER = re.compile(r"[+-]?\d+\.\d\d\b")
_NAMES = {
    "acdc": "AC/DC",
    "rigl": "RiGL",
    "str": "STR",
    "snip": "SNIP",
    "synflow": "SynFlow",
    "pilot": "PILoT",
    "sign_in": "Sign-In",
    "ham": "HAM",
    "random": "Random",
    "adamw": "AdamW",
}


def name(key: str) -> str:
    return " + ".join(_NAMES.get(part, part) for part in key.split("+"))


def printed(value: Any) -> tuple[tuple[float, ...], bool]:
    """A cell of the transcription: the numbers, and whether it is one run."""
    if isinstance(value, dict):
        return (value["single_run"],), True
    return (tuple(value) if isinstance(value, list) else (value,)), False


def cells(table: str) -> dict[str, list[tuple[tuple[float, ...], bool]]]:
    return {row.label: [(c.paper, c.single_run) for c in row.cells] for row in plan.table(table).rows}


def rows(content: dict[str, Any], labels: Callable[[str], str]) -> dict[str, list[Any]]:
    return {labels(key): list(map(printed, row)) for key, row in content.items() if key != "columns"}


def test_every_cell_is_the_papers(paper: dict[str, Any]) -> None:
    assert cells("3") == rows(paper["table3"], {"baseline": "Baseline", "ham": "HAM"}.get)
    fourth = paper["table4"] | {"columns": None}
    assert cells("4") == {k: v for part in fourth.values() if part for k, v in rows(part, name).items()}
    dense = lambda key: key.upper().replace("_", "-", key.count("_") - 1).replace("_", ", ") + " epochs"  # noqa: E731
    assert cells("6") == rows(paper["table6"], dense)
    assert cells("7") == rows(paper["table7"], lambda key: key.upper().replace("_", "-"))
    assert cells("8") == {name(key): [printed(value)] for key, value in paper["table8"].items()}
    assert cells("9") == {name(key): [printed(value)] for key, value in paper["table9"].items()}
    assert cells("10") == rows(paper["table10"], name)
    lora = {key: value for key, value in paper["table11"].items() if key.startswith("lora")}
    size = lambda key: f"{'LoRA + HAM' if 'ham' in key else 'LoRA'}, {key[-2:].upper()}"  # noqa: E731
    one_run = {size(key): [((value,), True) for value in values] for key, values in lora.items()}
    assert cells("11") == one_run
    graphs = {key: row for key, row in paper["table12"].items() if key.startswith("gcn")}
    assert cells("12") == rows(graphs, {"gcn": "GCN+", "gcn+ham": "GCN+ + HAM"}.get)


def test_columns_are_the_papers(paper: dict[str, Any]) -> None:
    for number in ("6", "7"):
        expected = [c if c == "none" else tuple(c) for c in paper[f"table{number}"]["columns"]]
        values = [
            c if c == "none" else tuple(map(float, c[1:-1].split(","))) for c in plan.table(number).columns
        ]
        assert values == expected
    assert [float(c.removeprefix("s = ")) for c in plan.table("4").columns] == paper["table4"]["columns"]
    assert len(plan.table("3").columns) == len(paper["table3"]["columns"])
    assert len(plan.table("10").columns) == len(paper["table10"]["columns"])
    assert list(plan.table("12").columns) == paper["table12"]["columns"]
    aliases = {
        "arc_easy": "ARC-Easy",
        "arc_challenge": "ARC-Challenge",
        "obqa": "openbookqa",
        "siqa": "social_i_qa",
    }
    for row in plan.table("11").rows:
        assert [cell.metric for cell in row.cells] == [aliases.get(c, c) for c in paper["table11"]["columns"]]


def test_the_papers_averages_of_table_11_are_truncated_as_its_note_says() -> None:
    means = []
    for row in plan.table("11").rows:
        *values, average = (cell.paper[0] for cell in row.cells)
        means.append(sum(Fraction(str(value)) for value in values) / len(values))
        assert average == math.floor(100 * means[-1]) / 100
    assert any(round(mean, 2) != Fraction(math.floor(100 * mean), 100) for mean in means)
    assert "truncates its averages" in plan.table("11").note


def test_table_11_compares_ham_with_lora_seed_by_seed_and_has_no_cell_without_a_test_set(
    tmp_path: Path, make_summary: Callable[..., dict[str, Any]]
) -> None:
    """SmolLM2's runs lack HellaSwag. Differences 1, 2, 3: mean 2, Student's interval 2 +- 4.303 / sqrt(3)."""
    for seed in range(3):
        for exp, boolq in (("lora_llama1b", 50.0), ("lora_llama1b_ham", 51.0 + seed)):
            run = RunSpec(exp, seed, demo="smollm")
            summary = make_summary(run, metrics={"average": boolq, "boolq": boolq + 10 * seed})
            records.write(run, summary, None, tmp_path)
    loaded, problems = records.read_all("smollm", tmp_path)
    assert len(loaded) == 6 and not problems
    table = build_table("table11", loaded, "smollm")
    lora, ham = table.rows[0].cells, table.rows[1].cells
    assert table.name == "smollm_table11" and lora[0] is ham[0] is None
    assert lora[-1].paired is None and lora[-1].ours.n == 3
    half = 4.302653 / math.sqrt(3)
    for cell in (ham[-1], ham[-2]):
        assert cell.paired.value == pytest.approx(2)
        assert cell.paired.interval == pytest.approx((2 - half, 2 + half), abs=1e-5)
    text = render.markdown(render.to_text(table))
    assert "| paired | - |" in text and "+2.00 [-0.48, +4.48]" in text and "SmolLM2-135M with LoRA" in text


def test_each_cells_run_is_what_its_row_and_column_say() -> None:
    for row in plan.table("12").rows:
        for column, cell in zip(plan.table("12").columns, row.cells, strict=True):
            base = f"graph/{column.replace('-', '_')}"
            assert RunSpec(cell.exp, 0).info.base == base
            assert (cell.exp, cell.against) == ((f"{base}_ham", base) if "HAM" in row.label else (base, ""))
    for row in plan.table("4").rows:
        assert [RunSpec(cell.exp, 0).info.sparsity for cell in row.cells] == [0.8, 0.9, 0.95]
    assert {RunSpec(cell.exp, 0).info.sparsity for cell in plan.table("10").cells} == {0.9}
    assert {RunSpec(cell.exp, 0).info.sparsity for cell in plan.table("9").cells} == {0.5}
    for row in plan.table("3").rows:
        info = [RunSpec(cell.exp, 0).info for cell in row.cells]
        assert [(f.epochs, f.passes) for f in info] == [(100, 1), (200, 1), (100, 2), (200, 2)]
    for row in plan.table("6").rows:
        lengths = {(info.epochs, info.passes) for info in (RunSpec(cell.exp, 0).info for cell in row.cells)}
        assert lengths == {(200 if "200" in row.label else 100, 2 if "SAM" in row.label else 1)}


def test_table_5_is_the_papers(paper: dict[str, Any]) -> None:
    rows = hyperparameters.training_details().rows
    assert [list(row.values()) for row in rows] == paper["table5"]["rows"]
    assert list(rows[0]) == paper["table5"]["columns"]


def test_table_13_is_the_papers_but_for_two_counts_that_it_exchanges(paper: dict[str, Any]) -> None:
    rows = hyperparameters.graph_classification().rows
    for key in ("alpha", "beta"):
        assert [row[key] for row in rows] == paper["table13"][key]
    assert [row["dataset"] for row in rows] == paper["table12"]["columns"]
    ppa, molpcba, molhiv, code2 = paper["table13"]["num_graphs"]
    assert [row["graphs"] for row in rows] == [ppa, molpcba, code2, molhiv]


def test_graphs_have_records_and_tables_but_no_demo(
    tmp_path: Path, make_summary: Callable[..., dict[str, Any]]
) -> None:
    """Table 14 has five seeds of cora; Welch's interval is over five and five runs."""
    metrics = {"valid_best": 81.0, "valid_last": 79.0, "test_at_best": 83.0}
    for seed in range(5):
        run = RunSpec("node/cora_gcn", seed)
        summary = make_summary(run, metrics=metrics | {"valid_best": 81.0 + seed / 10})
        path = records.write(run, summary, None, tmp_path)
        assert path == tmp_path / "runs" / "node" / "cora_gcn" / f"seed{seed}.json"
    loaded, problems = records.read_all("", tmp_path)
    assert len(loaded) == 5 and not problems
    cell = build_table("table14", loaded).rows[0].cells[0]
    assert cell.ours.n == cell.paper.n == 5 and cell.ours.mean == pytest.approx(81.2)
    assert not plan.table("14").has_scale("digits") and plan.table("4").has_scale("digits")


@pytest.mark.parametrize("number", [16, 19])
def test_tables_16_and_19_are_the_papers(number: int, paper: dict[str, Any]) -> None:
    rows = hyperparameters.SHEETS[f"table{number}"]().rows
    archs = ("gcn", "gat", "sage")
    assert {row["dataset"]: {arch: row[arch] for arch in archs} for row in rows} == paper[f"table{number}"]


def test_scaled_down_models_are_what_the_headings_say() -> None:
    for exp, model in (("dense", "resnet50"), ("cifar100", "resnet18"), ("deit", "deit_small")):
        demos = yaml.safe_load((plan.CONFIGS / "model" / f"{model}.yaml").read_text())["demo"]
        base, demo = RunSpec(exp, 0).info.base, demos["digits"]
        description = SCALES["digits"].models[base]
        info = (
            [str(demo[key]) for key in ("depth", "embed_dim")] if model == "deit_small" else ["narrow", "one"]
        )
        assert all(fact in description for fact in info)
        assert model == "deit_small" or demo["layers"] == [1, 1, 1, 1]
        at_16_px, description = demos["cifar16"], SCALES["cifar16"].models[base]
        if model == "deit_small":
            assert at_16_px == demo and description == SCALES["digits"].models[base]
        else:
            assert at_16_px["width"] == 64 / 4 and at_16_px.get("depth", 18) == 18
            assert description == "a ResNet18 with a quarter of the channels"


def line(text: str, label: str, kind: str) -> list[str]:
    """The cells of one row of a markdown table; a method's name stands in its first row only."""
    now, cells = "", []
    for cut in (
        [c.strip() for c in row.strip("|").split(" | ")] for row in text.splitlines() if row[:1] == "|"
    ):
        now = next((c for c in reversed(cut[: cut.index(kind)]) if c), now) if kind in cut else now
        names = [c for c in cut[:2] if c and c not in ("ours", "paper", "difference", "sparsity")]
        now = names[-1] if names else now
        if now == label and kind in cut[:3]:
            cells = cut[cut.index(kind) + 1 :]
    return cells


def test_a_table_shows_both_numbers_and_their_difference(
    tmp_path: Path, write_record: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, top1 in enumerate((76.0, 77.0, 78.0)):
        write_record(tmp_path, RunSpec("acdc_ham_s90", seed), top1)
    write_record(tmp_path, RunSpec("acdc_ham_s95", 0), 75.0)
    (
        write_record(tmp_path, RunSpec("pilot_s80", 0), 75.0),
        write_record(tmp_path, RunSpec("pilot_s80", 1), 76.0),
    )
    assert COMMAND.main(["--table", "4", "--results", str(tmp_path)]) == 0
    text = (tmp_path / "tables" / "table04.md").read_text()
    assert text in capsys.readouterr().out
    label = "AC/DC + HAM"
    assert line(text, label, "ours") == ["not run", "77.00 ± 1.00 (n = 3)", "75.00 (n = 1 of 3)"]
    assert line(text, label, "paper") == ["77.20 ± 0.14", "76.66 ± 0.12", "75.45 ± 0.13"]
    # v = 1/3 and 0.12^2 / 3 = 0.0048; df = 2.0576, t = 4.1893; 4.1893 sqrt(0.33813) = 2.44
    assert line(text, label, "difference") == ["-", "+0.34 [-2.10, +2.78]", "-0.45"]
    assert line(text, label, "sparsity")[1:] == ["90.00 % (target 90 %)", "95.00 % (target 95 %)"]
    assert line(text, "PILoT", "ours")[0] == "75.50 ± 0.71 (n = 2 of 3)"
    assert line(text, "PILoT", "difference")[0] == "-0.12"  # the paper prints no ±
    assert "ddof 1" in text and "convention" in text and "n = k of m: m - k seeds have no record" in text
    assert "52.90 (*)" in render.markdown(render.to_text(build_table("10", {})))


CELL = plan.Cell("acdc_s90", "top1_last", (77.0, 0.5))


def hand_made(**altered: Any) -> CellResult:
    """A cell of three runs of four, 76 +- 1, beside the paper's 77 +- 0.5."""
    ours, paper = Sample(76.0, 1.0, 3), Sample(77.0, 0.5, 3)
    return replace(CellResult(CELL, ours, (0, 1, 3), paper, 0.9, 0.89994, (2, 4), 4), **altered)


def test_the_texts_of_a_cell_by_hand() -> None:
    """Welch: v = 1/3 and 1/12, df = 2.94, t(0.975) = 3.219: half width 2.08."""
    cell = hand_made()
    assert render.ours_text(cell) == "76.00 +- 1.00 (n = 3 of 4)"
    assert render.ours_text(hand_made(planned=3)) == "76.00 +- 1.00 (n = 3)"
    assert render.ours_text(hand_made(ours=Sample(76.0, None, 1))) == "76.00 (n = 1 of 4)"
    assert render.ours_text(hand_made(ours=None)) == "not run"
    assert render.ours_text(hand_made(ours=None, diverged=2)) == "diverged (2 of 4)"
    assert render.paper_text(cell) == "77.00 +- 0.50" and render.paper_text(hand_made(paper=None)) == "-"
    one = hand_made(paper=Sample(77.0, None, 1), cell=replace(CELL, single_run=True))
    assert render.paper_text(one) == "77.00 (*)" and render.difference_text(one) == "-1.00"
    assert re.fullmatch(r"-1\.00 \[-3\.0[678], \+1\.0[678]\]", render.difference_text(cell))
    assert {render.difference_text(hand_made(**{key: None})) for key in ("ours", "paper")} == {"-"}
    assert render.paired_text(hand_made(paired=Difference(0.5, (-1.0, 2.0)))) == "+0.50 [-1.00, +2.00]"
    assert render.paired_text(cell) == "-"
    assert render.sparsity_text(cell) == "89.99 % (target 90 %)"
    assert render.sparsity_text(hand_made(achieved=None)) == "target 90 %"
    assert render.sparsity_text(hand_made(target=0.0)) == "dense"


def test_a_cell_of_one_run_has_one_and_none_is_planned_or_lost_by_default() -> None:
    cells = [cell for cell in build_table("10", {}).cells if cell.cell.single_run]
    assert cells and {cell.paper.n for cell in cells} == {1}
    bare = CellResult(CELL, None, (), None, 0.0, None)
    assert (bare.planned, bare.diverged, bare.world_sizes, bare.paired) == (0, 0, (), None)


def test_a_row_shows_every_kind_of_number_once_under_its_name() -> None:
    """A table with groups, facts, a cell that is missing, and a sign that markdown would read as a column."""
    full = hand_made(paired=Difference(0.5, None))
    rows = (RowResult("G", "one", (full, None)), RowResult("", "two", (None, full)))
    result = TableResult("t", "T", ("a", "|b|"), rows, ("note",), "caption", {"# nodes": (1, 2)})
    shown = [line for line in render.markdown(render.to_text(result)).splitlines() if line[:1] == "|"]
    assert shown[:4] == [
        "| type | method |  | a | \\|b\\| |",
        "| --- | --- | --- | --- | --- |",
        "| # nodes |  |  | 1 | 2 |",
        "| G | one | ours | 76.00 ± 1.00 (n = 3 of 4) | - |",
    ]
    assert [line.split(" | ")[:3] for line in shown[4:9]] == [
        ["| ", "", "paper"],
        ["| ", "", "difference"],
        ["| ", "", "sparsity"],
        ["| ", "", "paired"],
        ["| ", "two", "ours"],
    ]
    plain = replace(result, rows=(RowResult("", "one", (hand_made(paper=None, target=0.0), None)),), facts={})
    text = render.to_text(plain)
    assert (text.head, text.blocks) == (
        ("", "", "a", "|b|"),
        ((("one", "ours", "76.00 +- 1.00 (n = 3 of 4)", "-"),),),
    )
    assert text.name_columns == 2 and not plain.has_paper and result.has_paper


def test_a_page_begins_with_title_caption_and_notes() -> None:
    table = render.Text("t", "T", ("one +- two", "three"), ("", "a"), ((("x", "y"),),), "caption")
    rows = ["|  | a |", "| --- | --- |", "| x | y |", ""]
    texts = ["# T", "", "caption", "", "one ± two", "", "three", "", *rows]
    assert render.markdown(table) == "\n".join(texts)
    assert render.markdown(replace(table, caption="")) == "\n".join([*texts[:2], *texts[4:]])
    assert render.Text("t", "T", (), ("a", "b"), ()).name_columns == 1


def test_the_csv_of_a_cell_by_hand() -> None:
    row = RowResult(
        "G", "one", (hand_made(), None, hand_made(ours=None, paper=None, seeds=(), achieved=None))
    )
    text = render.comma_separated(TableResult("t", "T", ("a", "b", "c"), (row,), ()))
    head, first, last = csv.reader(io.StringIO(text))
    assert head == list(render.CSV_COLUMNS)
    cells = dict(zip(head, first, strict=True))
    assert [cells[key] for key in head[:11]] == (
        ["t", "G", "one", "a", "acdc_s90", "top1_last", "0 1 3", "3", "76", "1", "77"]
    )
    assert [cells[key] for key in head[11:14]] == ["0.5", "false", "-1"]
    assert float(cells["low"]) + float(cells["high"]) == pytest.approx(-2)
    assert [cells[key] for key in head[16:]] == ["0.9", "0.89994", "2 4", "4"]
    assert last == ["t", "G", "one", "c", "acdc_s90", "top1_last", "", "0", *[""] * 8, "0.9", "", "2 4", "4"]


def test_runs_of_several_numbers_of_processes_are_noted(make_summary: Callable[..., dict]) -> None:
    """A run that was resumed counts each of its parts; a part without a number counts none."""
    loaded = {}
    for seed, ranks in ((0, 2), (1, 4)):
        run = RunSpec("deit_acdc_s50", seed)
        content = make_summary(run)
        content["provenance"] |= {"ranks": ranks, "resumed_from": [{"ranks": 8}, {"ranks": None}, {}]}
        loaded[run] = Record(run, record(content), Path("none"))
    table = build_table("9", loaded)
    assert table.cells[0].world_sizes == (2, 4, 8)
    assert [note for note in table.notes if "different numbers of processes (2, 4, 8;" in note]
    del loaded[RunSpec("deit_acdc_s50", 1)]
    one = {
        run: replace(own, content=own.content | {"provenance": {"ranks": 2}}) for run, own in loaded.items()
    }
    table = build_table("9", one)
    assert table.cells[0].world_sizes == (2,) and not [n for n in table.notes if "processes" in n]


def test_notes_say_which_seeds_a_table_has() -> None:
    assert build_table("4", {}).notes[0].startswith("Ours: mean +- sample standard deviation (ddof 1) over")
    assert "the n runs of seeds 0, 1, 2 that have a record" in build_table("4", {}).notes[0]
    counts = sorted({len(cell.seeds) for cell in plan.table("14").cells})
    expected = f"runs of the {' or '.join(map(str, counts))} seeds of each column"
    assert len(counts) > 1 and expected in build_table("14", {}).notes[0]
    assert build_table("4", {}).title.startswith("Table 4. ")
    control = build_table("control_str", {})
    assert control.title == plan.table("control_str").title and "A control" in control.notes[1]
    demo = build_table("control_best_epoch", {}, "digits").title
    own = plan.table("control_best_epoch").title
    assert demo == f"Scaled down, not the paper's setting: {own}"


def test_cells_that_are_the_same_runs_at_a_scale_are_noted() -> None:
    """Table 3 differs in epochs, which the digits share; Table 11 in the network alone."""
    captions = {
        name: build_table(name, {}, demo).caption for name, demo in (("3", "digits"), ("4", "digits"))
    }
    assert captions["3"].endswith(" Cells that differ only in their epochs are the same runs here.")
    assert captions["4"].endswith("ln 10.")
    assert build_table("11", {}, "smollm").caption.endswith(
        "the paper's. Rows that differ only in the paper's network are the same runs here."
    )


def test_a_difference_of_pairs_is_over_the_seeds_that_both_have(make_summary: Callable[..., dict]) -> None:
    """Seeds 0 and 1 of three: differences 1 and 3, mean 2, half width 12.706."""
    tops = {("graph/ogbg_ppa", 0): 80.0, ("graph/ogbg_ppa", 1): 80.0, ("graph/ogbg_ppa_ham", 0): 81.0}
    tops |= {("graph/ogbg_ppa_ham", 1): 83.0, ("graph/ogbg_ppa_ham", 2): 99.0}
    loaded = {}
    for (exp, seed), valid in tops.items():
        run = RunSpec(exp, seed)
        content = make_summary(run, metrics={"valid_best": valid})
        loaded[run] = Record(run, record(content), Path("none"))
    base, ham = (row.cells[0] for row in build_table("12", loaded).rows)
    assert base.paired is None and ham.paired.value == 2 and ham.ours.n == 3
    assert ham.paired.interval == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    del loaded[RunSpec("graph/ogbg_ppa", 0)], loaded[RunSpec("graph/ogbg_ppa", 1)]
    assert build_table("12", loaded).rows[1].cells[0].paired is None


def test_controls_have_no_paper_and_each_cell_its_metric(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    write_record(tmp_path, RunSpec("dense", 0), 75.0)
    assert COMMAND.main(["--table", "control_best_epoch", "--results", str(tmp_path), "--format", "md"]) == 0
    (path,) = (tmp_path / "tables").iterdir()
    assert line(path.read_text(), "Dense", "ours") == ["75.00 (n = 1 of 3)", "75.50 (n = 1 of 3)"]
    assert "A control that the paper lacks" in path.read_text() and "| paper" not in path.read_text()


def test_scaled_down_runs_have_tables_of_their_own(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    write_record(tmp_path, RunSpec("rigl_s90", 0, demo="digits"), 98.0)
    assert COMMAND.main(["--results", str(tmp_path), "--demo", "digits"]) == 0
    written = sorted(path.name for path in (tmp_path / "tables").glob("*.md"))
    shown = ("control_alpha_beta", "control_best_epoch", "table04")
    assert written == [f"demo_{name}.md" for name in shown]
    text = (tmp_path / "tables" / "demo_table04.md").read_text()
    assert text.startswith("# Scaled down, not the paper's setting") and "do not rank the methods" in text
    assert "one bottleneck per stage" in text and "8x8 digits" in text and "40 epochs" in text
    assert "73.70" not in text and line(text, "RiGL", "ours") == ["not run", "98.00 (n = 1 of 3)", "not run"]
    assert COMMAND.main(["--results", str(tmp_path)]) == 0
    assert "98.00" not in "".join(p.read_text() for p in (tmp_path / "tables").glob("table*"))
    lost = tmp_path / "runs" / "rigl_s90" / "seed0.json"
    lost.parent.mkdir(parents=True)
    (tmp_path / "demo" / "rigl_s90" / "seed0.json").rename(lost)
    assert COMMAND.main(["--results", str(tmp_path)]) == 1
    assert "98.00" not in "".join(p.read_text() for p in (tmp_path / "tables").glob("table*"))


def test_invalid_records_are_reported_and_left_out(
    tmp_path: Path, write_record: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stale = write_record(tmp_path, RunSpec("deit", 0), 72.0)
    stale.write_text(stale.read_text().replace('"dirty": false', '"dirty": true'))
    assert COMMAND.main(["--table", "8", "--results", str(tmp_path)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"tables.py: left out {stale}: ") and "uncommitted" in said
    assert line((tmp_path / "tables" / "table08.md").read_text(), "AdamW", "ours") == ["not run"]
    assert COMMAND.main(["--table", "9", "--results", str(tmp_path)]) == 0  # which does not need this record
    assert COMMAND.main(["--results", str(tmp_path)]) == 1


values = st.lists(st.integers(0, 10000).map(lambda cents: cents / 100), max_size=3)


@given(dense=values, ham=values)
def test_all_formats_have_the_same_numbers(
    dense: list[float], ham: list[float], make_summary: Callable[..., dict[str, Any]]
) -> None:
    loaded = {}
    for exp, tops in (("deit_acdc_s50", dense), ("deit_acdc_ham_s50", ham)):
        for seed, top1 in enumerate(tops):
            run = RunSpec(exp, seed)
            loaded[run] = Record(run, record(make_summary(run, top1)), Path("none"))
    result = build_table("9", loaded)
    table = render.to_text(result)
    marked = [row for row in render.markdown(table).splitlines() if row.startswith("|")]
    tex = latex(table).replace("$", "").replace("{[}", "[")
    rows = [row for row in tex.splitlines() if row.endswith(r"\\")]
    assert [_NUMBER.findall(row) for row in marked if "---" not in row] == [
        _NUMBER.findall(row) for row in rows
    ]
    shown = sorted(float(number) for row in marked for number in _NUMBER.findall(row))
    expected = []
    for cell in csv.DictReader(io.StringIO(render.comma_separated(result))):
        assert int(cell["n"]) == len(dense if cell["exp"] == "deit_acdc_s50" else ham)
        assert cell["planned_seeds"] == "3"
        keys = ("mean", "std", "paper_mean", "paper_std", "difference", "low", "high")
        expected += [float(cell[key]) for key in keys if cell[key]]
        expected += [100 * float(cell["achieved_sparsity"])] if cell["achieved_sparsity"] else []
    assert shown == pytest.approx(sorted(expected), abs=0.00501)


@pytest.mark.parametrize("demo", ["", "digits", "smollm", "epochs20"])
def test_the_committed_tables_are_those_of_the_committed_records(demo: str, tmp_path: Path) -> None:
    assert COMMAND.main([*(["--demo", demo] if demo else []), "--to", str(tmp_path)]) == 0
    rendered = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (RESULTS / "tables").iterdir()}
    others = ("node_reading.md", "node_grid.md", "coverage.md")  # of other commands, as those of studies
    kept = {name: text for name, text in kept.items() if name not in others and not name.startswith("study_")}
    prefixes = {scale: facts.prefix for scale, facts in SCALES.items()}
    scale_of = {name: next((s for s, p in prefixes.items() if name.startswith(p)), "") for name in kept}
    assert rendered == {name: text for name, text in kept.items() if scale_of[name] == demo}


def test_plus_minus_is_one_sign_on_every_page() -> None:
    """A committed page never shows the two characters that stand for it in the code."""
    pages = [*RESULTS.rglob("*.md"), *(RESULTS / "tables").glob("*.tex")]
    assert len(pages) > 40
    assert not [path for path in pages if "+-" in path.read_text() or "+/-" in path.read_text()]
    assert not [path for path in pages if path.suffix == ".tex" and not path.read_text().isascii()]


def test_every_table_has_a_caption_that_names_what_its_cells_are() -> None:
    for name in plan.tables():
        table = plan.table(name)
        metric = {"top1_last": "Top-1 accuracy", "valid_best": "Best validation accuracy"}
        metric |= {"valid_best": "Best validation metric"} if name == "table12" else {}
        metric |= {"hellaswag": "Accuracy on the eight test sets"}
        assert table.caption.startswith(metric[table.cells[0].metric]), name
        assert len(table.caption) > 80 and table.caption.endswith(".")
    for sheet in table_files.SHEETS.values():
        assert len(sheet().caption) > 80 and sheet().caption.endswith(".")
    demo = build_table("table04", {}, "digits")
    assert (
        demo.caption.startswith("Scaled-down runs, not the paper's setting")
        and demo.caption not in demo.notes
    )


@pytest.mark.parametrize("script", ["tables", "collect", "figures", "index"])
def test_no_torch_is_needed(script: str, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    argv = [str(tmp_path / "runs")] if script == "collect" else []
    blocked = ["torch", "wandb", "hydra", "pruning"]
    if script != "figures":  # starting takes a fifth of a second without these
        blocked += ["numpy", "scipy", "matplotlib"]
    code = (
        f"import sys; sys.modules |= dict.fromkeys({blocked})\n"
        f"sys.path.insert(0, 'scripts'); import {script}\n"
        f"sys.exit({script}.main({json.dumps([*argv, '--results', str(tmp_path)])}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_sheet_as_text_and_as_csv() -> None:
    """Lists are values of one cell; floats lose zeros that say nothing."""
    rows = ({"data_set": "a", "alpha_beta": [1.0, 1e-05]}, {"data_set": "b", "alpha_beta": 2})
    sheet = hyperparameters.Sheet("t", "T", "note", rows, "caption", {"a": "b"})
    assert sheet.to_text() == render.Text(
        *("t", "T", ("note",), ("data set", "alpha beta"), ((("a", "1 / 1e-05"), ("b", "2")),)),
        *("caption", {"a": "b"}),
    )
    assert sheet.comma_separated() == "data_set,alpha_beta\na,1 1e-05\nb,2\n"


def test_settings_have_no_scale_below_the_papers() -> None:
    assert table_files.render_table("table05", {}, "digits") is None
    assert table_files.render_table("table05", {}).name == "table05"
    assert table_files.table_result("12", {}, "digits") is None
    assert table_files.table_result("4", {}, "digits") is None
    assert table_files.table_result("4", {}).name == "table04"
    lost = {RunSpec("snip_s90", 1, demo="digits"): "the loss is inf"}
    shown = table_files.table_result("10", {}, "digits", lost)
    assert shown.notes[-1].startswith("Diverged, hence not in a mean: snip_s90, seed 1 (the loss is inf)")


def test_tables_are_named_in_full_and_each_once() -> None:
    assert table_files.full_names(["4", "table04", "1", "control_str"]) == [
        "table04",
        "table01",
        "control_str",
    ]
    every = table_files.full_names(None)
    assert every == sorted({*plan.tables(), *table_files.SHEETS}) and len(every) == len({*every})


def test_only_the_records_of_the_named_tables_are_read(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    for exp in ("deit", "acdc_s90"):
        write_record(tmp_path, RunSpec(exp, 0))
    read = {
        names: table_files.read_records(names, results=tmp_path)[0] for names in (("8", "5"), ("5",), None)
    }
    assert {names: {run.exp for run in own} for names, own in read.items()} == {
        ("8", "5"): {"deit"},
        ("5",): set(),
        None: {"deit", "acdc_s90"},
    }


def test_the_chosen_formats_are_written_in_their_order_to_a_new_folder(tmp_path: Path) -> None:
    table = table_files.RenderedTable("t", {"md": "m", "csv": "c", "tex": "x"})
    for _ in range(2):
        paths = table_files.write_table(table, tmp_path / "a" / "b", ("tex", "md"))
    assert [(path.name, path.read_text()) for path in paths] == [("t.tex", "x"), ("t.md", "m")]
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["t.md", "t.tex"]
    assert len(table_files.write_table(table, tmp_path)) == 3


def test_wrong_names_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert COMMAND.main(["--table", "20", "--to", str(tmp_path)]) == 2
    choices = ", ".join(sorted({*plan.tables(), *table_files.SHEETS}))
    error = f"tables.py: unknown table 'table20': choose one of {choices}"
    assert capsys.readouterr().err.splitlines() == [error]


@pytest.mark.parametrize("name", ["table14", "table15"])
def test_graph_sizes_are_rows_of_the_table_as_the_paper_prints_them(name: str, paper: dict[str, Any]) -> None:
    table = plan.table(name)
    lines = (RESULTS / "tables" / f"{name}.md").read_text().splitlines()
    for label, key in (("# nodes", "num_nodes"), ("# edges", "num_edges")):
        expected = [str(paper[name][key][column]) for column in table.columns]
        assert f"| {label} |  | {' | '.join(expected)} |" in lines
