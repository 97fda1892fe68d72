"""Every record has its row and its page, and the curves are those of its epochs."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_pages import Element, data_of, grid, parse, stale

from ham.experiments import experiments
from ham.files import RESULTS
from ham.report import methods, plan
from ham.report.curves import Curve
from ham.report.records import write_divergence
from ham.report.scales import FOLDERS
from ham.report.spec import PlanError, RunSpec, lock
from ham.report.study import studies, study
from ham.site import build, charts, curves, pages, runs

FILES = [path for folder in FOLDERS for path in sorted((RESULTS / folder).rglob("seed*.json"))]
NAMED = ("Run", "Setting", "Cell of the paper", "Seed", "Outcome")
REPORTED = {"images": "top1", "nodes": "valid", "graphs": "valid"}


def reported(content: dict[str, Any]) -> tuple[float, float]:
    """The metric after the last and in the best epoch; a language model is tested once."""
    metrics = content["metrics"]
    task = content.get("task") or ("nodes" if content["exp"].startswith("node/") else "images")
    if task == "language":
        return metrics["average"], metrics["average"]
    return tuple(metrics[f"{REPORTED[task]}_{epoch}"] for epoch in ("last", "best"))


def table(page: Element, caption: str) -> Element:
    return next(own for own in page.all("table") if own.all("caption")[0].text == caption)


def rows_of(page: Element, caption: str) -> list[dict[str, Element]]:
    own = table(page, caption)
    head = [cell.text for cell in own.all("thead")[0].all("th")]
    return [dict(zip(head, row, strict=True)) for row in grid(own)]


def facts(page: Element) -> dict[str, str]:
    """All names and values of lists."""
    return {
        a.text: b.text for own in page.all("dl") for a, b in zip(own.all("dt"), own.all("dd"), strict=True)
    }


def texts_of(row: dict[str, Element]) -> dict[str, str]:
    return {name: cell.text for name, cell in row.items()}


@pytest.fixture(scope="module")
def listed(committed: dict[str, str]) -> dict[tuple[str, int], dict[str, Element]]:
    """Page and seed -> the row in the list of all runs."""
    rows = rows_of(parse(committed["runs.html"]), "All runs")
    found = {(row["Run"].all("a")[0].attrs["href"], int(row["Seed"].text)): row for row in rows}
    assert len(found) == len(rows)
    return {(href.split("#")[0], seed): row for (href, seed), row in found.items()}


def test_every_record_is_listed_with_its_numbers(listed: dict[Any, dict[str, Element]]) -> None:
    assert len(listed) == len(FILES) > 400
    by_hash = {}
    for demo, specs in lock().items():
        by_hash |= {(demo, info.config_hash): spec for spec, info in reversed(specs.items())}
    for path in FILES:
        content = json.loads(path.read_text())
        exp, demo = content["exp"], content["demo"] or ""
        name = exp.replace("/", "-") + (f"-{demo}" if demo else "")
        name += f"-{content['config_hash'][:8]}" if content["overridden"] else ""
        row = listed[f"runs/{name}.html", content["seed"]]
        last, best = reported(content)
        assert row["Last epoch"].text == f"{last:.2f}" and row["Best epoch"].text == f"{best:.2f}"
        assert row["Sparsity"].text == f"{100 * content['sparsity']['overall']:.2f}"
        assert row["Epochs"].text == str(content["epochs"]) and row["Outcome"].text == "done"
        assert row["Run"].text.split(" ")[0] == exp and row["Cell of the paper"].text == experiments()[exp]


def test_the_page_of_a_run_has_metrics_provenance_configuration_and_command(
    committed: dict[str, str], listed: dict[Any, dict[str, Element]]
) -> None:
    for path in FILES[:: max(1, len(FILES) // 60)] + FILES[-4:]:
        content = json.loads(path.read_text())
        (href,) = {
            page
            for page, seed in listed
            if seed == content["seed"]
            and content["config_hash"] in committed[page]
            and content["exp"] in committed[page]
        }
        page = parse(committed[href])
        (row,) = [own for own in rows_of(page, "Seeds") if own["Seed"].text == str(content["seed"])]
        for metric, value in content["metrics"].items():
            shown = row[metric].text
            assert (
                shown == "-" if value is None else float(shown) == pytest.approx(value, rel=1e-5, abs=0.006)
            )
        known, provenance = facts(page), content["provenance"]
        assert known["commit"] in {
            json.loads(other.read_text())["provenance"]["commit"] for other in path.parent.glob("seed?*.json")
        }
        assert provenance["python"] in page.text and f"torch {provenance['versions']['torch']}" in page.text
        assert (
            provenance["hardware"]["cpu"] in page.text
            and known["configuration hash"] == content["config_hash"]
        )
        yaml = Path("configs/exp") / f"{content['exp']}.yaml"
        assert (
            "".join(map(str, page.all("pre")[0].all("code")[0].parts)) == (RESULTS.parent / yaml).read_text()
        )
        command = shlex.split(row["Command"].all("button")[0].attrs["data-copy"])
        demo = [f"+demo={content['demo']}"] if content["demo"] else []
        assert command[:2] == ["python", "train.py"] and f"seed={content['seed']}" in command
        assert command[2 : 3 + len(demo)] == [f"+exp={content['exp']}", *demo]
        if content["overridden"]:
            assert command[2:] == [word for word in provenance["argv"] if "=" in word]


def test_curves_are_means_and_deviations_of_the_epochs(committed: dict[str, str]) -> None:
    """Computed again with numpy from the files, for every page of committed runs that has charts."""
    names = {
        "accuracy": ("top1", 1),
        "loss": ("train_loss", 1),
        "l1": ("l1_mean", 1),
        "flips": ("sign_flips", 100),
    }
    names |= {"sparsity": ("sparsity", 100), "clamped": ("clamped_share", 100)}
    compared = set()
    for folder in sorted({path.parent for path in FILES if path.with_suffix(".metrics.jsonl").exists()}):
        text = f"Records: results/{folder.relative_to(RESULTS)}."
        (page,) = [own for name, own in committed.items() if name[:5] == "runs/" and text in parse(own).text]
        runs = [list(map(json.loads, own.open())) for own in sorted(folder.glob("*.metrics.jsonl"))]
        for name, spec in data_of(parse(page), "data-chart").items():
            key, scale = names[name]
            values = {
                e + 1: [scale * run[e][key] for run in runs]
                for e in range(len(runs[0]))
                if runs[0][e].get(key) is not None
            }
            rows = list(csv.DictReader(io.StringIO(spec["data"]["values"])))
            assert rows[-1]["epoch"] == str(max(values)) and 3 <= len(rows) <= curves.POINTS + 1
            for row in rows:
                own = np.array(values[int(row["epoch"])])
                std = own.std(ddof=1) if len(own) > 1 else 0
                expected = [own.mean(), own.mean() - std, own.mean() + std]
                assert [float(row[k]) for k in ("mean", "low", "high")] == pytest.approx(
                    expected, rel=1e-3, abs=1e-9
                )
            compared.add(name)
    assert compared == set(names)


def test_the_committed_pages_of_runs_and_curves_are_of_the_records(committed: dict[str, str]) -> None:
    assert not stale(committed, "runs", "curves.html")


def test_the_reader_can_choose_every_curve(committed: dict[str, str]) -> None:
    page = parse(committed["curves.html"])
    data = data_of(page, "data-choice")["choice"]
    boxes = [own for own in page.all("input") if own.attrs["type"] == "checkbox"]
    assert [own.attrs["value"] for own in boxes] == [str(i) for i in range(len(data["series"]))]
    with_charts = [name for name, text in committed.items() if name[:5] == "runs/" and "data-chart" in text]
    assert len(data["series"]) == len(with_charts) == len(rows_of(page, "Last epoch")) > 5
    options = [own.attrs["value"] for own in page.all("option")]
    assert sorted(options) == sorted(data["panels"]) and {"accuracy", "loss", "l1", "flips"} <= {*options}
    for own in data["series"]:
        for points in own["curves"].values():
            assert all(len(point) == 3 for point in points)


@pytest.mark.parametrize(
    ("epochs", "points", "distance"),
    [(31, 31, 1), (32, 31, 2), (62, 31, 2), (63, 31, 5), (155, 31, 5), (156, 31, 10), (0, 31, 1)]
    + [(11, 1, 20), (51, 1, 100), (10**8 + 1, 1, 2 * 10**8), (5 * 10**8, 1, 5 * 10**8)],
)
def test_epochs_of_a_curve_have_a_round_distance(epochs: int, points: int, distance: int) -> None:
    assert curves.step(epochs, points) == distance


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (31, list(range(1, 32))),
        (32, list(range(2, 33, 2))),
        (33, [*range(2, 33, 2), 33]),
        (100, list(range(5, 101, 5))),
        (101, [*range(5, 101, 5), 101]),
    ],
)
def test_a_curve_shows_multiples_of_its_distance_and_the_last_epoch(count: int, expected: list[int]) -> None:
    lines = [{"epoch": epoch} for epoch in range(count)]
    assert [[line["epoch"] + 1 for line in own] for own in curves.thinned([lines])] == [expected]
    assert curves.thinned([]) == []


def test_the_numbers_of_curves_are_at_most_about_twelve_rows_with_the_last_epoch() -> None:
    panel = Curve(tuple(range(1, 26)), tuple(map(float, range(1, 26))), (0.0,) * 24 + (0.125,))
    head, rows = runs._numbers({"loss": panel, "l1": Curve((25,), (0.5,), (0.0,))})
    assert head == ["epoch", "training loss", "L1: mean |weight|"]
    assert rows == [
        [5, "5", ""], [10, "10", ""], [15, "15", ""], [20, "20", ""], [25, "25 +- 0.12", "0.5"]
    ]  # fmt: skip
    assert [row[0] for row in runs._numbers({"loss": thin(panel, 12)})[1]] == [*range(1, 13)]
    assert [row[0] for row in runs._numbers({"loss": thin(panel, 13)})[1]] == [2, 4, 6, 8, 10, 12, 13]
    assert runs._numbers({}) == (["epoch"], [])


def thin(points: Curve, count: int) -> Curve:
    """Its first points."""
    return Curve(points.epochs[:count], points.means[:count], points.stds[:count])


def test_curves_with_a_missing_deviation_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        runs._numbers({"loss": Curve((1, 2), (1.0, 2.0), (0.0,))})
    with pytest.raises(ValueError, match="shorter"):
        runs._numbers({"loss": Curve((1, 2), (1.0,), (0.0,))})
    with pytest.raises(ValueError, match="shorter"):
        curves._points(Curve((1, 2), (1.0, 2.0), (0.0,)))


def test_lists_of_a_record_are_words_with_commas_and_none_without_any() -> None:
    assert runs._one_line({"gpus": [], "cores": 2, "names": ["a", "b"]}) == "gpus none, cores 2, names a, b"


@pytest.mark.parametrize(("dirty", "words"), [(True, "yes"), (False, "no"), (None, "unknown")])
def test_the_provenance_says_whether_changes_were_uncommitted(dirty: bool | None, words: str) -> None:
    assert runs._provenance({"dirty": dirty, "argv": []})["uncommitted changes"] == words


def test_runs_that_diverged_are_listed_with_their_reason(
    tmp_path: Path, write_record: Callable[..., Path], make_summary: Callable[..., dict]
) -> None:
    run = RunSpec("cifar100_ham", 1)
    write_record(tmp_path, RunSpec("cifar100_ham", 0))
    for own, reason in ((run, "the loss became nan at epoch 3"), (RunSpec("deit", 2), "a weight became inf")):
        write_divergence(own, make_summary(own, status="diverged", reason=reason, epochs=3), tmp_path)
    site, problems = build.render_site(tmp_path)
    assert not problems
    rows = rows_of(parse(site["runs.html"]), "All runs")
    assert [(row["Run"].text, row["Seed"].text, row["Outcome"].text) for row in rows] == [
        ("cifar100_ham", "0", "done"),
        ("cifar100_ham", "1", "diverged"),
        ("deit", "2", "diverged"),
    ]
    lost = [row for row in rows if row["Outcome"].text == "diverged"]
    assert all({text for name, text in texts_of(row).items() if name not in NAMED} == {""} for row in lost), (
        "a run without a result has no numbers"
    )
    assert [row["Run"].all("a")[0].attrs["href"] for row in rows] == [
        "runs/cifar100_ham.html#seed0", "runs/cifar100_ham.html#seed1", "runs/deit.html#seed2"
    ]  # fmt: skip
    page = parse(site["runs/cifar100_ham.html"]).text
    assert "Seed 1 diverged: the loss became nan at epoch 3." in page and "+exp=cifar100_ham seed=1" in page
    assert "Seed 2 diverged: a weight became inf." in parse(site["runs/deit.html"]).text


def test_without_records_every_page_is_still_there(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    site, problems = build.render_site(tmp_path)
    assert not problems and "No record keeps its epochs yet." in site["curves.html"]
    assert "0 runs have a record" in parse(site["runs.html"]).text and not [
        name for name in site if name[:5] == "runs/"
    ]


# Looks


def test_every_method_has_a_color_in_both_schemes_a_line_style_and_a_marker() -> None:
    light, dark = (
        (pages.ROOT / "assets" / "site.css").read_text().split("@media (prefers-color-scheme: dark)")[:2]
    )
    for name in methods.METHODS:
        variable = re.fullmatch(r"var\((--[\w-]+)\)", charts.color(name))[1]
        assert f"{variable}: #" in light and f"{variable}: #" in dark, name
        assert charts.shape(name) and len(charts.dash(name)) % 2 == 0
    assert len({tuple(charts.dash(name)) for name in methods.METHODS}) == len(methods.METHODS)
    slots = [(tuple(charts.dash(name)), charts.shape(name)) for name in curves.SLOTS]
    assert len({dash for dash, _ in slots}) == len({shape for _, shape in slots}) == len(slots)


def test_the_method_of_an_experiment_is_that_of_its_labels() -> None:
    """Of figures, studies and tables, whose labels are written by hand."""
    labeled = {exp: label for name in plan.figures() for label, exp in plan.figure(name).series.items()}
    labeled |= {arm.exp: arm.name for name in studies() for arm in study(name).arms.values()}
    labeled |= {cell.exp: row.label for row in plan.table("4").rows for cell in row.cells if cell}
    known = {}
    for exp, label in labeled.items():
        with suppress(PlanError):  # arms of studies have names of their own
            known[exp] = methods.method_of(label)
    assert len(known) > 40
    assert {exp: methods.method_of_experiment(exp) for exp in known} == known


def test_the_charts_are_valid_vega_lite(committed: dict[str, str]) -> None:
    """Compiled by the library that draws them; charts that share a specification are completed first."""
    vl_convert = pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    compiled = 0
    for name in ("index.html", "runs/random_ham_s90-digits.html", "curves.html"):
        specs: dict[str, Any] = {}
        page = parse(committed[name])
        for chart, spec in data_of(page, "data-chart").items():
            base = specs.get(spec.pop("like", ""), {})
            specs[chart] = base | spec | {"data": base.get("data", {}) | spec["data"]}
        specs |= {chart: own["spec"] for chart, own in data_of(page, "data-choice").items()}
        for spec in specs.values():
            vega = vl_convert.vegalite_to_vega(spec | {"width": 400})
            assert vega["marks"] and vega["description"]
            compiled += 1
    assert compiled > 6
