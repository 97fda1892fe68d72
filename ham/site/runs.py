"""The runs: a list of all, and a page for each configuration and scale."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ham.experiments import CONFIGS
from ham.files import read_text
from ham.report.records import Record, path_of
from ham.report.render import DIVERGED
from ham.report.scales import SCALES, scaled_down
from ham.report.spec import RunSpec

from . import charts, commands, pages
from .curves import PANELS, Panels, setting, step
from .sources import Group, Sources

ROWS = 12  # of the table below the charts
_PERCENT = re.compile(r"(top\d|valid|test|average)(_last|_best|_at_best)?")
_SEED = re.compile(r"seed=\d+")


def render(sources: Sources, curves: Mapping[RunSpec, Panels]) -> dict[str, str]:
    """runs.html and a page for each configuration."""
    groups = list(sources.groups.values())
    return {"runs.html": _list(groups)} | {
        group.page: _page(group, curves.get(group.run, {})) for group in groups
    }


def number(value: object) -> str:
    """A number of a record in at most six digits; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# The list of all runs


@dataclass(frozen=True)
class Row:
    """A run in the list; numbers are texts, "" where a run that diverged has none."""

    group: Group
    seed: int
    outcome: str
    last: str
    best: str
    sparsity: str
    epochs: str
    seconds: str


def _list(groups: Sequence[Group]) -> str:
    rows = [row for group in groups for row in _rows(group)]
    counts = Counter(row.group.run.demo for row in rows)
    return pages.render(
        "runs.html",
        page="runs.html",
        title="Runs",
        rows=rows,
        settings={setting(demo): count for demo, count in counts.items()},
        setting=setting,
    )


def _rows(group: Group) -> list[Row]:
    last, best = group.run.info.reported
    rows = []
    for seed, record in group.records.items():
        content = record.content
        metrics = [f"{content['metrics'][name]:.2f}" for name in (last, best)]
        sparsity = f"{100 * content['sparsity']['overall']:.2f}"
        seconds = f"{content.get('timing', {}).get('seconds', 0):.0f}"
        rows.append(Row(group, seed, "done", *metrics, sparsity, str(content["epochs"]), seconds))
    lost = [Row(group, seed, DIVERGED, *[""] * 5) for seed in group.diverged]
    return sorted([*rows, *lost], key=lambda row: row.seed)


# The page of a configuration


@dataclass(frozen=True)
class Origin:
    """Where runs come from: the provenance that these seeds share."""

    seeds: list[int]
    facts: dict[str, str]


def _page(group: Group, panels: Panels) -> str:
    run = group.run
    metrics = dict.fromkeys(name for own in group.records.values() for name in own.content["metrics"])
    return pages.render(
        "run.html",
        page=group.page,
        title=group.title,
        group=group,
        setting=f"{scaled_down(run.demo)}. {SCALES[run.demo].caveat}" if run.demo else "The paper's setting.",
        charts=_charts(group, panels),
        numbers=_numbers(panels),
        metrics=list(metrics),
        seeds=[_seed(run, seed, own, metrics) for seed, own in group.records.items()],
        lost=[(seed, reason, _command(run, seed)) for seed, reason in group.diverged.items()],
        facts=_facts(group),
        yaml=read_text(CONFIGS / "exp" / f"{run.exp}.yaml"),
        origins=_origins(group),
        folder=path_of(run, Path()).parent,
    )


def _charts(group: Group, panels: Panels) -> list[charts.Chart]:
    """A chart for each curve; all have the specification of the first one, which saves half of the page."""
    drawn = []
    for name, points in panels.items():
        label, series = PANELS[name].label, [charts.Series("", group.method, points)]
        chart = charts.curves(name, label[0].upper() + label[1:], "", series, 220)
        drawn.append(replace(chart, like=drawn[0].name if drawn else ""))
    return drawn


