"""The page of the theory: what its charts calculate, for several sliders, is what ham.theory does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vega
from site_pages import stale

from ham import theory
from ham.report.theory_data import DATA
from ham.site import formulas, neuron, regression
from ham.site.charts import Chart
from ham.site.sliders import HEIGHT, SLIDER
from ham.site.theory import PAGE, SECTIONS, page


def data_of(figure: str) -> dict[str, Any]:
    return json.loads((DATA / f"{figure}.json").read_text())


def chart_of(make: Callable[[dict[str, Any]], Chart]) -> Chart:
    figure = next(section.figure for section in SECTIONS if section.make is make)
    return make(data_of(figure))


def lines_of(make: Callable[[dict[str, Any]], Chart], **sliders: float) -> dict[str, np.ndarray]:
    """The points of each method for these values of the sliders, two columns."""
    spec = chart_of(make).vega_lite
    known = vega.parameters(spec, sliders)
    view = spec["layer"][-1]
    x = view["encoding"]["x"]["field"]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in vega.rows(view, known):
        lines.setdefault(row["method"], []).append((row[x], row["value"]))
    return {method: np.array(points, dtype=np.float64) for method, points in lines.items()}


@pytest.mark.parametrize(("alpha", "gamma"), [(1, 0.05), (0, 0), (5, 1), (2.3, 0.4), (0.1, 0.01)])
def test_inverse_metrics(alpha: float, gamma: float) -> None:
    lines = lines_of(formulas.inverse_metrics, alpha=alpha, gamma=gamma)
    for method, kind in (("GD", "gd"), ("m * w", "product"), ("HAM", "ham")):
        theta, values = lines[method].T
        assert len(theta) == 301
        expected = theory.inverse_metric(theta, kind, alpha=alpha, gamma=gamma)
        np.testing.assert_allclose(values, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("alpha", "gamma"), [(1, 0.05), (0, 0.01), (5, 1), (2.3, 0.4), (0.9, 0.2), (1.1, 0.05)]
)
def test_flows_are_those_that_an_integrator_finds(alpha: float, gamma: float) -> None:
    lines = lines_of(formulas.flows, alpha=alpha, gamma=gamma)
    for method, kind in (("GD", "gd"), ("m * w", "product"), ("HAM", "ham")):
        times, values = lines[method].T
        assert times[0] == 0 and values[0] == -1 and times[-1] == pytest.approx(6)
        flow = theory.riemannian_flow(
            lambda x: x - 1, np.array([-1.0]), times, kind, alpha=alpha, gamma=gamma
        )
        np.testing.assert_allclose(values, flow[:, 0], atol=2e-8)


@pytest.mark.parametrize("exponent", [-1, 0, 0.5, 2, 4, 8])
def test_bregman(exponent: float) -> None:
    lines = lines_of(formulas.bregman, exponent=exponent)
    theta, values = lines["HAM"].T
    expected = theory.bregman(theta[:, None], 10.0**exponent) / theory.bregman(np.ones(1), 10.0**exponent)
    np.testing.assert_allclose(values, expected, atol=1e-11)
    np.testing.assert_allclose(lines["theta^2 (L2)"][:, 1], theta**2)
    np.testing.assert_allclose(lines["abs(theta) (L1)"][:, 1], abs(theta))


@pytest.mark.parametrize(
    ("lr", "alpha", "gradient"), [(0.05, 20, 1), (0.2, 0, -1), (0.01, 40, 0), (0.1, 7, -0.4), (0.2, 40, 0.9)]
)
def test_one_step(lr: float, alpha: float, gradient: float) -> None:
    lines = lines_of(formulas.one_step, lr=lr, alpha=alpha, gradient=gradient)
    for method, signed in (("HYP", True), ("HYP*", False)):
        theta, values = lines[method].T
        expected = theory.ham_step(theta, np.full_like(theta, gradient), lr=lr, alpha=alpha, signed=signed)
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("lr", "alpha", "start"),
    [(0.05, 20, 0.6), (0.1, 0, 1), (0.01, 40, 0.1), (0.08, 11, 0.35), (0.1, 30, 0.9)],
)
def test_path(lr: float, alpha: float, start: float) -> None:
    lines = lines_of(formulas.path, lr=lr, alpha=alpha, start=start)
    for method, signed in (("HYP", True), ("HYP*", False)):
        steps, values = lines[method].T
        np.testing.assert_array_equal(steps, range(15))
        expected = [np.float64(start)]
        for _ in range(14):
            expected.append(
                theory.ham_step(expected[-1], expected[-1] + 1, lr=lr, alpha=alpha, signed=signed)
            )
        np.testing.assert_allclose(values, expected, rtol=1e-11)


ORBITS = [  # alpha_1, alpha_2, gamma_1, gamma_2, size
    (4, 1, 1, 0.25, 0.5),
    (10, 0, 2, 0, 0.9),
    (1, 1, 0.5, 0.5, 0.3),
    (0.1, 3, 0.25, 1, 0.7),
    (0, 0, 0, 0, 0.1),
    (7.3, 0.1, 0.3, 0.05, 0.15),
]


@pytest.mark.parametrize("sliders", ORBITS)
def test_paths_of_a_neuron_are_those_of_its_flow(sliders: tuple[float, ...]) -> None:
    alphas, gammas, size = sliders[:2], sliders[2:4], sliders[4]
    names = ("alpha_1", "alpha_2", "gamma_1", "gamma_2", "size")
    lines = lines_of(neuron.orbits, **dict(zip(names, sliders, strict=True)))
    problem = theory.Neuron(positive=0.5, negative=0.5)
    strengths = {"GD": ("gd", (0.0, 0.0)), "HAM": ("ham", alphas), "m * w": ("product", gammas)}
    for method, (kind, pair) in strengths.items():
        a, w = lines[method].T
        np.testing.assert_allclose((a[0], w[0]), (-size, size), rtol=1e-9)
        learns = kind != "gd" and pair[0] > pair[1]  # Lemma E.1, Theorem E.2
        times = np.concatenate([[0], np.geomspace(0.05, 300 if learns else 2, 60)])  # before w = 0
        path = theory.neuron_flow(problem, -size, size, times, kind, pair)
        assert bool(path[-1, 0] > 0.1) == bool(a[-1] > 0.1) == learns
        within = (path[:, 0] <= a[-1]) & (path[:, 1] > 0.3 * size)
        assert within.sum() > 5
        np.testing.assert_allclose(np.interp(path[within, 0], a, w), path[within, 1], atol=4e-3)
        if learns:
            assert a[-1] * w[-1] == pytest.approx(1, abs=0.02)
    a, w = lines["HAM"].T
    start = theory.balance(np.array([-size]), np.array([size]), alphas)
    np.testing.assert_allclose(theory.balance(a, w, alphas), np.full_like(a, start), atol=1e-12)
    a, w = lines["m * w"].T
    kept = [
        theory.on_manifold_regularizer(x[:, None], "product", gamma=gamma)
        for x, gamma in zip((a, w), gammas, strict=True)
    ]
    np.testing.assert_allclose(kept[0] - kept[1], (kept[0] - kept[1])[0], atol=1e-12)
    np.testing.assert_allclose(np.prod(lines["a w = p"], axis=1), 1)


def test_simulated_paths_are_those_of_the_data() -> None:
    data, spec = data_of("figure04"), chart_of(neuron.quadrants).vega_lite
    names = {"gd": "GD", "product": "m * w", "ham": "HAM"}
    for seed in (0, 4, 9):
        rows = vega.rows(spec, vega.parameters(spec, {"seed": seed}))
        for kind, method in names.items():
            for path in (own for own in data["paths"][kind] if own["seed"] == seed):
                case = neuron.CASES.index(tuple(path["case"]))
                mine = [row for row in rows if (row["method"], row["case"]) == (method, case)]
                shown = np.array([(row["a"], row["w"]) for row in mine])
                simulated = np.array(path["a_w"])
                gaps = np.linalg.norm(shown[:, None] - simulated[None], axis=2)
                assert gaps.min(0).max() < 0.011 and gaps.min(1).max() < 8e-4  # none is missing, none added
                assert max(gaps[0, 0], gaps[-1, -1]) < 8e-4
                assert {row["end"] for row in mine} == {"learns" if path["learned"] else "fails"}
                assert [row["t"] for row in mine] == list(range(len(mine)))


@pytest.mark.parametrize("figure", ["figure06", "figure07", "figure08"])
def test_distances_are_medians_and_ranges_of_the_data(figure: str) -> None:
    data = data_of(figure)
    chart = next(section.make(data) for section in SECTIONS if section.figure == figure)
    rows = vega.rows(chart.vega_lite, vega.parameters(chart.vega_lite, {}))
    labels = list(dict.fromkeys(row["method"] for row in rows))
    assert len(labels) == len(data["series"])
    for label, series in zip(labels, data["series"], strict=True):
        values = np.array(series["distances"])[:, 1:]
        mine = [row for row in rows if row["method"] == label]
        assert [row["step"] for row in mine] == data["steps"][1:]
        expected = {"low": values.min(0), "median": np.median(values, 0), "high": values.max(0)}
        for name, own in expected.items():
            np.testing.assert_allclose([row[name] for row in mine], own, rtol=6e-4)
        last = chart.rows[-1][1 + labels.index(label)]
        assert float(last) == pytest.approx(np.median(values[:, -1]), rel=1e-3)
    assert chart.rows[-1][0] == "1,000,000"


def parts_of(spec: Any) -> Iterator[dict[str, Any]]:
    """All objects of a specification."""
    if isinstance(spec, dict):
        yield spec
    for part in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list | tuple) else ():
        yield from parts_of(part)


def test_a_slider_can_have_its_first_its_last_and_its_initial_value() -> None:
    """A range input takes the values min + k step alone: it would round another one."""
    charts = [section.make(data_of(section.figure)) for section in SECTIONS]
    binds = [(own["value"], own["bind"]) for chart in charts for own in chart.vega_lite.get("params", [])
             if "bind" in own]  # fmt: skip
    assert len(binds) == 18
    for value, bind in binds:
        assert bind["step"] > 0 and bind["min"] <= value <= bind["max"]
        for reached in (value, bind["max"]):
            steps = (reached - bind["min"]) / bind["step"]
            assert steps == pytest.approx(round(steps), abs=1e-9), bind


def test_a_chart_has_the_height_of_a_drawing_and_of_its_sliders() -> None:
    assert (HEIGHT, SLIDER) == (280, 40)
    for section in SECTIONS:
        chart = section.make(data_of(section.figure))
        count = sum("bind" in own for own in chart.spec.get("params", []))
        assert chart.spec["height"] == HEIGHT
        assert chart.height == HEIGHT + SLIDER * count


def test_every_mark_is_visible() -> None:
    shares = [
        part["opacity"]
        for section in SECTIONS
        for part in parts_of(section.make(data_of(section.figure)).vega_lite)
        if isinstance(part.get("opacity"), int | float)
    ]
    assert len(shares) > 5 and all(0 < share <= 1 for share in shares)


def test_the_tables_below_the_charts_are_what_the_sliders_show_at_the_start() -> None:
    for make in (formulas.inverse_metrics, formulas.flows, formulas.one_step, formulas.path):
        chart, lines = chart_of(make), lines_of(make)
        for place, method in enumerate(chart.head[1:], start=1):
            x, y = lines[method].T
            for row in chart.rows:
                if x[0] <= float(row[0]) <= x[-1] and float(row[0]) != 0:  # HYP jumps at 0
                    near = np.interp(float(row[0]), x, y)
                    assert near == pytest.approx(float(row[place]), abs=2e-3), (make, method, row)


def test_the_committed_page_is_of_the_committed_data() -> None:
    assert not stale({PAGE: page()[0]}, PAGE)


def test_every_section_says_what_to_look_for_and_cites_the_paper() -> None:
    text, problems = page()
    assert not problems
    for section in SECTIONS:
        assert re.search(r"(Equation|Lemma|Theorem|Section|Table|Figure|Appendix)", section.source)
        assert section.look_for.count(". ") == 0 and section.look_for.endswith(".")
        for name in section.functions:
            assert callable(getattr(theory, name))
    assert text.count('<div class="theory"') == len(SECTIONS) == 10
    assert text == page()[0]
    assert len(text) < 300_000


def spoil(folder: Path, figure: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / f"{figure}.json"
    data = json.loads(path.read_text())
    changed = change(data)
    path.write_text(json.dumps(data if changed is None else changed))


EVIL = "</script><img src=x onerror=alert(1)>"
SPOILED: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("figure01", lambda data: data["settings"]["strengths"]["ham"].update(alpha=EVIL)),
    ("figure01", lambda data: data["settings"]["strengths"]["ham"].update(alpha=1e9)),
    ("figure01", lambda data: data["theta"].pop()),
    ("figure01", lambda data: data.update(settings=[])),
    ("figure02b", lambda data: data["normalised"][0].__setitem__(3, EVIL)),
    ("figure02b", lambda data: data["settings"].update(alphas=[EVIL])),
    ("figure02b", lambda data: []),
    ("figure03", lambda data: data["settings"]["path"].update(optimum=float("nan"))),
    ("figure03", lambda data: data["path"].update(hyp=[])),
    ("figure04", lambda data: data["paths"]["gd"][0].update(seed=EVIL)),
    ("figure04", lambda data: data["paths"]["gd"][0].update(case=[2, 3])),
    ("figure04", lambda data: data["paths"]["gd"][0].update(a_w=[[1, 2, 3]])),
    ("figure04", lambda data: data["settings"].update(target=None)),
    ("figure06", lambda data: data["series"][0].update(method=EVIL)),
    ("figure06", lambda data: data["series"][0]["distances"][0].pop()),
    ("figure07", lambda data: data.update(steps=[0, -1])),
    ("figure08", lambda data: data["series"][0].update(alpha=-1)),
    ("figure08", lambda data: data["series"][0].update(lr=EVIL)),
    ("figure08", lambda data: data.update(series=[])),
]


@pytest.mark.parametrize(("figure", "change"), SPOILED)
def test_odd_data_are_named_and_left_out(figure: str, change: Callable[[dict], Any], tmp_path: Path) -> None:
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path, figure, change)
    text, problems = page(tmp_path)
    assert len(problems) == 1 and "\n" not in problems[0]
    assert problems[0].startswith(f"{tmp_path / figure}.json: ")
    assert "run" in problems[0]
    left = sum(section.figure != figure for section in SECTIONS)
    assert left <= text.count('<div class="theory"') < len(SECTIONS)
    assert EVIL not in text
    for spec in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL):
        json.loads(spec, parse_constant=pytest.fail)


def steps(count: int) -> Callable[[dict[str, Any]], Any]:
    """A path of so many steps."""
    weights = [0.6 - 0.01 * step for step in range(count + 1)]
    return lambda data: data.update(path={"hyp": weights, "hyp_star": weights})


@pytest.mark.parametrize("count", [1, 50])
def test_a_path_may_have_1_to_50_steps(count: int) -> None:
    data = data_of("figure03")
    steps(count)(data)
    chart = formulas.path(data)
    assert chart.rows[-1][0] == str(count)
    assert chart.spec["layer"][-1]["encoding"]["x"]["scale"]["domain"] == [0, count]


@pytest.mark.parametrize(("optimum", "low"), [(-1, -1.2), (-0.5, -1.2), (-2, -2.4)])
def test_the_axis_of_a_path_reaches_below_its_optimum(optimum: float, low: float) -> None:
    data = data_of("figure03")
    data["settings"]["path"]["optimum"] = optimum
    chart = formulas.path(data)
    assert chart.spec["layer"][-1]["encoding"]["y"]["scale"]["domain"] == [pytest.approx(low), 1]
    assert chart.title == f"Steps through zero to the optimum {optimum:g}"


REFUSED: list[tuple[Callable, str, Callable[[dict[str, Any]], Any], str]] = [
    (formulas.path, "figure03", steps(0), "its path has 0 steps, not 1 to 50"),
    (formulas.path, "figure03", steps(51), "its path has 51 steps, not 1 to 50"),
    *(
        (formulas.flows, "figure01", own, "its flow is not from -1 to the minimum")
        for own in (
            lambda data: data["settings"].update(start=-2),
            lambda data: data["settings"].update(optimum=2),
            lambda data: data["settings"].update(loss="theta^2"),
        )
    ),
    *(
        (neuron.quadrants, "figure04", own, "a path has no case of signs or no seed")
        for own in (
            lambda data: data["paths"]["ham"][0].update(case=[2, 3]),
            lambda data: data["paths"]["ham"][0].update(seed=1.0),
        )
    ),
    *(
        (neuron.quadrants, "figure04", own, "a path has not two coordinates at each of its points")
        for own in (
            lambda data: data["paths"]["ham"][0].update(a_w=[[1, 2]]),
            lambda data: data["paths"]["ham"][0].update(a_w=[[1, 2], [1, 2, 3], [1, 2]]),
        )
    ),
    *(
        (section.make, "figure06", own, "it lacks steps, or a step or distance is not above 0")
        for section in SECTIONS
        if section.figure == "figure06"
        for own in (
            lambda data: data["steps"].__setitem__(1, 0),
            lambda data: data["steps"].__setitem__(1, -0.5),
            lambda data: data["steps"].append(10**7),
            lambda data: data["series"][0]["distances"][0].__setitem__(1, 0),
            lambda data: data["series"][0]["distances"][1].__setitem__(-1, -1),
            lambda data: shorten(data),
        )
    ),
]


def shorten(data: dict[str, Any]) -> None:
    """Leave the start alone."""
    del data["steps"][1:]
    for series in data["series"]:
        for distances in series["distances"]:
            del distances[1:]


@pytest.mark.parametrize(("make", "figure", "change", "message"), REFUSED)
def test_data_that_cannot_be_drawn_are_refused_with_the_reason(
    make: Callable[[dict[str, Any]], Chart], figure: str, change: Callable[[dict], Any], message: str
) -> None:
    data = data_of(figure)
    change(data)
    with pytest.raises(ValueError) as caught:
        make(data)
    assert str(caught.value).startswith(message)


def test_points_of_a_path_that_are_at_most_a_hundredth_apart_are_left_out_but_for_its_ends() -> None:
    assert neuron._coordinates([[0, 0], [0.01, 0], [0, 0.011], [0.0005, 0.011], [0.0004, 0.0112]]) == (
        [0, 0, 0],
        [0, 0.011, 0.011],
    )
    assert neuron._coordinates([[0, 1], [0, 1]]) == ([0, 0], [1, 1])


def test_missing_and_damaged_data_are_named_with_the_cure(tmp_path: Path) -> None:
    text, problems = page(tmp_path)
    assert 'class="theory"' not in text and "run <code>python scripts/theory_runs.py</code>" in text
    assert problems == [
        f"{tmp_path / figure}.json is missing: run python scripts/theory_runs.py --figure {figure}"
        for figure in dict.fromkeys(section.figure for section in SECTIONS)
    ]
    (tmp_path / "figure01.json").write_text("{")
    (tmp_path / "figure06.json").mkdir()
    problems = page(tmp_path)[1]
    assert len(problems) == 7 and problems[0].startswith(f"{tmp_path / 'figure01.json'}: it cannot be read")
    assert "is not a regular file" in problems[4]
    assert page(tmp_path / "nowhere") == (text, [])  # other results than this repository's


def test_the_regressions_know_the_methods_of_the_data() -> None:
    methods = {own["method"] for name in ("figure06", "figure07") for own in data_of(name)["series"]}
    assert methods == set(regression.LABELS)
