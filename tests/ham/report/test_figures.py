"""The figures show the series and values of the records, and are reproducible."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import script
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ham.files import RESULTS
from ham.report import figures, methods, plan, style
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


@pytest.mark.parametrize(
    ("value", "is_scaled"), [(1e-4, True), (2e-3, False), (9e4, False), (1e5, True), (50.0, False)]
)
def test_axes_of_curves_are_named_and_show_powers_of_ten_beyond_four_digits(
    value: float, is_scaled: bool
) -> None:
    picture, (axis,) = style.panels(1)
    epochs = [{"epoch": k, "x": value * (k + 1) / 10} for k in range(10)]
    figures.draw_panel(axis, Panel("x", "what it is"), {"HAM": [epochs]})
    picture.draw_without_rendering()
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xlim()[0]) == ("epoch", "what it is", 0)
    assert axis.get_xlim()[1] > 10
    power = axis.yaxis.get_offset_text().get_text()
    assert bool(power) == is_scaled and ("times" in power) == is_scaled


def test_a_band_is_one_standard_deviation_around_the_mean() -> None:
    """Two seeds, 1 and 3, then 2 and 2: means 2 and 2, standard deviations sqrt(2) and 0."""
    _, (axis,) = style.panels(1)
    runs = [[{"epoch": 0, "x": a}, {"epoch": 1, "x": 2.0}] for a in (1.0, 3.0)]
    figures.draw_panel(axis, Panel("x", "x"), {"HAM": runs, "SGD": runs[:1]})
    (band,) = axis.collections
    corners = {(float(x), round(float(y), 9)) for x, y in band.get_paths()[0].vertices}
    half = round(2**0.5, 9)
    assert corners == {(1, 2 - half), (1, 2 + half), (2, 2)}
    assert to_hex(band.get_facecolor()[0]) == methods.look("HAM")["color"].lower()
    assert 0 < band.get_alpha() < 0.5 and list(band.get_linewidth()) == [0]
    assert [list(line.get_ydata()) for line in axis.get_lines()] == [[2, 2], [1, 2]]


@pytest.mark.parametrize(("points", "every"), [(0, 1), (7, 1), (8, 1), (16, 2), (100, 12)])
def test_a_curve_has_about_eight_markers(points: int, every: int) -> None:
    _, (axis,) = style.panels(1)
    figures.draw_panel(axis, Panel("x", "x"), {"HAM": [[{"epoch": k, "x": 1.0} for k in range(points)]]})
    (line,) = axis.get_lines()
    assert line.get_markevery() == every


def test_a_legend_has_two_columns_under_one_panel_and_for_many_curves(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    columns = {}
    for name in ("2a", "5", "9", "10"):
        figure = plan.figure(name)
        write_record(tmp_path, figure.runs()[0])
        columns[len(figure.panels), len(figure.series)] = draw(name, tmp_path).legends[0]._ncols
    assert columns == {(1, 3): 2, (1, 4): 2, (2, 4): 4, (2, 8): 2}
    figure = plan.figure("9")
    five = replace(figure, series=figure.series | {"SAM": "dense_sam"})
    with style.styled():
        assert figures.draw(five, read_all(results=tmp_path)[0]).legends[0]._ncols == 2


def test_a_curve_whose_runs_diverged_says_so(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    write_record(tmp_path, RunSpec("dense", 0))
    figure, loaded = plan.figure("9"), read_all(results=tmp_path)[0]
    with style.styled():
        picture = figures.draw(figure, loaded, diverged=[RunSpec("dense_ham", figure.seeds[-1])])
    shown = [name.rpartition(" (")[2] for name in legend(picture)]
    assert shown == ["n = 1)", "not run)", "not run)", "diverged)"]


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


def drawn_grid(tmp_path: Path, write_record: Callable[..., Path], values: dict[tuple, float]) -> Figure:
    """Figure 11 of these accuracies."""
    for point, top1 in values.items():
        write_record(tmp_path, plan.figure("11").points[point], top1)
    return draw("11", tmp_path)


def test_the_axes_of_a_grid_name_its_values(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    picture = drawn_grid(tmp_path, write_record, {(50, 0.001): 75.0, (100, 0.004): 70.0})
    axis, bar = picture.axes
    grid = plan.figure("11")
    alphas, betas = sorted({a for a, _ in grid.points}), sorted({b for _, b in grid.points})
    assert (axis.get_xlabel(), axis.get_ylabel(), bar.get_ylabel()) == ("beta", "alpha", "top-1 [%]")
    assert [text.get_text() for text in axis.get_xticklabels()] == [f"{beta:g}" for beta in betas]
    assert [text.get_text() for text in axis.get_yticklabels()] == [f"{alpha:g}" for alpha in alphas]
    assert list(axis.get_xticks()) == list(range(len(betas)))
    assert list(axis.get_yticks()) == list(range(len(alphas)))
    assert axis.get_ylim()[0] < axis.get_ylim()[1] and axis.get_aspect() == "auto"  # alpha rises
    shown = axis.images[0].get_array()
    assert shown[alphas.index(50), betas.index(0.001)] == 75 and shown.count() == 2
    assert picture.get_suptitle().startswith(grid.title[:20])
    assert picture.get_suptitle().endswith("(framed: the paper's choice)")


def test_nothing_lies_over_or_around_the_cells_of_a_grid(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    picture = drawn_grid(tmp_path, write_record, {(50, 0.001): 75.0})
    axis, bar = picture.axes
    lines = [*axis.get_xgridlines(), *axis.get_ygridlines()]
    assert lines and not any(line.get_visible() for line in lines)
    assert not any(spine.get_visible() for spine in axis.spines.values())
    assert not bar.spines["outline"].get_visible()


def test_values_of_a_grid_fit_into_their_cells(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    points = plan.figure("11").points
    picture = drawn_grid(tmp_path, write_record, dict.fromkeys(points, 75.25))
    picture.draw_without_rendering()
    axis = picture.axes[0]
    width, height = axis.get_window_extent().size
    columns, rows = len(axis.get_xticks()), len(axis.get_yticks())
    assert len(axis.texts) == len(points)
    for text in axis.texts:
        extent = text.get_window_extent()
        assert extent.width < 0.9 * width / columns and extent.height < 0.7 * height / rows


@pytest.mark.parametrize(
    ("values", "limits", "extend"),
    [
        ((75.0,), (74.95, 75.05), "neither"),
        ((75.0, 75.0), (74.95, 75.05), "neither"),
        ((72.0, 75.0), (72.0, 75.0), "neither"),
        ((70.0, 75.0), (70.0, 75.0), "neither"),
        ((69.0, 75.0), (70.0, 75.0), "min"),
    ],
)
def test_the_colors_of_a_grid_span_five_points_at_most(
    values: tuple[float, ...],
    limits: tuple[float, float],
    extend: str,
    tmp_path: Path,
    write_record: Callable[..., Path],
) -> None:
    points = list(plan.figure("11").points)[8:]
    picture = drawn_grid(tmp_path, write_record, dict(zip(points, values, strict=False)))
    image = picture.axes[0].images[0]
    assert image.get_clim() == pytest.approx(limits) and image.colorbar.extend == extend


def test_numbers_are_white_on_dark_cells_and_black_on_light_ones(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    """The darkest and lightest color of cividis have relative luminances of about 0.12 and 0.90."""
    points = list(plan.figure("11").points)[8:]
    values = {point: 70.0 + number / 4 for number, point in enumerate(points[:21])}
    picture = drawn_grid(tmp_path, write_record, values)
    image = picture.axes[0].images[0]
    numbers = [text for text in picture.axes[0].texts if text.get_text() != "not run"]
    assert len(numbers) == 21
    for text in numbers:
        color = np.array(image.cmap(image.norm(float(text.get_text())))[:3])
        assert text.get_color() == ("white" if color @ [0.2126, 0.7152, 0.0722] < 0.45 else "black")
        assert (text.get_ha(), text.get_va(), text.get_fontsize()) == ("center", "center", 7)
    assert {text.get_color() for text in numbers} == {"white", "black"}
    other = next(text for text in picture.axes[0].texts if text.get_text() == "not run")
    assert other.get_fontsize() == 6.5
    assert (other.get_ha(), other.get_va(), other.get_color()) == ("center", "center", style.NOTE["color"])


def test_the_papers_choice_has_a_white_frame_within_a_black_one_around_its_cell(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    """Figure 11's choice (200, 0.016) is the cell in column 5 and row 3, of size 1."""
    black, white = drawn_grid(tmp_path, write_record, {(50, 0.001): 75.0}).axes[0].patches
    for frame, color in ((black, "#000000"), (white, "#ffffff")):
        assert to_hex(frame.get_edgecolor()) == color
        assert not frame.get_fill() and not frame.get_clip_on()
        middle = frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2
        assert middle == pytest.approx((5, 3))
    assert (black.get_width(), black.get_height()) == (1, 1)
    assert 0.8 < white.get_width() == white.get_height() < 1
    assert black.get_linewidth() == 2 * white.get_linewidth() == 2


