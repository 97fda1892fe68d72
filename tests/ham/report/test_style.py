"""A method looks the same in every figure, and differs from the others also without colors."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib import rc_context, rcParams
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ham.report import figures, methods, plan, style
from ham.report import theory_figures as theory
from ham.report.records import read_all
from ham.report.spec import PlanError, RunSpec

ARMS = ("base", "ham", "alpha_only", "beta_only", "matched_decay")  # often in one figure


def luminance(color: str) -> float:
    """ITU-R BT.601, which printers and image programs use for gray."""
    red, green, blue = to_rgb(color)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def appearance(line: Line2D) -> tuple[Any, ...]:
    return (to_hex(line.get_color()), line.get_linestyle(), line._unscaled_dash_pattern, line.get_marker())


def test_no_two_methods_look_alike_without_colors() -> None:
    """Line styles are unique; markers are too, but for SAM's, which are the method's own, hollow."""
    looks = methods.METHODS
    assert len({str(look["linestyle"]) for look in looks.values()}) == len(looks)
    markers = {(look["marker"], look.get("markerfacecolor", "")) for look in looks.values()}
    assert len(markers) == len(looks)
    assert {name for name, look in looks.items() if "markerfacecolor" in look} == {
        name for name in looks if name.startswith("sam")
    }


LOOKS = """
    base #000000 - o
    ham #D55E00 -- s
    alpha_only #CC79A7 : v
    beta_only #117733 5,1,1,1,1,1 D
    matched_decay #F0A830 8,2 P
    nham #AA4499 2,2 *
    sign_in #0072B2 -. ^
    pilot #882255 6,1,2,1 X
    spred #661100 4,1,1,1,1,1,1,1 h
    product #56B4E9 4,1,1,1 <
    product_decay #44AA99 1,1 >
    ham_signed #332288 7,1.5,1.5,1.5 d
    hyperbolic #999933 1,0.7 p
    sam #999999 10,1 o white
    sam_ham #EBA878 3,1 s white
    sam_alpha_only #DDA9C7 1,2 v white
    sam_beta_only #70AD85 3,1,1,1,1,1 D white
    sam_matched_decay #D6C87E 6,3 P white
"""


def test_a_method_keeps_its_look_from_one_release_to_the_next() -> None:
    """Figures that were published before can be read beside new ones."""
    expected = {}
    for name, color, dashes, *rest in map(str.split, LOOKS.strip().splitlines()):
        lengths = tuple(map(float, dashes.split(","))) if "," in dashes else ()
        own = {"color": color, "linestyle": (0, lengths) if lengths else dashes}
        expected[name] = own | dict(zip(("marker", "markerfacecolor"), rest, strict=False))
    assert expected == methods.METHODS


def test_every_dash_and_gap_of_a_line_has_a_length() -> None:
    """A dash of length 0 is not drawn: matplotlib's dashes have no caps by default."""
    patterns = [
        look["linestyle"][1] for look in methods.METHODS.values() if isinstance(look["linestyle"], tuple)
    ]
    assert patterns and all(len(pattern) % 2 == 0 and min(pattern) > 0 for pattern in patterns)


def test_colors_are_distinct_and_arms_of_one_figure_differ_in_gray() -> None:
    colors = [to_rgb(look["color"]) for look in methods.METHODS.values()]
    distances = [
        sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5 for x, y in combinations(colors, 2)
    ]
    assert min(distances) > 0.12
    grays = [luminance(methods.METHODS[arm]["color"]) for arm in ARMS]
    assert min(abs(a - b) for a, b in combinations(grays, 2)) > 0.09
    assert max(luminance(look["color"]) for look in methods.METHODS.values()) < 0.8  # visible on white


def test_shades_of_a_method_go_from_dark_to_light_with_a_line_style_each() -> None:
    for count in (2, 3, 4):
        looks = style.shades("ham", count)
        grays = [luminance(look["color"]) for look in looks]
        assert len({str(look["linestyle"]) for look in looks}) == count
        assert all(b - a > 0.09 for a, b in pairwise(grays))