def _numbers(panels: Panels) -> tuple[list[str], list[list[object]]]:
    """The points of all charts as one table, at some of their epochs."""
    known = {
        name: dict(zip(points.epochs, zip(points.means, points.stds, strict=True), strict=True))
        for name, points in panels.items()
    }
    every = sorted({epoch for points in known.values() for epoch in points})
    own = step(every[-1], ROWS) if every else 1
    shown = [epoch for epoch in every if epoch % own == 0 or epoch == every[-1]]
    rows = [[epoch, *(_spread(own.get(epoch)) for own in known.values())] for epoch in shown]
    return ["epoch", *(PANELS[name].label for name in known)], rows


def _spread(point: tuple[float, float] | None) -> str:
    if point is None:
        return ""
    return f"{point[0]:.4g}" + (f" +- {point[1]:.2g}" if point[1] else "")


def _seed(run: RunSpec, seed: int, record: Record, metrics: Mapping[str, None]) -> dict[str, Any]:
    """The row of a seed."""
    content = record.content
    sparsity, timing = content["sparsity"], content.get("timing", {})
    return {
        "seed": seed,
        "metrics": [_metric(name, content["metrics"].get(name)) for name in metrics],
        "sparsity": f"{100 * sparsity['overall']:.2f}",
        "kept": number(sparsity.get("kept")),
        "seconds": number(timing.get("seconds")),
        "speed": number(timing.get("steps_per_second")),
        "command": _command(run, seed),
    }


def _metric(name: str, value: float | None) -> str:
    """A metric; percentages as in the tables."""
    return f"{value:.2f}" if _PERCENT.fullmatch(name) and value is not None else number(value)


def _command(run: RunSpec, seed: int) -> str:
    return commands.for_run(RunSpec(run.exp, seed, run.overrides, run.demo))


def _facts(group: Group) -> dict[str, str]:
    """What configs/lock.json and the records state of the configuration."""
    info, contents = group.run.info, [own.content for own in group.records.values()]
    facts = {
        "task": info.task,
        "recipe": f"configs/base/{info.base}.yaml",
        "epochs": str(info.epochs),
        "passes per step": str(info.passes),
        "target sparsity": f"{100 * info.sparsity:g} %",
        "masks from": info.depends_on or "-",
        "overrides": " ".join(group.run.overrides) or "-",
        "configuration hash": info.config_hash,
    }
    for key in ("ham", "graph", "graphs"):
        own = next((content[key] for content in contents if content.get(key)), None)
        facts |= {key: _one_line(own)} if own else {}
    return facts


def _one_line(value: Any) -> str:
    """Nested values in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_one_line(own)}" for key, own in value.items())
    if isinstance(value, list):
        return ", ".join(map(_one_line, value)) or "none"
    return number(value)


def _origins(group: Group) -> list[Origin]:
    """Provenance, with the seeds that share it."""
    shared: dict[str, Origin] = {}
    for seed, record in group.records.items():
        facts = _provenance(record.content["provenance"])
        shared.setdefault(json.dumps(facts), Origin([], facts)).seeds.append(seed)
    return list(shared.values())


def _provenance(content: Mapping[str, Any]) -> dict[str, str]:
    earlier = [f"commit {part.get('commit')}" for part in content.get("resumed_from", [])]
    facts = {
        "commit": content.get("commit"),
        "uncommitted changes": {True: "yes", False: "no"}.get(content.get("dirty"), "unknown"),
        "Python": content.get("python"),
        "versions": _one_line({k: v for k, v in (content.get("versions") or {}).items() if v}),
        "hardware": _one_line({k: v for k, v in (content.get("hardware") or {}).items() if v}),
        "ranks": content.get("ranks"),
        "threads": content.get("threads"),
        "resumed from": "; ".join(earlier),
        "started as": shlex.join(word for word in content["argv"] if not _SEED.fullmatch(word)),
    }
    return {key: str(value) for key, value in facts.items() if value}
