"""The theory's figures: the committed data can be regenerated, and the drawings are reproducible."""

import json
import re

import numpy as np
import pytest
from commands import script
from matplotlib.colors import to_hex

from ham import theory
from ham.files import RESULTS
from ham.report import theory_figures as figures
from ham.report.odd_files import InvalidRecord
from ham.report.spec import PlanError
from ham.report.theory_data import show

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


def made(labels, *, seeds=3):
    """Distances at steps 0, 1, 10 and 100; those of seed k of a series are k above the lowest."""
    series = [
        {"label": label, "distances": [[9, 4 + j + k, 3 + j + k, 2 + j + 2 * k] for k in range(seeds)]}
        for j, label in enumerate(labels)
    ]
    return {"steps": [0, 1, 10, 100], "series": series, "settings": {"seeds": list(range(seeds))}}


def test_distances_are_medians_with_ranges_and_step_0_is_left_out():
    data = made(["HAM", "GD", "hyperbolic step alone"])
    (axes,) = figures.FIGURES["figure07"](data).axes
    for j, (line, band) in enumerate(zip(axes.get_lines(), axes.collections, strict=True)):
        assert list(line.get_xdata()) == [1, 10, 100]
        assert list(line.get_ydata()) == [5 + j, 4 + j, 4 + j]
        corners = {tuple(map(float, corner)) for corner in band.get_paths()[0].vertices}
        low, high = {(1, 4 + j), (10, 3 + j), (100, 2 + j)}, {(1, 6 + j), (10, 5 + j), (100, 6 + j)}
        assert corners == low | high
        assert band.get_alpha() < 0.3 and list(band.get_linewidth()) == [0]
        assert to_hex(band.get_facecolor()[0]) == to_hex(line.get_color())
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "HAM (4)",
        "GD (5)",
        "hyperbolic step alone (6)",
    ]
    assert legend.get_title().get_text() == "median (at the end) and\nrange of 3 seeds"
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylim()[0]) == ("log", "linear", 0)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "distance to the truth")
    assert axes.get_title() == "Sparse regression from the wrong signs"


def test_the_strengths_of_figure_8_are_named_and_its_distances_logarithmic():
    (axes,) = figures.FIGURES["figure08"](made("abcd")).axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == [f"alpha = 1e{3 + j}, lr = 1e-{4 + j} ({4 + j})" for j in range(4)]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_title() == "HAM with more alpha and a smaller learning rate"
    with pytest.raises(ValueError, match="zip"):
        figures.FIGURES["figure08"](made("abc"))


def test_the_cost_of_the_early_sign_is_a_difference_of_each_seed():
    """HAM signed is 1 above HAM in each seed and at each step, but for one seed's last step."""
    data = made(["GD", "HAM", "HAM signed"])
    data["series"][2]["distances"][0][-1] += 0.5
    left, right = figures.FIGURES["figure06"](data).axes
    zero, median = right.get_lines()
    assert list(zero.get_ydata()) == [0, 0]
    assert (list(median.get_xdata()), list(median.get_ydata())) == ([1, 10, 100], [1, 1, 1])
    corners = {tuple(map(float, corner)) for corner in right.collections[0].get_paths()[0].vertices}
    assert corners == {(1, 1), (10, 1), (100, 1), (100, 1.5)}
    assert (right.get_xscale(), right.get_xlabel()) == ("log", "step")
    assert right.get_ylabel() == "difference of the distances"
    assert left.get_title() == "Sparse regression from zero" and len(left.get_lines()) == 3


def test_figure_1_names_strengths_start_and_optimum():
    data = committed("figure01")
    left, right = figures.FIGURES["figure01"](data).axes
    texts = [text.get_text() for text in left.get_legend().get_texts()]
    assert texts == ["GD", "m * w, gamma = 0.05", "HAM, alpha = 1"]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["GD", "m * w", "HAM"]
    marks = {text.get_text(): text.get_position() for text in left.texts}
    assert marks == {" start": (-1, 0.05), " optimum": (1, 0.05)}
    assert [list(line.get_xdata()) for line in left.get_lines()[3:]] == [[-1, -1], [1, 1]]
    assert [list(line.get_ydata()) for line in right.get_lines()[3:]] == [[0, 0], [1, 1]]
    assert left.get_ylim() == (0, 3.4)
    for place, kind in enumerate(("gd", "product", "ham")):
        assert list(left.get_lines()[place].get_ydata()) == data["inverse_metric"][kind]
        assert list(right.get_lines()[place].get_ydata()) == data["flow"][kind]


def test_figure_2b_lies_between_the_square_and_the_absolute_value():
    (axes,) = figures.FIGURES["figure02b"](committed("figure02b")).axes
    square, *others, absolute = axes.get_lines()
    theta = np.array(square.get_xdata())
    np.testing.assert_allclose(square.get_ydata(), theta**2, atol=1e-6)
    np.testing.assert_array_equal(absolute.get_ydata(), np.abs(theta))
    alphas = committed("figure02b")["settings"]["alphas"]
    expected = ["alpha to 0: theta^2", *(f"HAM, alpha = {alpha:g}" for alpha in alphas[1:]), "|theta|"]
    assert [line.get_label() for line in (square, *others, absolute)] == expected
    assert list(axes.get_xticks()) == [-1, -0.5, 0, 0.5, 1]
    short = committed("figure02b") | {"normalised": committed("figure02b")["normalised"][:-1]}
    with pytest.raises(ValueError, match="zip"):
        figures.FIGURES["figure02b"](short)


