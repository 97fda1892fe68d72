"""What the charts of pages draw: data as csv, scales, marks and the tables below, by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install -e '.[site]'")

from ham.report.curves import Curve
from ham.report.methods import METHODS
from ham.site import charts
from ham.site.charts import Chart, Interval, Series, curve_spec, curves, forest

FALLING = Curve([1, 2], [3.0, 1.0], [0.5, 0.25])
RISING = Curve([1, 2, 4], [10.0, 12345.6, 20.0], [0.0, 1.0, 5.0])
TWO = [Series("SGD", "base", FALLING), Series("HAM", "ham", RISING)]


def layers_of(chart: Chart) -> dict[str, dict]:
    """Name of a layer's field -> its mark."""
    return {own["encoding"]["x"].get("field", "zero"): own["mark"] for own in chart.spec["layer"]}


def test_curves_have_means_and_one_standard_deviation_below_and_above_in_four_digits() -> None:
    data = curves("loss", "Loss", "training loss", TWO).spec["data"]
    assert data["values"] == (
        "series,epoch,mean,low,high\nSGD,1,3,2.5,3.5\nSGD,2,1,0.75,1.25\n"
        "HAM,1,10,10,10\nHAM,2,12350,12340,12350\nHAM,4,20,15,25\n"
    )
    numbers = dict.fromkeys(("epoch", "mean", "low", "high"), "number")
    assert data["format"] == {"type": "csv", "parse": numbers}


def test_a_curve_is_described_by_its_axis_and_its_last_means() -> None:
    two = curves("loss", "Loss", "training loss", TWO)
    assert (two.name, two.title, two.height) == ("loss", "Loss", 260)
    assert two.description == "training loss over the epochs. At the end: SGD 1; HAM 20."
    one = curves("loss", "Loss", "", [Series("", "ham", FALLING)], 300)
    assert one.description == "Loss over the epochs. At the end: 1."
    assert one.height == 300 and one.spec["data"]["values"].endswith("\n,2,1,0.75,1.25\n")


def test_points_without_a_standard_deviation_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        curves("loss", "Loss", "", [Series("", "ham", Curve([1, 2], [3.0, 1.0], [0.5]))])


def test_a_single_curve_has_the_color_of_its_method_and_no_markers() -> None:
    spec = curve_spec("loss", [""], ["alpha_only"])
    assert [own["mark"]["type"] for own in spec["layer"]] == ["area", "line"]
    assert [own["encoding"]["color"] for own in spec["layer"]] == [{"value": "var(--alpha-only)"}] * 2
    assert spec["encoding"]["x"]["field"] == "epoch"


def test_several_curves_have_scales_of_their_labels_and_markers() -> None:
    area, line, points = curve_spec("loss", ["a", "b"], ["base", "ham"])["layer"]
    colors = {"domain": ["a", "b"], "range": ["var(--base)", "var(--ham)"]}
    for own in (area, line, points):
        assert own["encoding"]["color"] == {"field": "series", "title": None, "scale": colors}
        y = own["encoding"]["y"]
        assert (y["title"], y["type"], y["scale"]) == ("loss", "quantitative", {"zero": False})
    assert (area["encoding"]["y"]["field"], area["encoding"]["y2"]) == ("low", {"field": "high"})
    assert line["encoding"]["y"]["field"] == points["encoding"]["y"]["field"] == "mean"
    dashes = [charts.dash("base"), charts.dash("ham")]
    assert line["encoding"]["strokeDash"]["scale"] == {"domain": ["a", "b"], "range": dashes}
    shapes = [charts.shape("base"), charts.shape("ham")]
    assert points["encoding"]["shape"]["scale"]["range"] == shapes
    assert points["mark"] == {"type": "point", "filled": True, "opacity": 1, "size": 45}
    assert area["mark"]["fillOpacity"] == 0.18 and line["mark"]["strokeWidth"] == 2


def test_every_marker_of_a_method_has_a_shape_and_lines_are_dashed_as_in_figures() -> None:
    assert all(charts.shape(name) for name in METHODS)
    known = {"-": [1, 0], "--": [6, 3], ":": [2, 3], "-.": [8, 3, 2, 3]}
    for name, look in METHODS.items():
        style = look["linestyle"]
        expected = known[style] if isinstance(style, str) else [length * 1.5 for length in style[1]]
        assert charts.dash(name) == expected, name
    assert (charts._SHAPES["*"], charts._SHAPES["h"], charts._SHAPES["p"]) == ("wedge", "arrow", "stroke")


