"""Every claim of README.md about results, computed from the records; a failure says what to write."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import recomputed
import yaml
from recomputed import RESULTS, ROOT, Comparison, NodeRow

README = " ".join((ROOT / "README.md").read_text().split())
VISION = ("table03", "table04", "table06", "table07", "table08", "table09", "table10")
CURVES = ("figure02a", "figure05", "figure09", "figure10", "figure11", "figure12")  # of trained networks


def require(sentence: str) -> None:
    """The README has the sentence. Where records have changed it, the message is what to write."""
    assert sentence in README, f"README.md is not what the records say; write: {sentence}"


def rows_of(method: str) -> list[NodeRow]:
    return [
        row for row in recomputed.node_rows() if row.method == method and (row.shared or method == "base")
    ]


def counts(rows: list[NodeRow]) -> tuple[int, int, int]:
    return recomputed.above_equal_below(row.gain for row in rows)


def papers_above(rows: list[NodeRow]) -> int:
    return recomputed.above_equal_below(row.papers_gain for row in rows)[0]


def verb(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def rounded(value: float) -> str:
    return f"{round(value, 9) + 0.0:+.2f}"


def test_the_state_says_how_many_rows_of_ham_gain() -> None:
    rows = rows_of("HAM")
    up, equal, down = counts(rows)
    ours, papers = np.mean([row.gain for row in rows]), np.mean([row.papers_gain for row in rows])
    total = sum("+" not in cell.row for cell, _ in recomputed.node_cells())
    require(f"We ran {len(rows)} of the paper's {total} rows (a row is one network on one graph).")
    require(
        f"HAM is above its baseline (the same recipe without HAM) in {up}, equal in {equal} and below in "
        f"{down} (mean difference {rounded(ours)} points); in the paper, {papers_above(rows)} of the same "
        f"{len(rows)} rows are above (mean {rounded(papers)})."
    )


def test_gains_are_called_not_reproduced_only_while_they_are_not() -> None:
    """At most half of the rows are above their baseline; no gain is significant after Holm's correction."""
    rows = rows_of("HAM")
    _, adjusted = after_holm()
    gains = [row.gain > 0 and p < 0.05 for row, p in adjusted if row.method == "HAM"]
    assert "we could not reproduce HAM's gains on graphs." in README and "gains not reproduced" in README
    assert counts(rows)[0] <= len(rows) / 2 and not any(gains), "HAM has gains now: rewrite Status"


def after_holm() -> tuple[list[Comparison], list[tuple[NodeRow, float]]]:
    """All differences with an interval, validation and test, and the adjusted p of each."""
    tests = [
        (row, own)
        for row in recomputed.node_rows()
        for key in ("valid_best", "test_at_best")
        if row.shared and (own := recomputed.paired(row.differences(key))).has_interval
    ]
    adjusted = recomputed.holm([own.p for _, own in tests])
    return [own for _, own in tests], [(row, p) for (row, _), p in zip(tests, adjusted, strict=True)]


def test_the_intervals_are_counted() -> None:
    gains = [recomputed.paired(row.differences()) for row in recomputed.node_rows() if row.shared]
    tests = [own for own in gains if own.has_interval]
    clear = sum(own.excludes_0 for own in tests)
    require(f"Of the {len(tests)} 95 % confidence intervals of (method - baseline), {clear} exclude 0")
    require(f"exclude 0 (about {len(tests) / 20:.0f} expected by chance)")
    assert len(gains) > len(tests), "every difference has an interval now: leave the last sentence out"
    assert all(
        np.ptp(row.differences()) < 1e-9
        for row in recomputed.node_rows()
        if row.shared and not recomputed.paired(row.differences()).has_interval
    )
    require("There is no interval where the difference is the same for all seeds.")
    _, adjusted = after_holm()
    significant = sorted(f"{row.cell.row} on {row.cell.column}" for row, p in adjusted if p < 0.05)
    assert not significant, f"write that these are significant after Holm's correction: {significant}"
    require("none is significant after Holm's correction")


