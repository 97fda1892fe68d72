"""The figures show the series and values of the records, and are reproducible."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import script
from matplotlib.figure import Figure

from ham.files import RESULTS
from ham.report import figures, plan, style
from ham.report import theory_figures as theory
from ham.report.plan import Panel
from ham.report.records import metrics_path, path_of, read_all
from ham.report.spec import RunSpec

COMMAND = script("figures")


def draw(name: str, results: Path, demo: str = "") -> Figure | None:
    with style.styled():
        return figures.draw(plan.figure(name), read_all(demo, results)[0], demo)


def legend(picture: Figure) -> list[str]:
    return [text.get_text() for text in picture.legends[0].get_texts()]


def test_a_curve_is_mean_and_spread_by_hand() -> None:
    runs = [
        [{"epoch": 0, "x": 1.0}, {"epoch": 1, "x": 2.0}, {"epoch": 2}, {"epoch": 3, "x": 5.0}],
        [{"epoch": 0, "x": 3.0}, {"epoch": 1, "x": None}, {"epoch": 2}, {"epoch": 3, "x": 5.0}],
    ]
    curve = figures.curve(runs, Panel("x", "x", scale=10))
    assert curve == figures.Curve((1, 4), (20.0, 50.0), (pytest.approx(10 * 2**0.5), 0.0))
    assert figures.curve(runs, Panel("x", "x", every=2)).epochs == (4,)
    assert figures.curve(runs[:1], Panel("x", "x")) == figures.Curve((1, 2, 4), (1.0, 2.0, 5.0), (0.0,) * 3)
    assert figures.curve([], Panel("x", "x")) == figures.Curve((), (), ())


def test_sign_flips_are_drawn_where_intervals_end(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    for seed in (0, 1, 2):
        path = write_record(tmp_path, RunSpec("random_ham_s90", seed))
    write_record(tmp_path, RunSpec("random_s90", 0))
    picture = draw("2a", tmp_path)
    assert legend(picture) == ["Random (n = 1)", "+ Sign-In (not run)", "+ HAM (n = 3)"]
    random, sign_in, ham = picture.axes[0].get_lines()
    assert list(ham.get_xdata()) == list(range(10, 101, 10)) and len(sign_in.get_xdata()) == 0
    lines = map(json.loads, metrics_path(path).read_text().splitlines())
    last = [100 * line["sign_flips"] for line in lines if "sign_flips" in line]  # of seed 2; 1e-4 each apart
    assert list(ham.get_ydata()) == pytest.approx([value - 0.01 for value in last])
    assert len(picture.axes[0].collections) == 1  # one seed has no band
    assert len({line.get_linestyle() for line in (random, sign_in, ham)}) == 3
    assert len({line.get_marker() for line in (random, sign_in, ham)}) == 3


def test_hams_inverse_metric_at_zero_is_one(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    for exp in plan.figure("5").series.values():
        write_record(tmp_path, RunSpec(exp, 0))
    ham, sign_in, *_ = draw("5", tmp_path).axes[0].get_lines()
    assert set(ham.get_ydata()) == {1.0} and list(ham.get_xdata()) == list(range(10, 101, 10))
    assert max(sign_in.get_ydata()) < 1


def grid_of(picture: Figure) -> list[str]:
    return [text.get_text() for text in picture.axes[0].texts]


def test_a_grid_shows_values_gaps_and_the_papers_choice(
    tmp_path: Path, write_record: Callable[..., Path], make_summary: Callable[..., dict[str, Any]]
) -> None:
    grid = plan.figure("11")
    write_record(
        tmp_path, RunSpec("cifar100_ham", 0), 76.12
    )  # the named experiment is the point (200, 0.016)
    write_record(tmp_path, grid.points[50, 0.001], 75.5)
    write_record(tmp_path, grid.points[0, 0], 1.0)  # altered on the command line to what cifar100 is
    picture = draw("11", tmp_path)
    texts = grid_of(picture)
    assert len(texts) == 35 and texts.count("not run") == 32
    for text, place in (("76.12", (5, 3)), ("75.50", (1, 1)), ("1.00", (0, 0))):
        (text_at,) = (t for t in picture.axes[0].texts if t.get_text() == text)
        assert text_at.get_position() == place
    assert {patch.get_x() for patch in picture.axes[0].patches} == {4.5, 4.5 + 0.06}
    write_record(
        tmp_path, RunSpec("cifar100", 0), 75.25
    )  # the experiment itself counts before an altered one
    assert {"75.25", "76.12", "75.50"} < set(grid_of(draw("11", tmp_path)))
    low, high = picture.axes[0].images[0].get_clim()
    assert (low, high) == pytest.approx((71.12, 76.12))  # the failed run does not flatten the others


@pytest.fixture
def results(tmp_path: Path, write_record: Callable[..., Path]) -> Path:
    for name in ("9", "11"):
        for run in plan.figure(name).runs():
            write_record(tmp_path, run)
    return tmp_path


def test_files_are_the_same_each_time(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for epoch, folder in ((0, "first"), (10**9, "second")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(epoch))
        chosen = ["--figure", "9", "11", "--results", str(results), "--to", str(results / folder)]
        assert COMMAND.main(chosen) == 0
    names = sorted(path.name for path in (results / "first").iterdir())
    assert names == ["figure09.pdf", "figure09.png", "figure11.pdf", "figure11.png"]
    for name in names:
        first = (results / "first" / name).read_bytes()
        assert first == (results / "second" / name).read_bytes()
        assert len(first) < 200_000


def test_a_figure_without_records_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMAND.main(["--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{name}: none of its runs has a record to show, not drawn" for name in plan.figures()]
    assert not (tmp_path / "figures").exists()
    assert COMMAND.main(["--figure", "3"]) == 2
    assert "unknown figure 'figure03'" in capsys.readouterr().err


def test_damaged_epochs_are_reported_and_left_out(
    tmp_path: Path, write_record: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path, RunSpec("dense", 0))
    path = metrics_path(write_record(tmp_path, RunSpec("dense", 1)))
    path.write_text(path.read_text()[:-40])
    assert COMMAND.main(["--figure", "9", "10", "--results", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()  # matplotlib may add one about its fonts
    (said,) = [line for line in lines if line.startswith("figures.py: ")]
    assert said.startswith(f"figures.py: left out {path}: ")
    assert legend(draw("9", tmp_path))[0] == "Baseline (n = 1)"


def test_scaled_down_figures_say_so(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    run = RunSpec("random_s90", 0, demo="digits")
    write_record(tmp_path, run)
    assert COMMAND.main(["--results", str(tmp_path), "--demo", "digits"]) == 0
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["demo_figure02a.pdf", "demo_figure02a.png"]
    picture = draw("2a", tmp_path, "digits")
    assert "not the paper's setting" in picture.get_suptitle()
    assert list(picture.axes[0].get_lines()[0].get_xdata()) == [10, 20, 30, 40]
    write_record(tmp_path, replace(run, demo=""))
    assert "not the paper's" not in draw("2a", tmp_path).get_suptitle()


@pytest.mark.parametrize("demo", ["", "digits"])
def test_nothing_is_cut_off(demo: str, tmp_path: Path, write_record: Callable[..., Path]) -> None:
    """Title, legend and axes lie within each figure, where most series are not run (the longest names)."""
    for name in plan.figures():
        if not (path := path_of(run := plan.figure(name).runs(demo=demo)[0], tmp_path)).exists():
            assert write_record(tmp_path, run) == path
        picture = draw(name, tmp_path, demo)
        with style.styled():
            picture.draw_without_rendering()
        box_of_all = picture.bbox.padded(3)  # pixels: text is placed at integers
        for part in (picture._suptitle, *picture.legends, *picture.axes):
            box = part.get_tightbbox()
            assert box_of_all.contains(*box.min) and box_of_all.contains(*box.max), (name, part)


def test_committed_figures_are_those_of_the_committed_records(
    tmp_path: Path, same_picture: Callable[[Path, Path], bool]
) -> None:
    for demo in ([], ["--demo", "digits"]):
        assert COMMAND.main([*demo, "--to", str(tmp_path)]) == 0
    kept = {path.name for path in (RESULTS / "figures").glob("*.p*")}
    kept -= {f"{name}.{ending}" for name in theory.FIGURES for ending in ("pdf", "png")}
    assert {path.name for path in tmp_path.glob("*")} == kept
    for path in tmp_path.glob("*"):
        assert same_picture(path, RESULTS / "figures" / path.name), f"{path.name}: run make results"
