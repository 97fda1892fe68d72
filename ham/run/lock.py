"""Content of configs/lock.json: the facts of each run, for reports and sweeps without torch and Hydra."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from ham.report import search_grid
from ham.report.plan import figure, figures
from ham.report.spec import RunInfo, RunSpec, configs_digest
from ham.report.study import studies, study
from ham.tasks import TASKS, task_of

from .config import Config, base_of, config_hash, demos, experiments, load

DEMOS = ("", *demos())


def lock_text() -> str:
    """The text of configs/lock.json: JSON with a line for each run, sorted."""
    facts = {"": dict(_facts(specs()))}
    tasks_of = {spec: info["task"] for spec, info in facts[""].items() if " " not in spec}
    for demo in DEMOS[1:]:
        scalable = {task.name for task in TASKS.values() if demo in task.demos}
        facts[demo] = dict(_facts(specs(demo, [name for name, task in tasks_of.items() if task in scalable])))
    return _to_text({"configs": configs_digest(), "tasks": tasks(), **facts})


def tasks() -> dict[str, dict[str, Any]]:
    """Name of each task -> the facts that reports need."""
    return {
        task.name: {"reported": list(task.reported), "stores_history": task.stores_history}
        for task in TASKS.values()
    }


def specs(demo: str = "", names: list[str] | None = None) -> list[RunSpec]:
    """Every experiment, and the altered ones of figures, studies and, at the paper's scale, searches."""
    altered = [run for name in figures() for run in figure(name).points.values()]
    plans = [plan for plan in map(study, studies()) if plan.demo == demo]
    altered += [run for plan in plans for run in plan.possible_runs()]
    if not demo:
        altered += [run for base in search_grid.bases() for run in search_grid.runs(base, [0])]
    plain = [RunSpec(name, 0) for name in (experiments() if names is None else names)]
    chosen = [run for run in dict.fromkeys([*plain, *altered]) if names is None or run.exp in names]
    return [replace(run, demo=demo) for run in chosen]


def info(run: RunSpec, cfg: Config | None = None) -> RunInfo:
    """The facts of a run; its configuration is composed unless `cfg` is given."""
    cfg = cfg or load(run.argv)
    return RunInfo(
        task=task_of(cfg.data).name,
        config_hash=config_hash(cfg),
        base=base_of(run.exp),
        epochs=cfg.epochs,
        passes=2 if cfg.optimizer.sam_rho > 0 else 1,
        sparsity=getattr(cfg.sparsifier, "sparsity", 0.0),
        depends_on=cfg.sparsifier.depends_on,
    )


def _facts(runs: list[RunSpec]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(spec, facts) of runs at one scale; each experiment is composed once."""
    groups: dict[str, list[RunSpec]] = {}
    for run in runs:
        groups.setdefault(run.exp, []).append(run)
    with ProcessPoolExecutor() as pool:
        results = pool.map(_infos, groups.values(), chunksize=8)
        for group, infos in zip(groups.values(), tqdm(results, total=len(groups), unit="exp"), strict=True):
            yield from ((run.spec, asdict(known)) for run, known in zip(group, infos, strict=True))


def _infos(runs: list[RunSpec]) -> list[RunInfo]:
    """Facts of the runs of one experiment, which is composed once."""
    cfg = load(replace(runs[0], overrides=()).argv)
    return [info(run, with_overrides(cfg, run)) for run in runs]


def with_overrides(cfg: Config, run: RunSpec) -> Config:
    """The configuration with the run's altered numbers, such as ham.beta=0.1, without composing it again."""
    for text in run.overrides:
        key, _, value = text.partition("=")
        section, option = key.split(".")
        kind = type(getattr(getattr(cfg, section), option))  # a float or an int
        cfg = replace(cfg, **{section: replace(getattr(cfg, section), **{option: kind(value)})})
    return cfg


def _to_text(content: dict[str, Any]) -> str:
    sections = []
    for key, value in sorted(content.items()):
        text = json.dumps(value)
        if isinstance(value, dict):
            lines = (f"  {json.dumps(k)}: {json.dumps(value[k], sort_keys=True)}" for k in sorted(value))
            text = "{\n" + ",\n".join(lines) + "\n }"
        sections.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(sections) + "\n}\n"