def test_the_rows_of_node_classification_are_counted() -> None:
    total = sum("+" not in cell.row for cell, _ in recomputed.node_cells())
    base = [row.against_paper for row in rows_of("base")]
    agree = sum(not own.excludes_0 for own in base)
    require(f"baselines | {len(base)} of {total} run, {agree} agree with the paper")
    require("A baseline agrees with the paper if Welch's 95 % interval of the difference contains 0.")
    require(f"Node classification, HAM | {len(rows_of('HAM'))} of {total} run: gains not reproduced")
    rows = rows_of("nHAM")
    up, equal, down = counts(rows)
    require(
        f"Node classification, nHAM | {len(rows)} of {total} run: {up} above their baseline, {equal} equal, "
        f"{down} below; in the paper {papers_above(rows)} above"
    )


def test_each_row_has_the_papers_number_of_seeds() -> None:
    require("Each row has the paper's number of seeds.")
    short = [row.cell.exp for row in recomputed.node_rows() if len(row.own) != len(row.cell.seeds)]
    assert not short, f"name these rows, which lack seeds: {short}"


def test_two_rows_collapse() -> None:
    """More than 10 points below their baseline."""
    low = [row for row in rows_of("nHAM") if row.gain < -10]
    assert ("two collapse" in README) == (len(low) == 2), f"collapsed: {[row.cell.exp for row in low]}"


def test_what_choosing_gains_by_chance_is_that_of_the_grids() -> None:
    paths = list((RESULTS / "node_grid").glob("*.json"))
    assert [path.stem for path in paths] == ["cora_sage"], "name all grids in the README"
    low, high = sorted(row.flipped_best.mean() for row in recomputed.grid_rows(paths[0]))
    require("The paper prints the best of 12 (alpha, beta): on cora with GraphSAGE the choice")
    require(f"alone adds {low:.2f} to {high:.2f} points if no pair has an effect")


# What is not run


def test_no_number_of_the_vision_tables_is_here() -> None:
    """A record of such a cell, or of a run of a figure, would be in results/runs beside node/ and graph/."""
    require("The ImageNet and CIFAR-100 results are not reproduced")
    require("Tables 3, 4, 6 to 10, Figures 2a, 5, 9 to 12 | every experiment exists; no number is reproduced")
    present = [path for path in (RESULTS / "runs").iterdir() if path.name not in ("node", "graph")]
    assert not present, f"these are run now, say so in Status and under What is reproduced: {present}"


def test_every_experiment_of_the_vision_tables_exists() -> None:
    cells = [cell for name in VISION for row in recomputed.table(name) for cell in row if cell]
    exps = {cell.exp for cell in cells}
    for name in CURVES:
        plan = yaml.safe_load((ROOT / "configs" / "figures" / f"{name}.yaml").read_text())
        exps |= {own["exp"] for own in plan.get("series", {}).values()} | {plan.get("exp", "dense")}
    assert len(exps) > 60
    assert not [exp for exp in exps if not (ROOT / "configs" / "exp" / f"{exp}.yaml").exists()]


def test_no_run_on_a_gpu_is_recorded() -> None:
    require("because no GPU run has been recorded yet")
    contents = [json.loads(path.read_text()) for path in RESULTS.rglob("seed*.json")]
    assert len(contents) > 300
    on_gpus = {own["exp"] for own in contents if own["provenance"]["hardware"]["gpus"]}
    assert not on_gpus, f"these have run on a GPU: {on_gpus}"


# The theory, and the demo


def test_the_simulated_figures_are_those_that_the_readme_names() -> None:
    require("Theory, Figures 1, 2b, 3, 4, 6, 7, 8 | simulated and tested")
    names = {path.stem for path in (RESULTS / "theory").glob("*.json")}
    assert names == {f"figure{number}" for number in ("01", "02b", "03", "04", "06", "07", "08")}
    assert not [name for name in names if not (RESULTS / "figures" / f"{name}.png").exists()]


