"""The page of a study: how far it is; once complete, the differences that scipy computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from printed_numbers import markdown_tables
from scipy import stats
from site_pages import Element, data_of, grid, parse
from study_files import PLAN, all_tuned

from ham.files import RESULTS
from ham.report.records import metrics_path, write_divergence
from ham.report.spec import RunSpec
from ham.site import build

RATES = {"SGD": 0.05, "HAM": 0.0125, "matched decay": 0.05, "beta alone": 0.2, "alpha alone": 0.0125}
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
    site, problems = build.texts(results)
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
    arms = next(own for own in root.all("table") if own.all("caption")[0].text == "Arms")
    links = [own.attrs["href"] for own in arms.all("a")]
    assert len(links) == 5 and all(link in site for link in links)
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
    site, (problem,) = build.texts(tuned)
    assert problem.endswith("seed0.metrics.jsonl: it is missing: collect the run again")
    assert rows(parse(site["study.html"]), "Progress")["primary"][1] == "0 of 50"
