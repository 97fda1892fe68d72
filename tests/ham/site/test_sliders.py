"""Sliders and what stands in their charts: bounds, numbers, rows of tables."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install -e '.[site]'")

from ham.site.sliders import (
    HEIGHT,
    Slider,
    as_number,
    as_numbers,
    columns,
    evenly_spaced,
    format_number,
    formula_chart,
    horizontal_line,
)


@pytest.mark.parametrize("value", [-0.5, 0, 2.25])
def test_a_slider_takes_its_lowest_and_its_highest_value(value: float) -> None:
    bind = {"input": "range", "min": -0.5, "max": 2.25, "step": 0.25, "name": "learning rate"}
    parameter = Slider("lr", "learning rate", -0.5, 2.25, 0.25, value).parameter
    assert parameter == {"name": "lr", "value": value, "bind": bind}


@pytest.mark.parametrize("value", [-0.75, 2.5, math.nan, math.inf, "1", None, True])
def test_a_slider_refuses_what_is_no_number_of_its_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^learning rate is not from -0\.5 to 2\.25$"):
        Slider("lr", "learning rate", -0.5, 2.25, 0.25, value)


@pytest.mark.parametrize("values", [(1, 2), "12", None, ["1"], [1, None], [True], [math.nan]])
def test_only_lists_of_numbers_are_numbers(values: Any) -> None:
    with pytest.raises(ValueError, match="a list has something that is not a number"):
        as_numbers(values)
    assert as_numbers([1, -2.5]) == [1, -2.5] and as_numbers([]) == [] and as_number(3) == 3
    with pytest.raises(ValueError, match="not a number"):
        as_number("3")


def test_some_positions_are_evenly_spaced_from_the_first_to_the_last() -> None:
    assert evenly_spaced(range(5), 3) == [0, 2, 4]
    assert evenly_spaced(range(17)) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert evenly_spaced(range(9)) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert (evenly_spaced("ab"), evenly_spaced("a"), evenly_spaced("abc", 1)) == ([0, 1], [0], [0])


def test_a_table_of_curves_has_columns_of_numbers_in_four_digits() -> None:
    assert columns([1, 2.00004], [12345.6, 0]) == [["1", "1.235e+04"], ["2", "0"]]
    assert format_number(0.123456) == "0.1235"


@pytest.mark.parametrize("lists", [([1, 2], [1]), ([1], [1], []), ([], []), ([],)])
def test_curves_of_different_lengths_or_without_points_have_no_table(lists: tuple[list, ...]) -> None:
    with pytest.raises(ValueError, match="its lists have different lengths"):
        columns(*lists)


def test_a_chart_of_formulas_folds_its_methods_and_keeps_finite_values_of_a_sequence() -> None:
    chart = formula_chart(
        *("name", "title", "about"),
        sliders=[Slider("alpha", "alpha", 0, 5, 0.5, 1), Slider("beta", "beta", 0, 1, 0.5, 1)],
        sequence=("t", 0.5, 2, 0.25),
        transform=[{"calculate": "1", "as": "GD"}],
        after=[{"filter": "last"}],
        methods={"GD": "base", "guide": {"color": "red", "dash": [1, 3]}},
        x={"field": "t"},
        y={"field": "value"},
        head=("t",),
        rows=[["1"]],
        parameters=[{"name": "p"}],
        encoding={"detail": {"field": "side"}},
        layers=[horizontal_line(1.5)],
        subtitle="'text'",
    )
    assert (chart.name, chart.title, chart.description, chart.head) == ("name", "title", "about", ("t",))
    assert chart.height == HEIGHT + 80 and [own["name"] for own in chart.spec["params"]] == [
        "alpha",
        "beta",
        "p",
    ]
    guide, lines = chart.spec["layer"]
    assert (
        guide["encoding"] == {"y": {"datum": 1.5, "type": "quantitative"}} and guide["mark"]["type"] == "rule"
    )
    assert lines["data"] == {"sequence": {"start": 0.5, "stop": 2, "step": 0.25, "as": "t"}}
    assert lines["transform"][1:] == [
        {"fold": ["GD", "guide"], "as": ["method", "value"]},
        {"filter": "isFinite(datum.value)"},
        {"filter": "last"},
    ]
    shown = lines["encoding"]
    assert shown["color"]["scale"] == {"domain": ["GD", "guide"], "range": ["var(--base)", "red"]}
    assert shown["strokeDash"]["scale"]["range"][1] == [1, 3] and shown["detail"] == {"field": "side"}
    assert chart.spec["title"] == {"text": {"expr": "'text'"}}
