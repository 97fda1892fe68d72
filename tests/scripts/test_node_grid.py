"""scripts/node_grid.py: what a search is worth, by hand; what is no record is told in a line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import node_grid
import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_grid import Grid, Point, best, chance, left_out
from paper import node_runs
from paper.catalog import Run
from paper.records import record_path

EXP = "node/cora_sage"
PAIRS = [pair for method in ("ham", "nham") for pair in node_runs.GRID[method]]


def grid(gains: dict[tuple[float, float], list[float]] | None = None) -> Grid:
    """One of three seeds; pairs that are not named gain nothing."""
    hashes = {
        node_runs.published(f"{EXP}_{m}"): Run(f"{EXP}_{m}", 0).facts.config_hash for m in ("ham", "nham")
    }
    hashes[0, 0] = Run(EXP, 0).facts.config_hash
    points = []
    for pair in [(0, 0), *PAIRS]:
        gain = (gains or {}).get(pair, [0, 0, 0])
        valid = tuple(80.0 + g for g in gain)
        points.append(Point(*pair, hashes.get(pair, "f" * 64), valid, tuple(v + 3 for v in valid)))
    nodes_of = {"train": 140, "valid": 500, "test": 1000}
    graph = {"name": "cora", "metric": "accuracy", "nodes": nodes_of}
    return Grid(EXP, (0, 1, 2), graph, tuple(points), ({"commit": "a" * 40, "dirty": False},))


def test_the_search_by_hand() -> None:
    gains = [[0.4, 0.0, -0.1], [0.2, 0.2, -0.4], [-0.2, 0.1, 0.3]]  # means 0.1, 0, 0.0667
    assert best(gains, [0, 1, 2]) == 0
    # without seed 0 the third is best, without 1 the first, without 2 the first two: the first of them
    assert left_out(gains) == [-0.2, 0.0, -0.1]
    # the best of each flip: +++ .1, ++- .27, +-+ .1, -++ .2, +-- .17, -+- .13, --+ .13, and --- below .1
    assert chance(gains) == 7 / 8
    assert chance([[0.1, 0.1, 0.1]]) == 1 / 8
    assert chance([[0.0, 0.0]]) == 1.0
    with pytest.raises(ValueError, match="at most 12 seeds"):
        chance([[0.0] * 13])


@given(st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=5))
def test_a_search_is_no_worse_than_its_points(gains: list[list[int]]) -> None:
    """The more points, the better the best one looks by chance."""
    p = chance(gains)
    assert 1 / 16 <= p <= 1  # the flip that changes nothing
    assert p >= max(chance([values]) for values in gains if sum(values) == max(map(sum, gains)))


def test_the_page_by_hand() -> None:
    """HAM's best pair is (10, 0.01); the paper's (alpha, beta) of cora, SAGE gains nothing."""
    own = node_runs.published(f"{EXP}_ham")
    assert own != (10, 0.01)
    text = node_grid.page([grid({(10, 0.01): [0.2, 0.4, 0.0]})])
    ham, nham = (line for line in text.splitlines() if line.startswith("| cora |"))
    assert ham == (
        "| cora | SAGE+HAM | 3 | (10, 0.01) | +0.20 [-0.30, +0.70] | 0.25 | +0.20 [-0.30, +0.70] | "
        f"+0.20 [-0.30, +0.70] | ({own[0]:g}, {own[1]:g}): +0.00, 2 of 12 |"
    )
    assert "| 0.00 |" not in nham and "| 1.00 |" in nham
    assert "Base: validation 80.00, test 83.00, 3 seeds." in text
    assert "| 10 | +0.00 / +0.00 | +0.20 / +0.20 | +0.00 / +0.00 |" in text


def damaged(content: dict, how: str) -> None:
    """Spoil a record."""
    if how == "pairs":
        content["points"].pop()
    elif how == "percentage":
        content["points"][3]["valid"][0] = 101
    elif how == "configuration":
        content["points"][0]["config_hash"] = "0" * 64
    else:
        del content["seeds"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("pairs", "its pairs are not those of the grid"),
        ("percentage", "has not one percentage for each seed"),
        ("configuration", "node/cora_sage has another configuration today"),
        ("seeds", "cannot be read (KeyError('seeds'))"),
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
    assert node_grid.main(argv) == 0 and node_grid.read(path) == grid()
    content = json.loads(path.read_text())
    damaged(content, how)
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert node_grid.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_the_committed_page_is_that_of_the_committed_grids(tmp_path: Path) -> None:
    if not node_grid.FOLDER.exists():
        pytest.skip("no grid is committed")
    assert node_grid.main(["--to", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == node_grid.TARGET.read_text()
    for path in node_grid.FOLDER.glob("*.json"):
        whole = node_grid.read(path)
        for suffix in ("", "_ham", "_nham"):  # what is also a record of the tables is the same
            pair = node_runs.published(whole.exp + suffix) if suffix else (0, 0)
            (point,) = (p for p in whole.points if (p.alpha, p.beta) == pair)
            for place, seed in enumerate(whole.seeds):
                kept = record_path(whole.exp + suffix, seed)
                if kept.exists():
                    metrics = json.loads(kept.read_text())["metrics"]
                    assert metrics["valid_best"] == point.valid[place]
                    assert metrics["test_at_best"] == point.test[place]
