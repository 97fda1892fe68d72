"""The theory's figures: the committed data can be regenerated, and the drawings are reproducible."""

import json
import re

import numpy as np
import pytest
from commands import script

from ham import theory
from ham.files import RESULTS
from ham.report import theory_figures as figures
from ham.report.spec import PlanError

theory_runs = script("theory_runs")
DRAWN = ["figure01", "figure02b", "figure03", "figure04", "figure06", "figure07", "figure08"]


def committed(name):
    return json.loads((figures.DATA / f"{name}.json").read_text())


def test_what_is_simulated_is_what_is_drawn():
    assert list(theory_runs.RUNS) == list(figures.FIGURES) == DRAWN


@pytest.mark.parametrize("name", DRAWN)
def test_data_have_their_provenance_and_no_path(name):
    data = committed(name)
    assert {"commit", "dirty", "python", "versions", "hardware"} <= data["provenance"].keys()
    assert data["provenance"]["dirty"] is False
    assert re.fullmatch("[0-9a-f]{40}", data["provenance"]["commit"])
    assert data["settings"]
    assert not re.search(r"/(home|root|tmp|work|usr)\b", json.dumps(data))


@pytest.mark.parametrize("name", ["figure06", "figure07", "figure08"])
def test_committed_distances_are_those_of_the_library(name):
    """The first hundred steps of two seeds again."""
    data = committed(name)
    steps = [k for k in data["steps"] if k <= 100]
    assert len(data["settings"]["seeds"]) >= 10
    for series in data["series"]:
        for seed in (0, 9):
            again = theory.simulate_linear_regression(
                series["method"], alpha=series["alpha"], lr=series["lr"], steps=100, seed=seed,
                theta0=series["start"], record=steps,
            )  # fmt: skip
            np.testing.assert_allclose(series["distances"][seed][: len(steps)], again, rtol=1e-5)


def test_committed_distances_end_as_stated():
    last = {
        (series["label"], name): series["distances"][0][-1]
        for name in ("figure06", "figure07", "figure08")
        for series in committed(name)["series"]
    }
    assert last["GD", "figure06"] == pytest.approx(1.886, abs=1e-3)
    assert last["HAM", "figure06"] == pytest.approx(0.590, abs=1e-3)
    assert 0 < last["HAM signed", "figure06"] - last["HAM", "figure06"] < 0.01
    assert last["hyperbolic step alone", "figure07"] > 5
    ends = [np.median(np.array(series["distances"])[:, -1]) for series in committed("figure08")["series"]]
    assert ends == sorted(ends, reverse=True)


def test_committed_quadrants_are_lemma_e_1_and_theorem_e_2():
    for kind, paths in committed("figure04")["paths"].items():
        learned = {tuple(path["case"]) for path in paths if path["learned"]}
        assert learned == ({(1, 1)} if kind == "gd" else {(1, 1), (-1, 1)})
        assert all(path["learned"] for path in paths if tuple(path["case"]) in learned)


def test_simulating_and_drawing_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(theory_runs, "STEPS", 200)
    monkeypatch.setattr(theory_runs, "SEEDS", range(2))
    assert theory_runs.main(["--to", str(tmp_path / "data"), "--figure", "3", "6", "figure02b"]) == 0
    names = ["figure02b", "figure03", "figure06"]
    paths = figures.draw(names, tmp_path / "a", tmp_path / "data")
    assert [path.name for path in paths] == [
        f"{name}.{ending}" for name in names for ending in ("pdf", "png")
    ]
    again = figures.draw(names[:1], tmp_path / "b", tmp_path / "data")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths[:2]]


def test_the_committed_figures_are_what_the_code_draws(tmp_path, same_picture):
    paths = figures.draw(DRAWN, tmp_path)
    assert len(paths) == 2 * len(DRAWN)
    for path in paths:
        assert same_picture(path, RESULTS / "figures" / path.name), f"{path.name}: run make results"


def test_wrong_use_names_the_cure(tmp_path, capsys):
    assert theory_runs.main(["--figure", "5"]) == 2
    assert "unknown theory figure 'figure05': choose one of figure01" in capsys.readouterr().err
    with pytest.raises(PlanError, match=r"run python scripts/theory_runs.py first"):
        figures.draw(["figure06"], tmp_path, tmp_path)
