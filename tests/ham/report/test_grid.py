"""Search grids: the statistics by hand, the page, records of runs, and invalid records as one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from commands import script
from hypothesis import given
from hypothesis import strategies as st

from ham.report import grid as grid_records
from ham.report import records, search_grid
from ham.report import spec as lock_file
from ham.report.grid import FOLDER, Grid, Point, best, chance_gain, leave_one_seed_out, read, sign_flip_count
from ham.report.grid_page import PAGE, page
from ham.report.spec import RunSpec, canonical

EXP = "node/cora_sage"
PAIRS = search_grid.pairs(EXP)
COMMAND = script("node_grid")
PROVENANCE = {"commit": "a" * 40, "dirty": False, "hardware": {"cpu": "x"}, "versions": {"torch": "2"}}


def grid(valid: dict[tuple, list[float]] | None = None, test: dict[tuple, list[float]] | None = None) -> Grid:
    """A grid of five seeds; pairs that are not given gain nothing."""
    points = []
    for pair, run in zip(PAIRS, search_grid.runs(EXP, [0]), strict=True):
        gains = ((given or {}).get(pair, [0.0] * 5) for given in (valid, test))
        values = (tuple(80.0 + number_of + g for g in gain) for number_of, gain in enumerate(gains))
        points.append(Point(*pair, run.info.config_hash, *values))
    sizes = {"train": 140, "valid": 500, "test": 1000}
    graph = {"name": "cora", "metric": "accuracy", "nodes": sizes}
    return Grid(EXP, (0, 1, 2, 3, 4), graph, tuple(points), (PROVENANCE,))


def test_the_search_by_hand() -> None:
    gains = [[0.4, 0.0, -0.1], [0.2, 0.2, -0.4], [-0.2, 0.1, 0.3]]  # means 0.1, 0, 0.0667
    assert best(gains, [0, 1, 2]) == 0
    # without seed 0 the third is best, without 1 the first, without 2 the first two: the first of them
    assert leave_one_seed_out(gains) == [-0.2, 0.0, -0.1]
    # the best of each flip: +++ .1, ++- .27, +-+ .1, -++ .2, +-- .17, -+- .13, --+ .13, and --- below .1
    assert sign_flip_count(gains) == 7
    # by chance: the mean of these and of ---, where the second has .0, the third -.07 and the first -.1
    assert chance_gain(gains) == pytest.approx((0.3 + 0.8 + 0.3 + 0.6 + 0.5 + 0.4 + 0.4 + 0.0) / 3 / 8)
    assert leave_one_seed_out([[0.1, 0.2]]) == [0.1, 0.2]
    assert sign_flip_count([[0.1, 0.1, 0.1]]) == 1
    assert sign_flip_count([[0.0, 0.0]]) == 4
    with pytest.raises(ValueError, match="at most 12 seeds"):
        sign_flip_count([[0.0] * 13])
    assert sign_flip_count([[0.0] * 12]) == 2**12


@given(st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=5))
def test_sign_flips_are_counted(gains: list[list[int]]) -> None:
    """Against integers; and with more points the best one is better by chance."""
    signs = np.array(np.meshgrid(*[[1, -1]] * 4)).reshape(4, -1)  # all 16
    flipped = (np.array(gains) @ signs).max(axis=0)
    count = int((flipped >= np.array(gains).sum(axis=1).max()).sum())
    assert sign_flip_count(gains) == count >= 1
    assert chance_gain(gains) == pytest.approx(flipped.mean() / 4)
    assert chance_gain(gains[:1]) == pytest.approx(0)  # nothing is chosen
    assert count >= max(sign_flip_count([values]) for values in gains if sum(values) == max(map(sum, gains)))


def test_the_page_by_hand() -> None:
    """HAM: (10, 0.01) gains 0.2, 0.4, 0, 0.2, 0.2: mean 0.2, std 0.141, t 2.776: half width 0.176.

    Without the second seed (1, 0) with 0.4, -1, 0.3, 0.1, 0.1 is better; the paper's pair gains nothing.
    """
    own = search_grid.published(f"{EXP}_ham")
    assert own not in ((10, 0.01), (1, 0))
    valid = {(10, 0.01): [0.2, 0.4, 0.0, 0.2, 0.2], (1, 0): [0.4, -1.0, 0.3, 0.1, 0.1]}
    test = {(10, 0.01): [-0.1, 0.0, 0.0, 0.0, 0.1]}  # std 0.0707: half width 0.088
    text = page([grid(valid, test)])
    ham, nham = (line for line in text.splitlines() if line.startswith("| cora |"))
    # leave one out: 0.2, -1, 0, 0.2, 0.2
    p = f"{flips(valid.values(), 1.0)} / 32"
    by_chance = mean(
        max(0, *(np.array(own) @ s / 5 for own in valid.values())) for s in product((1, -1), repeat=5)
    )
    assert ham == (
        f"| cora | SAGE+HAM | 5 | (10, 0.01) | +0.20 [+0.02, +0.38] | {p} | {by_chance:+.2f} | -0.08 | "
        f"+0.00 [-0.09, +0.09] | ({own[0]:g}, {own[1]:g}): +0.00, 2-11 of 12 |"
    )
    pair = search_grid.published(f"{EXP}_nham")
    chosen = "(-1, 0), 11 equal"
    assert nham == (
        f"| cora | SAGE+nHAM | 5 | {chosen} | +0.00 | 32 / 32 | +0.00 | +0.00 | +0.00 | "
        f"({pair[0]:g}, {pair[1]:g}): +0.00, 1-12 of 12 |"
    )
    assert "Baseline: validation 80.00, test 81.00, 5 seeds." in text and "several machines" not in text
    assert "| 10 | +0.00 / +0.00 | +0.20 / +0.00 | +0.00 / +0.00 |" in text


def flips(gains: Iterable[list[float]], least: float) -> int:
    """Flips of five signs under which some sum is at least so much."""
    rows = [[round(10 * g) for g in values] for values in gains]
    return sum(
        any(sum(s * g for s, g in zip(signs, row, strict=True)) >= 10 * least for row in rows)
        for signs in product((1, -1), repeat=5)
    )


def test_machines_that_differ_in_rounding_are_reported() -> None:
    other = PROVENANCE | {"hardware": {"cpu": "y"}}
    assert "from several machines" in page([replace(grid(), provenance=(PROVENANCE, other))])


def damaged(content: dict, how: str) -> None:
    """Spoil a record."""
    point, graph = content["points"][3], content["graph"]
    if how == "pairs":
        content["points"].pop()
    elif how == "order":
        content["points"].reverse()
    elif how == "percentage":
        point["valid"][0] = 101
    elif how == "lengths":
        point["test"].append(point["valid"].pop())
    elif how == "configuration":
        content["points"][0]["config_hash"] = "e" * 64
    elif how == "alike":
        point["config_hash"] = content["points"][4]["config_hash"]
    elif how == "seeds":
        content["seeds"] = [0, 1, 2, 3, 3]
    elif how == "negative":
        point["test"][0] = -0.1
    elif how == "text":
        point["test"][0] = "80"
    elif how == "commit":
        del content["provenance"][0]["commit"]
    elif how == "hardware":
        del content["provenance"][0]["hardware"]
    elif how == "torch":
        content["provenance"][0]["versions"] = {"numpy": "2"}
    elif how == "nan":
        content["provenance"][0]["threads"] = float("nan")
    elif how == "unknown":
        content["exp"] = "node/cora_mlp"
    elif how == "dirty":
        content["provenance"][0]["dirty"] = True
    elif how == "another":
        content["exp"] = "node/cora_gcn"
    elif how == "graph":
        graph.clear()
    elif how in ("", "citeseer"):
        graph["name"] = how
    else:
        del content["seeds"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("pairs", "its pairs are not those of the search"),
        ("order", "its pairs are not those of the search"),
        ("percentage", "does not have one percentage per seed"),
        ("lengths", "does not have one percentage per seed"),
        ("negative", "(1, 0.1) does not have one percentage per seed"),
        ("text", "(1, 0.1) does not have one percentage per seed"),
        ("commit", "the commit of its code is unknown"),
        ("hardware", "cannot be read (KeyError('hardware')): collect it again with --runs"),
        ("torch", "cannot be read (KeyError('torch'))"),
        ("nan", "it is incomplete: it holds nan"),
        ("unknown", "node/cora_mlp has no search in node classification: delete the record"),
        ("configuration", "(0, 0) has another configuration now"),
        ("alike", "(1, 0.1) has another configuration now"),
        ("seeds", "its number of seeds is not the paper's"),
        ("dirty", "uncommitted changes"),
        ("another", "another configuration now"),
        ("graph", "it is incomplete: graph.name is missing or invalid"),
        ("", "its graph is '', and not that of node/cora_sage: collect it again with --runs"),
        ("citeseer", "its graph is 'citeseer', and not that of node/cora_sage"),
        ("missing", "cannot be read (KeyError('seeds'))"),
    ],
)
def test_an_invalid_record_is_one_line(
    how: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cora_sage.json"
    argv = ["--records", str(tmp_path), "--to", str(tmp_path / "page.md")]
    assert COMMAND.main(argv) == 2
    assert "no complete grid in" in capsys.readouterr().err
    path.write_text(json.dumps(asdict(grid())))
    assert COMMAND.main(argv) == 0 and read(path) == grid()
    content = json.loads(path.read_text())
    damaged(content, how)
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert COMMAND.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_percentages_may_be_0_and_100(tmp_path: Path) -> None:
    base, *others = grid().points
    own = replace(grid(), points=(replace(base, valid=(0, 100, 0, 0, 0), test=(100,) * 5), *others))
    (tmp_path / "cora_sage.json").write_text(json.dumps(asdict(own)))
    assert grid_records.read_all(tmp_path) == ([own], [])


def test_gains_are_over_the_base_and_pairs_are_sorted_by_the_sign_of_alpha() -> None:
    own = grid({(10, 0.01): [0.5, 0, 0, 0, -0.5]}, {(10, 0.01): [1.0] * 5})
    (point,) = (p for p in own.points if (p.alpha, p.beta) == (10, 0.01))
    assert own.gains(point) == [0.5, 0, 0, 0, -0.5] and own.gains(point, "test") == [1.0] * 5
    with pytest.raises(ValueError, match="longer"):
        own.gains(replace(point, valid=(80.0,)))
    by_sign = {sign: {p.alpha for p in own.points_of(sign)} for sign in (1, -1, 0)}
    assert by_sign == {1: {1, 10, 100, 200}, -1: {-1, -10, -100, -200}, 0: {0}}
    assert [len(own.points_of(sign)) for sign in (1, -1, 0)] == [12, 12, 2]


def test_changed_configurations_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cora_sage.json").write_text(json.dumps(asdict(grid())))
    lock_file.lock.cache_clear()
    monkeypatch.setattr(lock_file, "configs_digest", lambda: "another")
    try:
        assert COMMAND.main(["--records", str(tmp_path), "--to", str(tmp_path / "page.md")]) == 2
    finally:
        lock_file.lock.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert "configs/ has changed since lock.json was written" in line


def test_a_record_has_the_name_of_its_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cora_gcn.json").write_text(json.dumps(asdict(grid())))
    assert COMMAND.main(["--records", str(tmp_path), "--to", str(tmp_path / "page.md")]) == 2
    assert "move it to cora_sage.json" in capsys.readouterr().err
    (tmp_path / "cora_gcn.json").rename(tmp_path / "cora_sage.json")
    assert COMMAND.main(["--records", str(tmp_path), "--to", "/proc/page.md"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_committed_page_is_that_of_the_committed_grids(tmp_path: Path) -> None:
    if not FOLDER.exists():
        pytest.skip("no grid is committed")
    assert COMMAND.main(["--to", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()
    for path in FOLDER.glob("*.json"):
        committed = read(path)
        for suffix in ("", "_ham", "_nham"):  # runs that also have a record of their own
            pair = search_grid.published(committed.exp + suffix) if suffix else (0, 0)
            (point,) = (p for p in committed.points if (p.alpha, p.beta) == pair)
            for place, seed in enumerate(committed.seeds):
                record = records.record_path(committed.exp + suffix, seed)
                if record.exists():
                    metrics = json.loads(record.read_text())["metrics"]
                    assert metrics["valid_best"] == point.valid[place]
                    assert metrics["test_at_best"] == point.test[place]


@pytest.fixture
def searched(tmp_path: Path, make_summary: Callable[..., dict], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run directories of the search of EXP with seeds 3 and 4, without committed records; returns them."""
    search = replace(search_grid.searches()[EXP], seeds=(3, 4))
    monkeypatch.setattr(search_grid, "searches", lambda: {EXP: search})
    monkeypatch.setattr(grid_records, "path_of", lambda run: tmp_path / "nothing is committed")
    graph = {"name": "cora", "metric": "accuracy", "nodes": {"train": 140, "valid": 500, "test": 1000}}
    for number, run in enumerate(search_grid.runs(EXP, (3, 4))):
        metrics = {"valid_last": 70.0, "valid_best": 70 + number / 10, "test_at_best": 80 - number / 10}
        folder = run.folder(tmp_path / "runs")
        folder.mkdir(parents=True)
        summary = make_summary(run, graph=graph, metrics=metrics)
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "runs"


