"""The page of a study: how far it is; once complete, the differences that scipy computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from printed_numbers import markdown_tables
from scipy import stats
from site_pages import Element, data_of, grid, parse, stale
from study_files import PLAN, all_tuned

from ham.files import RESULTS
from ham.report.records import metrics_path, write_divergence
from ham.report.spec import RunSpec
from ham.site import build, study

RATES = {"SGD": 0.05, "HAM": 0.0125, "matched decay": 0.05, "beta alone": 0.2, "alpha alone": 0.0125}
PRIMARY = [PLAN.arms[name] for name in PLAN.parts["primary"].arms]
COMMANDS = (
    "python scripts/sweep.py --study cifar16 --local",
    "python scripts/collect.py --demo cifar16",
    "python scripts/study.py cifar16",
)
PAIRS = [("HAM", "SGD"), ("HAM", "matched decay"), ("HAM", "beta alone")]


def runs(part: str) -> dict[tuple[str, int], RunSpec]:
    plan, outcomes = PLAN.parts[part], all_tuned(RATES)
    return {
        (arm, seed): PLAN.run(arm, PLAN.rate(arm, outcomes), seed) for arm in plan.arms for seed in plan.seeds
    }


def accuracies(part: str) -> dict[tuple[str, int], float]:
    """Made-up: HAM is better by 1 point; noise that a seed's arms share, and noise of their own."""
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 2, 10)
    keys = runs(part)
    return {key: round(45 + ("HAM" in key[0]) + shared[key[1]] + rng.normal(0, 0.4), 2) for key in keys}


def page(results: Path) -> tuple[dict[str, str], Element]:
    site, problems = build.render_site(results)
    assert not problems
    return site, parse(site["study.html"])


def rows(root: Element, caption: str) -> dict[str, list[str]]:
    table = next(own for own in root.all("table") if own.all("caption")[0].text == caption)
    return {row[0].text: [cell.text for cell in row[1:]] for row in grid(table)}


@pytest.fixture
def tuned(tmp_path: Path, write_record: Callable[..., Path]) -> Path:
    for run, accuracy in all_tuned(RATES).items():
        write_record(tmp_path, run, accuracy)
    return tmp_path


def test_the_committed_page_says_how_far_the_study_is(committed: dict[str, str]) -> None:
    root = parse(committed["study.html"])
    text = (RESULTS / "tables" / "study_cifar16.md").read_text()
    for line in (line for line in text.splitlines() if re.search(r"\d+ of \d+ runs", line)):
        assert line.removeprefix("- ").removesuffix(" **Bold**: chosen.") in root.text
    tables = markdown_tables(text)
    assert rows(root, "Claims and verdicts") == {row[0]: row[1:] for row in tables[0][1:]}
    marked = [[re.sub(r"\*\*(.*)\*\*", r"\1 (chosen)", cell) for cell in row] for row in tables[-1][1:]]
    assert rows(root, "Tuning") == {row[0]: row[1:] for row in marked}
    progress = {part: cells[1] for part, cells in rows(root, "Progress").items()}
    assert (
        progress.keys() == {"tuning", *PLAN.parts}
        and f"{progress['tuning'].split()[0]} of 20" == progress["tuning"]
    )


def test_the_committed_page_is_of_the_records(committed: dict[str, str]) -> None:
    assert not stale(committed, "study.html")


def check_panels(root: Element) -> None:
    """Titles, order and height of the charts of a complete study, and who is drawn where."""
    shown = {own.attrs["id"]: own for own in root.all("div") if "plot" in own.classes}
    titles = {name: own.attrs["aria-label"] for name, own in shown.items()}
    primary = [(name.split("-")[-1], title) for name, title in titles.items() if "-primary-" in name]
    assert primary == [
        ("top1", "Test top-1 [%]"),
        ("loss", "Training loss"),
        ("l1", "L1: mean |weight|"),
        ("flips", "Weights that change sign in ten epochs [%]"),
    ]
    assert titles["cifar16-forest"].startswith("Paired differences: seeds (dots)")
    pairs = PLAN.parts["secondary"].contrasts
    drawn = {name: title for name, title in titles.items() if "-secondary-" in name}
    assert drawn == {
        f"cifar16-secondary-top1{i}": f"{own.reference} and {own.arm}" for i, own in enumerate(pairs)
    }
    assert {own.attrs["style"] for name, own in shown.items() if name != "cifar16-forest"} == {
        "min-height: 300px"
    }
    flips = data_of(root, "data-chart")["cifar16-primary-flips"]
    scale = flips["layer"][1]["encoding"]["strokeDash"]["scale"]
    assert scale["domain"] == [arm.name for arm in PRIMARY] and len(map_of(scale)) == 5


def map_of(scale: dict[str, list]) -> dict[str, tuple]:
    """Label -> its look, without two of the same look."""
    looks = {name: tuple(look) for name, look in zip(scale["domain"], scale["range"], strict=True)}
    return {look: name for name, look in looks.items()}