ROWS = [
    Interval("a - b", 1.25, (-0.5, 3.0), [1.0, 1.5], 0.75),
    Interval("c - b", -2.0, None),
]


def test_a_forest_plot_has_a_row_of_data_for_each_mean_and_each_seed() -> None:
    data = forest("gains", "Gains", "points", ROWS).spec["data"]
    assert data["values"] == (
        "row,low,mean,high,paper,seed\na - b,-0.5,1.25,3,0.75,\na - b,,,,,1\na - b,,,,,1.5\n"
        "c - b,-2,-2,-2,,\n"
    )
    numbers = dict.fromkeys(("low", "mean", "high", "paper", "seed"), "number")
    assert data["format"] == {"type": "csv", "parse": numbers}


def test_the_table_of_a_forest_plot_has_signs_two_decimals_and_a_dash_without_an_interval() -> None:
    chart = forest("gains", "Gains", "points", ROWS)
    assert chart.head == ("", "difference", "low", "high", "paper")
    assert list(chart.rows) == [
        ("a - b", "+1.25", "-0.50", "+3.00", "+0.75"),
        ("c - b", "-2.00", "-", "-", "-"),
    ]
    assert chart.description == "points: 2 differences with 95 % intervals; the table below has the numbers."
    assert (chart.name, chart.title) == ("gains", "Gains")


def test_a_forest_plot_without_the_paper_s_differences_has_no_column_of_them() -> None:
    chart = forest("gains", "Gains", "points", ROWS[1:])
    assert chart.head == ("", "difference", "low", "high")
    assert list(chart.rows) == [("c - b", "-2.00", "-", "-")]


def test_a_difference_that_rounding_leaves_below_zero_is_plus_zero() -> None:
    (row,) = forest("gains", "Gains", "points", [Interval("a", -1e-12, None)]).rows
    assert row[1] == "+0.00"


def test_marks_are_dots_of_seeds_squares_of_means_and_hollow_diamonds_of_the_paper() -> None:
    marks = layers_of(forest("gains", "Gains", "points", ROWS))
    look = {"type": "point", "color": "currentColor"}
    assert marks["seed"] == {**look, "shape": "circle", "size": 18, "filled": True, "opacity": 0.5}
    assert marks["mean"] == {**look, "shape": "square", "size": 70, "filled": True, "opacity": 1}
    assert marks["paper"] == {**look, "color": "var(--ham)", "shape": "diamond", "size": 70, "opacity": 1}
    assert list(marks) == ["zero", "seed", "low", "mean", "paper"], (
        "means lie above their seeds and intervals"
    )
    assert list(layers_of(forest("gains", "Gains", "points", ROWS[1:]))) == ["zero", "low", "mean"]


@pytest.mark.parametrize(
    ("options", "scale"), [({}, {}), ({"is_log": True}, {"type": "symlog", "constant": 1})]
)
def test_a_forest_plot_is_linear_unless_asked_otherwise(options: dict, scale: dict) -> None:
    zero, *layers = forest("gains", "Gains", "points", ROWS, **options).spec["layer"]
    assert zero["encoding"]["x"] == {"datum": 0}
    assert all(own["encoding"]["x"]["scale"] == scale for own in layers)


def test_the_height_of_a_chart_is_reserved_with_60_pixels_of_inputs_where_it_has_parameters() -> None:
    assert Chart("a", "A", "about", {"mark": "line"}).vega_lite["height"] == 260
    assert Chart("a", "A", "about", {"mark": "line"}, 300).vega_lite["height"] == 300
    assert Chart("a", "A", "about", {"params": []}, 300).vega_lite["height"] == 240
    several = Chart("a", "A", "about", {"vconcat": []}).vega_lite
    assert "height" not in several and "width" not in several


def test_a_chart_that_is_like_another_has_its_own_data_and_description_alone() -> None:
    spec = {"mark": "line", "data": {"values": "x\n1\n", "format": {"type": "csv"}}}
    assert Chart("b", "B", "about b", spec, like="a").vega_lite == {
        "like": "a",
        "description": "about b",
        "data": {"values": "x\n1\n"},
    }