def test_figure_3_breaks_a_curve_where_it_jumps_and_shades_where_the_sign_changes():
    """The gradient step is lr x gradient = 0.05: weights from 0 to 0.05 change their sign."""
    left, right = figures.FIGURES["figure03"](committed("figure03")).axes
    (shaded,) = left.patches
    assert (shaded.get_x(), shaded.get_width()) == (0, pytest.approx(0.05))
    guide, diagonal, hyp, star = left.get_lines()
    assert list(guide.get_ydata()) == [0, 0] and list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    data = committed("figure03")["next"]
    for line, kind, jumps in ((hyp, "hyp", 2), (star, "hyp_star", 0)):
        y = np.array(line.get_ydata())
        gaps = np.flatnonzero(np.isnan(y))
        assert len(gaps) == jumps and list(y[~np.isnan(y)]) == data[kind]
        assert all(abs(y[gap + 1] - y[gap - 1]) > 0.03 for gap in gaps)  # before and after 0 itself
        assert np.array_equal(np.isnan(line.get_xdata()), np.isnan(y))
        assert np.nanmax(np.abs(np.diff(y))) < 0.002
    assert (left.get_ylim(), list(left.get_xticks())) == ((-0.3, 0.13), [-0.1, -0.05, 0, 0.05, 0.1])
    assert [list(line.get_ydata()) for line in right.get_lines()[:2]] == [[0, 0], [-1, -1]]
    (optimum,) = right.texts
    assert (optimum.get_text(), optimum.get_position()) == ("optimum", (0, -1))


def test_figure_4_marks_starts_ends_and_paths_that_learn():
    """By hand: of two cases GD learns one in all its paths; a case of which one path fails does not count."""
    paths = [
        {"case": [1, 1], "a_w": [[0.1, 0.2], [0.8, 1.25]], "learned": True},
        {"case": [-1, 1], "a_w": [[-0.1, 0.2], [-0.3, 0.1]], "learned": False},
        {"case": [-1, 1], "a_w": [[-0.1, 0.3], [0.9, 1.1]], "learned": True},
    ]
    picture = figures.FIGURES["figure04"]({"paths": dict.fromkeys(("gd", "product", "ham"), paths)})
    titles = [axes.get_title() for axes in picture.axes]
    assert titles == [f"{name}: learns 1 of 4 sign cases" for name in ("GD", "m * w", "HAM")]
    first = picture.axes[0]
    across, along, truth, *lines = first.get_lines()
    assert list(across.get_ydata()) == list(along.get_xdata()) == [0, 0]
    np.testing.assert_allclose(np.array(truth.get_xdata()) * np.array(truth.get_ydata()), 1)
    assert (truth.get_xdata()[0], truth.get_xdata()[-1]) == (pytest.approx(0.3), pytest.approx(3))
    for place, path in enumerate(paths):
        line, start, end = lines[3 * place : 3 * place + 3]
        assert [list(pair) for pair in zip(line.get_xdata(), line.get_ydata(), strict=True)] == path["a_w"]
        assert [start.get_xdata()[0], start.get_ydata()[0]] == path["a_w"][0]
        assert [end.get_xdata()[0], end.get_ydata()[0]] == path["a_w"][-1]
        assert start.get_fillstyle() == ("full" if path["learned"] else "none")
        assert (start.get_marker(), end.get_marker()) == ("o", "*" if path["learned"] else "x")
        assert line.get_linestyle() == ("-" if path["learned"] else "--")
    assert (first.get_xlim(), first.get_ylim(), first.get_aspect()) == ((-1.3, 1.7), (-1.3, 1.7), 1)
    assert [axes.get_ylabel() for axes in picture.axes] == ["w (inner weight)", "", ""]
    assert [axes.get_xlabel() for axes in picture.axes] == ["a (outer weight)"] * 3
    assert picture.legends[0]._ncols == 5


def test_odd_data_are_an_error_unless_problems_are_collected(tmp_path):
    (tmp_path / "figure01.json").write_text("{}")
    with pytest.raises(
        InvalidRecord, match=r"figure01\.json: its data are invalid \(KeyError\('settings'\)\): run"
    ):
        figures.draw(["figure01"], tmp_path, tmp_path)
    problems = []
    assert figures.draw(["figure01"], tmp_path, tmp_path, problems) == [] and len(problems) == 1
    with pytest.raises(
        PlanError, match="unknown theory figure 'figure05': choose one of figure01, figure02b"
    ):
        figures.draw(["figure05"], tmp_path, tmp_path)
    with pytest.raises(
        InvalidRecord, match=r"none\.json is missing: run python scripts/theory_runs\.py --figu"
    ):
        show(tmp_path / "none.json", dict)
    (tmp_path / "figure01.json").write_text("{")
    with pytest.raises(InvalidRecord, match=r"^[^:]*figure01\.json: it cannot be read"):
        show(tmp_path / "figure01.json", dict)


def test_simulations_are_not_written_into_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        assert theory_runs.main(["--figure", "3", "--to", str(target)]) == 2
        error = capsys.readouterr().err
        assert "it is a file" in error and error.count("\n") == 1


def test_wrong_use_names_the_cure(tmp_path, capsys):
    assert theory_runs.main(["--figure", "5"]) == 2
    assert "unknown theory figure 'figure05': choose one of figure01" in capsys.readouterr().err
    with pytest.raises(PlanError, match=r"run python scripts/theory_runs.py first"):
        figures.draw(["figure06"], tmp_path, tmp_path)