def test_the_curves_are_of_metrics_of_epochs_in_percent_where_they_are_shares() -> None:
    assert {name: (own.metric, own.scale) for name, own in study.PANELS.items()} == {
        "top1": ("top1", 1),
        "loss": ("train_loss", 1),
        "l1": ("l1_mean", 1),
        "flips": ("sign_flips", 100),
        "small": ("below_0.001", 100),
        "clamped": ("clamped_share", 100),
    }
    percent = {name for name, own in study.PANELS.items() if own.label.endswith("[%]")}
    assert percent == {"top1", "flips", "small", "clamped"}
    assert study.PANELS["small"].label == "weights below 1e-3 [%]"


def test_an_incomplete_part_shows_accuracies_and_no_difference(
    tuned: Path, write_record: Callable[..., Path]
) -> None:
    values = accuracies("primary")
    for key, run in list(runs("primary").items())[:-1]:
        write_record(tuned, run, values[key])
    _, root = page(tuned)
    assert rows(root, "Progress")["primary"] == ["", "49 of 50"] and "Incomplete: 49 of 50 runs." in root.text
    assert "HAM - SGD" not in root.text and "cifar16-forest" not in data_of(root, "data-chart")
    assert "No part is complete, so no difference is shown" in root.text
    assert rows(root, "Arms")["HAM"][1] == "10"


def test_a_complete_study_is_what_scipy_computes(tuned: Path, write_record: Callable[..., Path]) -> None:
    values = {}
    for part in PLAN.parts:
        values[part] = accuracies(part)
        for key, run in runs(part).items():
            write_record(tuned, run, values[part][key])
    site, root = page(tuned)
    spec = data_of(root, "data-chart")["cifar16-forest"]
    lines = [re.fullmatch(r"([^,]*),(.*)", line).groups() for line in spec["data"]["values"].splitlines()[1:]]
    for arm, reference in PAIRS:
        a, b = (np.array([values["primary"][name, seed] for seed in range(10)]) for name in (arm, reference))
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        own = [rest.split(",") for name, rest in lines if name == f"{arm} - {reference} (n = 10)"]
        assert [float(cell) for cell in own[0][:3]] == pytest.approx([low, (a - b).mean(), high], rel=1e-3)
        assert [float(cell[4]) for cell in own[1:]] == pytest.approx(list(a - b), abs=1e-3)
        shown = rows(root, "Contrasts, primary part")[f"{arm} - {reference}"]
        assert shown[0] == f"{(a - b).mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    verdicts = rows(root, "Claims and verdicts")
    assert verdicts["HAM improves on SGD"] == ["supported"] and "not decided yet" not in root.text
    assert "HAM improves on SGD: supported." in parse(site["index.html"]).text
    charts = data_of(root, "data-chart")
    axes = {  # a heading names the metric, or a pair of arms: then the axis names the metric
        **dict.fromkeys(("cifar16-primary-top1", "cifar16-primary-l1"), ""),
        **dict.fromkeys(("cifar16-secondary-top10", "cifar16-secondary-top15"), "test top-1 [%]"),
    }
    assert axes == {name: charts[name]["layer"][1]["encoding"]["y"]["title"] for name in axes}
    check_panels(root)
    assert f"{COMMANDS[0]} && {COMMANDS[1]} && {COMMANDS[2]}" in root.text
    arms = next(own for own in root.all("table") if own.all("caption")[0].text == "Arms")
    links = [own.attrs["href"] for own in arms.all("a")]
    assert len(links) == 5 and all(link in site for link in links)
    assert [link.partition("-cifar16")[0] for link in links] == [f"runs/{arm.exp}" for arm in PRIMARY]
    size = sum(len(text.encode()) for text in site.values())
    assert size < 1.6e6  # beside the other records and the library, below 3 MB


def test_a_run_that_diverged_is_named_and_replaced_by_chance(
    tuned: Path, write_record: Callable[..., Path], make_summary: Callable[..., dict]
) -> None:
    values, planned = accuracies("primary"), runs("primary")
    for key, run in planned.items():
        if key != ("HAM", 4):
            write_record(tuned, run, values[key])
    lost = planned["HAM", 4]
    write_divergence(
        lost, make_summary(lost, status="diverged", reason="the loss became nan", epochs=3), tuned
    )
    site, root = page(tuned)
    assert "HAM, seed 4, diverged: the loss became nan." in root.text
    assert "HAM - SGD (n = 9)" in data_of(root, "data-chart")["cifar16-forest"]["data"]["values"]
    assert "HAM - SGD with 1 % for runs that diverged" in root.text and "the loss became nan" in site[
        "runs.html"
    ].join(text for name, text in site.items() if name[:5] == "runs/")


def test_a_record_without_its_epochs_is_named_and_left_out(
    tuned: Path, write_record: Callable[..., Path]
) -> None:
    path = write_record(tuned, runs("primary")["SGD", 0], 40)
    metrics_path(path).unlink()
    site, (problem,) = build.render_site(tuned)
    assert problem.endswith("seed0.metrics.jsonl: it is missing: collect the run again")
    assert rows(parse(site["study.html"]), "Progress")["primary"][1] == "0 of 50"