def test_a_method_has_four_shades_at_most() -> None:
    with pytest.raises(ValueError, match="zip"):
        style.shades("ham", 5)


@pytest.mark.parametrize(
    ("label", "method"),
    [
        *(("SGD", "base"), ("Random", "base"), ("GD", "base"), ("Baseline", "base"), ("AC/DC", "base")),
        *(("HAM", "ham"), ("+ HAM", "ham"), ("AC/DC + HAM", "ham"), ("HAM (200, 1e-3)", "ham")),
        *(("+ Sign-In", "sign_in"), ("RiGL + Sign-In", "sign_in"), ("SAM + HAM", "sam_ham"), ("SAM", "sam")),
        *(("m * w", "product"), ("HAM (200, 0)", "alpha_only"), ("HAM (0, 1e-3)", "beta_only")),
    ],
)
def test_labels_name_methods(label: str, method: str) -> None:
    assert methods.look(label) is methods.METHODS[method]


@pytest.mark.parametrize(
    ("exp", "method"),
    [
        *(("dense", "base"), ("acdc_ham_s90", "ham"), ("dense_sam", "sam"), ("cifar100_sam_ham", "sam_ham")),
        *(("dense_alpha_only", "alpha_only"), ("node/cora_gcn_nham", "nham"), ("spred_s90", "spred")),
        *(("random_sign_in_s90", "sign_in"), ("dense_product_decay", "product_decay"), ("hammer", "base")),
    ],
)
def test_names_of_experiments_name_methods(exp: str, method: str) -> None:
    assert methods.method_of_experiment(exp) == method


def test_an_unknown_label_is_an_error_that_names_the_cure() -> None:
    for label in ("Adagrad", "Adagrad + HAM", "", "+ "):
        with pytest.raises(
            PlanError, match=r"no method has the label .*: add it to LABELS in ham/report/methods\.py"
        ):
            methods.look(label)


def test_each_label_belongs_to_one_method_and_every_method_has_one() -> None:
    labels = [label for own in methods.LABELS.values() for label in own]
    assert len(labels) == len(set(labels)) and set(methods.LABELS) == set(methods.METHODS)