def test_a_grid_is_recorded_when_it_is_complete(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--runs", str(searched), "--records", str(tmp_path / "grids"), "--to", str(tmp_path / "page.md")]
    base = RunSpec(EXP, 3).folder(searched)
    base.rename(tmp_path / "base")
    assert COMMAND.main(argv) == 2
    first, _ = capsys.readouterr().err.splitlines()
    assert (
        first == "node_grid.py: left out cora_sage: 1 of 54 runs are not done, such as node/cora_sage seed 3"
    )
    (tmp_path / "base").rename(base)
    assert COMMAND.main(argv) == 0
    assert "## cora, SAGE" in (tmp_path / "page.md").read_text()
    recorded = read(tmp_path / "grids" / "cora_sage.json")
    assert recorded.seeds == (3, 4) and len(recorded.points) == len(PAIRS) == 27
    text = (tmp_path / "grids" / "cora_sage.json").read_text()
    assert text.rstrip() == json.dumps(json.loads(text), indent=1)
    assert len(recorded.provenance) == 1 and "argv" not in recorded.provenance[0]
    for number, point in enumerate(recorded.points):
        assert (point.alpha, point.beta) == PAIRS[number]
        assert point.valid == (70 + number / 10, 70 + (number + 27) / 10)
        assert point.test == (80 - number / 10, 80 - (number + 27) / 10)
    next(searched.glob(f"{EXP}_ham-*/seed3/summary.json")).unlink()
    assert COMMAND.main(argv) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 54 runs are not done" in line and line.endswith("; its earlier record is kept")


def test_the_published_pair_is_the_experiments_own_run() -> None:
    own = {run for run in search_grid.runs(EXP, [0]) if not run.overrides}
    assert own == {RunSpec(EXP, 0), RunSpec(f"{EXP}_ham", 0), RunSpec(f"{EXP}_nham", 0)}
    assert all(canonical(run) == run for run in search_grid.runs(EXP, [0]))


def test_runs_of_another_configuration_are_not_recorded(searched: Path, tmp_path: Path) -> None:
    path = RunSpec(EXP, 4).folder(searched) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config_hash": "0" * 64}))
    (problem,) = grid_records.record_all(searched, tmp_path / "grids")
    assert problem == "cora_sage: 1 of 54 runs are not done, such as node/cora_sage seed 4"
    assert not (tmp_path / "grids").exists()


def test_an_invalid_run_of_a_search_is_named_with_its_file(searched: Path, tmp_path: Path) -> None:
    path = RunSpec(EXP, 4).folder(searched) / "summary.json"
    content = json.loads(path.read_text())
    for altered, reason in (
        ({"seed": 3}, f"it is the record of {EXP} seed 3: move it to {EXP}/seed3"),
        ({"provenance": content["provenance"] | {"dirty": True}}, "its code had uncommitted changes"),
        ({"status": "stopped"}, "its status is 'stopped'"),
    ):
        path.write_text(json.dumps(content | altered))
        (problem,) = grid_records.record_all(searched, tmp_path / "grids")
        assert problem.startswith(f"cora_sage: {path}: {reason}")
    path.write_text("[]")
    (problem,) = grid_records.record_all(searched, tmp_path / "grids")
    assert problem.startswith(f"cora_sage: {path}: it is incomplete: not a JSON object")


def test_each_search_that_cannot_be_recorded_is_a_line(tmp_path: Path) -> None:
    for exp in ("graph/ogbg_code2_ham", "graph/ogbg_ppa_ham", "node/cora_gcn_nham", "node/cora_sage_ham"):
        folder = tmp_path / "runs" / f"{exp}-12345678" / "seed0"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
    problems = grid_records.record_all(tmp_path / "runs", tmp_path / "grids")
    starts = ["cora_gcn", "cora_sage", "graph/ogbg_code2", "graph/ogbg_ppa"]
    assert sorted(line.partition(":")[0] for line in problems) == starts
    assert not [line for line in problems if "kept" in line]
    assert grid_records.record_all(tmp_path / "none", tmp_path / "grids") == []


def test_runs_of_two_commits_are_two_provenances_in_a_folder_that_may_exist(
    searched: Path, tmp_path: Path
) -> None:
    path = RunSpec(EXP, 4).folder(searched) / "summary.json"
    content = json.loads(path.read_text())
    content["provenance"]["commit"] = "b" * 40
    path.write_text(json.dumps(content))
    for _ in range(2):
        assert grid_records.record_all(searched, tmp_path / "a" / "grids") == []
    recorded = read(tmp_path / "a" / "grids" / "cora_sage.json")
    assert [part["commit"][:1] for part in recorded.provenance] == ["0", "b"]
    assert not [part for part in recorded.provenance if {"argv", "config_hash"} & part.keys()]


def test_a_committed_record_stands_in_for_a_base_of_another_configuration(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = RunSpec(EXP, 4).folder(searched) / "summary.json"
    content = json.loads(path.read_text())
    (tmp_path / "committed.json").write_text(json.dumps(content))
    path.write_text(json.dumps(content | {"config_hash": "0" * 64}))
    monkeypatch.setattr(grid_records, "path_of", lambda run: tmp_path / "committed.json")
    assert grid_records.record_all(searched, tmp_path / "grids") == []
    assert read(tmp_path / "grids" / "cora_sage.json").points[0].valid[1] == content["metrics"]["valid_best"]


def test_the_graph_of_a_search_is_that_of_its_first_run(searched: Path, tmp_path: Path) -> None:
    path = RunSpec(EXP, 3).folder(searched) / "summary.json"
    content = json.loads(path.read_text())
    content["graph"]["nodes"]["valid"] = 501
    path.write_text(json.dumps(content))
    assert grid_records.collect(EXP, searched).graph == content["graph"]