def test_a_point_that_diverged_says_so_under_either_of_its_names(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    figure = plan.figure("11")
    write_record(tmp_path, figure.points[50, 0.001])
    loaded = read_all(results=tmp_path)[0]
    for lost in (RunSpec("cifar100_ham", 0), figure.points[200, 0.016], figure.points[400, 0.001]):
        with style.styled():
            texts = grid_of(figures.draw(figure, loaded, diverged=[lost]))
        assert texts.count("diverged") == 1 and texts.count("not run") == 33


def test_a_scaled_down_run_without_epochs_is_left_out_of_a_curve(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    paths = [write_record(tmp_path, RunSpec("random_s90", seed, demo="digits")) for seed in range(3)]
    metrics_path(paths[0]).unlink()
    assert legend(draw("2a", tmp_path, "digits"))[0] == "Random (n = 2)"


def test_damaged_epochs_may_go_unreported(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    write_record(tmp_path, RunSpec("dense", 0))
    write_record(tmp_path, RunSpec("dense", 1))
    loaded = read_all(results=tmp_path)[0]
    metrics_path(loaded[RunSpec("dense", 1)].path).write_text("")
    fresh = {run: replace(record) for run, record in loaded.items()}  # whose epochs are not read yet
    with style.styled():
        assert legend(figures.draw(plan.figure("9"), fresh))[0] == "Baseline (n = 1)"


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
    kept = {name for name in kept if not name.startswith("study_")}  # study.py draws these
    kept -= {f"{name}.{ending}" for name in theory.FIGURES for ending in ("pdf", "png")}
    assert {path.name for path in tmp_path.glob("*")} == kept
    for path in tmp_path.glob("*"):
        assert same_picture(path, RESULTS / "figures" / path.name), f"{path.name}: run make results"