def test_a_method_has_one_look_in_all_figures(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    """Of all curves that are drawn from records: label -> method -> one color, line style and marker."""
    looks: dict[str, set[tuple[Any, ...]]] = {}
    names = [name for name in plan.figures() if plan.figure(name).kind == "curves"]
    for name in names:
        for exp in plan.figure(name).series.values():
            write_record(tmp_path, RunSpec(exp, 0))
    records, _ = read_all("", tmp_path)
    for name in names:
        with style.styled():
            picture = figures.draw(plan.figure(name), records)
        for label, line in zip(plan.figure(name).series, picture.axes[0].get_lines(), strict=True):
            (method,) = [key for key, look in methods.METHODS.items() if look is methods.look(label)]
            looks.setdefault(method, set()).add(appearance(line))
    assert {"base", "ham", "sign_in", "sam", "sam_ham", "product"} <= looks.keys()
    assert all(len(own) == 1 for own in looks.values())
    assert len({next(iter(own)) for own in looks.values()}) == len(looks)


@pytest.mark.parametrize("name", sorted(theory.FIGURES))
def test_theory_has_the_same_colors(name: str) -> None:
    """Where GD, HAM or m * w is in a legend, its line has the method's color and line style."""
    data = json.loads((theory.DATA / f"{name}.json").read_text())
    with style.styled():
        picture = theory.FIGURES[name](data)
    known = {"GD": "base", "HAM": "ham", "m * w": "product", "HAM signed": "ham_signed"}
    for axes in picture.axes:
        for line in axes.get_lines():
            label = line.get_label().split(" (")[0].split(",")[0]
            if label in known and not line.get_label().startswith("HAM, alpha"):
                assert to_hex(line.get_color()) == methods.METHODS[known[label]]["color"].lower(), label
    if name != "figure04":
        colors = {to_hex(line.get_color()).upper() for axes in picture.axes for line in axes.get_lines()}
        shades = {look["color"].upper() for n in (2, 3, 4) for look in style.shades("ham", n)}
        assert colors & ({methods.METHODS["ham"]["color"]} | shades)


@pytest.mark.parametrize("name", sorted(theory.FIGURES))
def test_nothing_of_a_theory_figure_is_cut_off_or_covered_by_its_legend(name: str) -> None:
    """Texts, axes and legends lie within the figure; no line that a legend explains passes through it."""
    with style.styled():
        picture = theory.FIGURES[name](json.loads((theory.DATA / f"{name}.json").read_text()))
        picture.draw_without_rendering()
    box_of_all = picture.bbox.padded(3)
    for part in (*picture.legends, *picture.axes):
        box = part.get_tightbbox()
        assert box_of_all.contains(*box.min) and box_of_all.contains(*box.max), (name, part)
    for axes in picture.axes:
        legend = axes.get_legend()
        box = legend.get_window_extent() if legend else None
        for line in axes.get_lines() if legend else ():
            points = axes.transData.transform(line.get_xydata())
            inside = [box.contains(*point) for point in points]
            assert line.get_label().startswith("_") or not any(inside), (name, line.get_label())


def test_the_style_is_independent_of_the_users_and_ends_with_its_block() -> None:
    mine = {"lines.linewidth": 9.0, "axes.facecolor": "red", "axes.grid": False}
    with rc_context(mine):
        with style.styled():
            shown = {key: rcParams[key] for key in mine}
            assert (rcParams["font.family"], rcParams["font.size"]) == (["DejaVu Sans"], 8)
        assert {key: rcParams[key] for key in mine} == mine
    assert shown == {"lines.linewidth": 1.3, "axes.facecolor": "white", "axes.grid": True}


def test_panels_stand_side_by_side_and_a_single_one_is_wider() -> None:
    for count, inches in ((1, 4.4), (2, 6.8), (3, 10.2)):
        picture, axes = style.panels(count)
        assert tuple(picture.get_size_inches()) == pytest.approx((inches, 2.6)) and len(axes) == count
        specs = [axis.get_subplotspec() for axis in axes]
        assert [spec.colspan.start for spec in specs] == list(range(count))
        assert {spec.rowspan.start for spec in specs} == {0}
    picture, _ = style.panels(2, width=1.5, height=4.0)
    assert tuple(picture.get_size_inches()) == pytest.approx((3.0, 4.0))


def test_a_title_has_14_characters_per_inch_and_no_empty_line() -> None:
    picture, _ = style.panels(1, width=2.0)
    style.title(picture, "a " * 14 + "b", "", "last")
    assert picture.get_suptitle().splitlines() == ["a " * 13 + "a", "b", "last"]


def test_a_figure_is_saved_to_a_new_folder_and_over_an_earlier_one(tmp_path: Path) -> None:
    picture = Figure(figsize=(1, 1))
    stem = tmp_path / "a" / "b" / "figure.1"
    for _ in range(2):
        assert [path.name for path in style.save(picture, stem)] == ["figure.1.pdf", "figure.1.png"]
    written = b"".join(path.read_bytes() for path in stem.parent.iterdir())
    assert not [word for word in (b"Date", b"Creator", b"Producer", b"Software") if word in written]


def test_the_legends_of_figures_3_and_4_explain_every_kind_of_mark() -> None:
    texts = {}
    for name in ("figure03", "figure04"):
        with style.styled():
            picture = theory.FIGURES[name](json.loads((theory.DATA / f"{name}.json").read_text()))
        (legend,) = picture.legends
        texts[name] = " | ".join(text.get_text() for text in legend.get_texts())
        assert not any(axes.get_legend() for axes in picture.axes)
    assert all(
        word in texts["figure03"] for word in ("HYP:", "HYP*", r"\theta_k$", "k+1/2", "changes the sign")
    )
    assert all(word in texts["figure04"] for word in ("learns", "fails", "end", "a w = 1"))