def test_the_distances_of_figure_6_are_medians_of_its_simulations() -> None:
    data = json.loads((RESULTS / "theory" / "figure06.json").read_text())
    ends = {own["label"]: np.array(own["distances"])[:, -1] for own in data["series"]}
    require("Lines are medians over ten seeds")
    assert all(len(own) == 10 for own in ends.values())
    gd, ham, signed = (np.median(ends[label]) for label in ("GD", "HAM", "HAM signed"))
    require(f"Gradient descent ends at a distance of {gd:.2f} from the ground truth, HAM at {ham:.2f}.")
    require("simulated here with alpha = 1000")
    assert {own["alpha"] for own in data["series"] if "HAM" in own["label"]} == {1000}
    assert (ends["HAM signed"] > ends["HAM"]).all() and signed > ham, "'exceeds HAM's' is wrong"
    assert max(ends["HAM"]) < min(ends["GD"]), "the bands overlap: say so"


def test_the_time_of_the_demo_is_that_of_its_records() -> None:
    paths = sorted((RESULTS / "demo" / "acdc_ham_s90").glob("seed?.json"))
    seconds = [json.loads(path.read_text())["timing"]["seconds"] for path in paths]
    require(f"digits: our runs took {min(seconds):.0f} to {max(seconds):.0f} s on a CPU")


@pytest.mark.parametrize(
    "link", ["#where-nham-collapses", "#baselines-that-differ-from-the-paper", "#theory"]
)
def test_the_explanations_are_linked(link: str) -> None:
    assert re.search(rf"\(docs/decisions\.md{link}\)", README)


def test_the_study_has_a_result_once_its_primary_part_is_complete() -> None:
    arms = ("cifar100", "cifar100_ham", "cifar100_matched_decay", "cifar100_beta_only", "cifar100_alpha_only")
    files = [path for path in (RESULTS / "cifar16").glob("*/seed?.json")]
    ended = [path for path in files if json.loads(path.read_text())["exp"] in arms]
    page = (RESULTS / "tables" / "study_cifar16.md").read_text()
    headline = next(line for line in page.splitlines() if line.startswith("- Primary part: "))
    if len(ended) < 50:
        assert headline == f"- Primary part: {len(ended)} of 50 runs have ended; no result yet."
        require("[no result yet](results/tables/study_cifar16.md)")
    else:
        contrasts = headline.removeprefix("- Primary part: ").rstrip(".").split("; ")
        for contrast in contrasts:
            require(contrast)


def test_every_experiment_of_table_11_exists_and_only_a_small_model_has_records() -> None:
    require("LoRA: Table 11 | [a small model only](results/tables/smollm_table11.md)")
    assert list((RESULTS / "smollm").glob("lora_*/seed?.json"))
    exps = {cell.exp for row in recomputed.table("table11") for cell in row if cell}
    assert exps == {f"lora_llama{size}{method}" for size in ("1b", "3b") for method in ("", "_ham")}
    assert not [exp for exp in exps if not (ROOT / "configs" / "exp" / f"{exp}.yaml").exists()]
    assert not list((RESULTS / "runs").glob("lora_*"))


def test_every_experiment_of_table_12_exists_and_none_has_a_record() -> None:
    require("OGB graphs: Table 12 | not run")
    exps = {cell.exp for row in recomputed.table("table12") for cell in row if cell}
    sets = ("ppa", "molpcba", "molhiv", "code2")
    assert exps == {f"graph/ogbg_{name}{method}" for name in sets for method in ("", "_ham")}
    assert not [exp for exp in exps if not (ROOT / "configs" / "exp" / f"{exp}.yaml").exists()]
    assert not list((RESULTS / "runs" / "graph").glob("ogbg_*"))
