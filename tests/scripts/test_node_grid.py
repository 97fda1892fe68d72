"""scripts/node_grid.py: what a search is worth, by hand; what is no record is told in a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import node_grid
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ham.report import node_runs
from ham.report import spec as catalog
from ham.report.grid import Grid, Point, best, leave_one_seed_out, read, sign_flip_count
from ham.report.records import record_path
from ham.report.spec import RunSpec

EXP = "node/cora_sage"
PAIRS = [pair for method in ("ham", "nham") for pair in node_runs.GRID[method]]
MADE = {"commit": "a" * 40, "dirty": False, "hardware": {"cpu": "x"}, "versions": {"torch": "2"}}


def grid(valid: dict[tuple, list[float]] | None = None, test: dict[tuple, list[float]] | None = None) -> Grid:
    """One of five seeds; what is not named gains nothing."""
    leaves = [f"{EXP}_{method}" for method in ("ham", "nham")]
    hashes = {node_runs.published(exp): RunSpec(exp, 0).info.config_hash for exp in leaves}
    hashes[0, 0] = RunSpec(EXP, 0).info.config_hash
    points = []
    for number, pair in enumerate([(0, 0), *PAIRS]):
        gains = ((told or {}).get(pair, [0.0] * 5) for told in (valid, test))
        values = (tuple(80.0 + number_of + g for g in gain) for number_of, gain in enumerate(gains))
        points.append(Point(*pair, hashes.get(pair, f"{number:064x}"), *values))
    sizes = {"train": 140, "valid": 500, "test": 1000}
    graph = {"name": "cora", "metric": "accuracy", "nodes": sizes}
    return Grid(EXP, (0, 1, 2, 3, 4), graph, tuple(points), (MADE,))


def test_the_search_by_hand() -> None:
    gains = [[0.4, 0.0, -0.1], [0.2, 0.2, -0.4], [-0.2, 0.1, 0.3]]  # means 0.1, 0, 0.0667
    assert best(gains, [0, 1, 2]) == 0
    # without seed 0 the third is best, without 1 the first, without 2 the first two: the first of them
    assert leave_one_seed_out(gains) == [-0.2, 0.0, -0.1]
    # the best of each flip: +++ .1, ++- .27, +-+ .1, -++ .2, +-- .17, -+- .13, --+ .13, and --- below .1
    assert sign_flip_count(gains) == 7
    assert sign_flip_count([[0.1, 0.1, 0.1]]) == 1
    assert sign_flip_count([[0.0, 0.0]]) == 4
    with pytest.raises(ValueError, match="at most 12 seeds"):
        sign_flip_count([[0.0] * 13])


@given(st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_chance_counts_flips(gains: list[list[int]]) -> None:
    """Against whole numbers; and the more points, the better the best one looks by chance."""
    signs = np.array(np.meshgrid(*[[1, -1]] * 4)).reshape(4, -1)  # all 16
    count = int(((np.array(gains) @ signs).max(axis=0) >= np.array(gains).sum(axis=1).max()).sum())
    assert sign_flip_count(gains) == count >= 1
    assert count >= max(sign_flip_count([values]) for values in gains if sum(values) == max(map(sum, gains)))


def test_the_page_by_hand() -> None:
    """HAM: (10, 0.01) gains 0.2, 0.4, 0, 0.2, 0.2: mean 0.2, std 0.141, t 2.776: half width 0.176.

    Without the second seed (1, 0) with 0.4, -1, 0.3, 0.1, 0.1 is better; the paper's pair gains nothing.
    """
    own = node_runs.published(f"{EXP}_ham")
    assert own not in ((10, 0.01), (1, 0))
    valid = {(10, 0.01): [0.2, 0.4, 0.0, 0.2, 0.2], (1, 0): [0.4, -1.0, 0.3, 0.1, 0.1]}
    test = {(10, 0.01): [-0.1, 0.0, 0.0, 0.0, 0.1]}  # std 0.0707: half width 0.088
    text = node_grid.page([grid(valid, test)])
    ham, nham = (line for line in text.splitlines() if line.startswith("| cora |"))
    # left out: 0.2, -1, 0, 0.2, 0.2
    p = f"{flips(valid.values(), 1.0)} / 32"
    assert ham == (
        f"| cora | SAGE+HAM | 5 | (10, 0.01) | +0.20 [+0.02, +0.38] | {p} | -0.08 | "
        f"+0.00 [-0.09, +0.09] | ({own[0]:g}, {own[1]:g}): +0.00, 2-11 of 12 |"
    )
    pair = node_runs.published(f"{EXP}_nham")
    chosen = "(-1, 0), 11 equal"
    assert nham == (
        f"| cora | SAGE+nHAM | 5 | {chosen} | +0.00 | 32 / 32 | +0.00 | +0.00 | "
        f"({pair[0]:g}, {pair[1]:g}): +0.00, 1-12 of 12 |"
    )
    assert "Base: validation 80.00, test 81.00, 5 seeds." in text and "several machines" not in text
    assert "| 10 | +0.00 / +0.00 | +0.20 / +0.00 | +0.00 / +0.00 |" in text


def flips(gains: Iterable[list[float]], least: float) -> int:
    """Flips of five signs under which some sum is at least so much."""
    rows = [[round(10 * g) for g in values] for values in gains]
    return sum(
        any(sum(s * g for s, g in zip(signs, row, strict=True)) >= 10 * least for row in rows)
        for signs in product((1, -1), repeat=5)
    )


def test_machines_that_round_differently_are_told() -> None:
    other = MADE | {"hardware": {"cpu": "y"}}
    assert "from several machines" in node_grid.page([replace(grid(), provenance=(MADE, other))])


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
    elif how == "dirty":
        content["provenance"][0]["dirty"] = True
    elif how == "another":
        content["exp"] = "node/cora_gcn"
    elif how == "graph":
        graph.clear()
    else:
        del content["seeds"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("pairs", "its pairs are not those of the grid"),
        ("order", "its pairs are not those of the grid"),
        ("percentage", "has not one percentage for each seed"),
        ("lengths", "has not one percentage for each seed"),
        ("configuration", "node/cora_sage has another configuration today"),
        ("alike", "two of its pairs are one configuration"),
        ("seeds", "its seeds are not the paper's number"),
        ("dirty", "uncommitted changes"),
        ("another", "another configuration today"),
        ("graph", "cannot be read (KeyError('name'))"),
        ("missing", "cannot be read (KeyError('seeds'))"),
    ],
)
def test_what_is_no_record_is_told_in_a_line(
    how: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cora_sage.json"
    argv = ["--records", str(tmp_path), "--to", str(tmp_path / "page.md")]
    assert node_grid.main(argv) == 2
    assert "no whole grid in" in capsys.readouterr().err
    path.write_text(json.dumps(asdict(grid())))
    assert node_grid.main(argv) == 0 and read(path) == grid()
    content = json.loads(path.read_text())
    damaged(content, how)
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert node_grid.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_configurations_that_moved_on_are_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cora_sage.json").write_text(json.dumps(asdict(grid())))
    catalog.lock.cache_clear()
    monkeypatch.setattr(catalog, "configs_digest", lambda: "another")
    try:
        assert node_grid.main(["--records", str(tmp_path), "--to", str(tmp_path / "page.md")]) == 2
    finally:
        catalog.lock.cache_clear()
    (line,) = capsys.readouterr().err.splitlines()
    assert "configs/ has changed since lock.json was written" in line


def test_a_record_lies_under_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cora_gcn.json").write_text(json.dumps(asdict(grid())))
    assert node_grid.main(["--records", str(tmp_path), "--to", str(tmp_path / "page.md")]) == 2
    assert "it belongs into cora_sage.json" in capsys.readouterr().err
    (tmp_path / "cora_gcn.json").rename(tmp_path / "cora_sage.json")
    assert node_grid.main(["--records", str(tmp_path), "--to", "/proc/page.md"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_committed_page_is_that_of_the_committed_grids(tmp_path: Path) -> None:
    if not node_grid.FOLDER.exists():
        pytest.skip("no grid is committed")
    assert node_grid.main(["--to", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == node_grid.TARGET.read_text()
    for path in node_grid.FOLDER.glob("*.json"):
        whole = read(path)
        for suffix in ("", "_ham", "_nham"):  # what is also a record of the tables is the same
            pair = node_runs.published(whole.exp + suffix) if suffix else (0, 0)
            (point,) = (p for p in whole.points if (p.alpha, p.beta) == pair)
            for place, seed in enumerate(whole.seeds):
                kept = record_path(whole.exp + suffix, seed)
                if kept.exists():
                    metrics = json.loads(kept.read_text())["metrics"]
                    assert metrics["valid_best"] == point.valid[place]
                    assert metrics["test_at_best"] == point.test[place]
