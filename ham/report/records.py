"""Committed records of finished runs: where they are, reading and writing them.

    results/runs/<name>/seed<k>.json            the paper's setting, <name> as in runs/
    results/runs/<name>/seed<k>.metrics.jsonl   one line per epoch
    results/demo/<exp>/seed<k>.json             scaled down to the digits
    results/cifar16/<name>/seed<k>.json         scaled down to CIFAR-100 at 16 px, with its epochs as above
    results/epochs20/<exp>/seed<k>.json         graph classification for 20 epochs
    results/smollm/<exp>/seed<k>.json           fine-tuning of SmolLM2-135M
    .../seed<k>.diverged.json                   a run that ended with nan or inf, with the reason

A record is a run's summary without bulk and without paths, see validation.py. collect.py writes records;
tables and figures read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ham.errors import printable
from ham.files import RESULTS, atomic_write_json, atomic_write_text

from .odd_files import LARGEST_METRICS, InvalidRecord, find_files, read_json, read_limited
from .plan import figure, figures
from .scales import SCALES
from .schema import is_number
from .spec import PlanError, RunSpec, lock
from .study import studies, study
from .validation import (
    DEMOS,
    PLACES,
    check,
    check_divergence,
    divergence_record,
    epochs,
    record,
    strip_paths,
)

RECORDS = RESULTS / "runs"
DIVERGED = ".diverged.json"

__all__ = [  # with the names of validation.py that every reader of records needs
    "DEMOS",
    "PLACES",
    "RECORDS",
    "RESULTS",
    "InvalidRecord",
    "Record",
    "check",
    "check_divergence",
    "divergence_record",
    "epochs",
    "folder_of",
    "metrics_path",
    "path_of",
    "read",
    "read_all",
    "read_runs",
    "record",
    "record_path",
    "stores_history",
    "strip_paths",
    "write",
]


@dataclass(frozen=True)
class Record:
    """A record that `check` has accepted.

    Args:
        run: the run that it is of.
        content: the file's content.
        path: the file.
    """

    run: RunSpec
    content: dict[str, Any]
    path: Path

    def has(self, metric: str) -> bool:
        """Return True if the summary has this metric. A demo may lack some."""
        return is_number(self.content["metrics"].get(metric))

    def metric(self, name: str) -> float:
        """One of the summary's metrics. Raises InvalidRecord if it is missing."""
        if not self.has(name):
            raise InvalidRecord(f"{self.path}: metrics has no {name}")
        return float(self.content["metrics"][name])

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of its metrics.jsonl. Raises InvalidRecord if they are missing or incomplete."""
        return self._epochs

    @cached_property
    def _epochs(self) -> list[dict[str, Any]]:
        path = metrics_path(self.path)
        try:
            return epochs(read_limited(path, LARGEST_METRICS), self.content, self.run)
        except InvalidRecord as error:
            raise InvalidRecord(f"{path}: {error}") from None


def folder_of(demo: str, results: Path = RESULTS) -> Path:
    """The folder of the records of a scale."""
    return results / (SCALES[demo].folder if demo in SCALES else demo or "runs")


def record_path(exp: str, seed: int, folder: Path = RECORDS) -> Path:
    """The path of the record of an experiment's run."""
    return folder / exp / f"seed{seed}.json"


def path_of(run: RunSpec, results: Path = RESULTS) -> Path:
    """The path of a run's record; the name of an altered run has its hash, that of a demo no suffix."""
    name = run.exp + run.name.removeprefix(f"{run.exp}-{run.demo}") if run.demo else run.name
    return record_path(name, run.seed, folder_of(run.demo, results))


def diverged_path(path: Path) -> Path:
    """The path of the record of a run that diverged, given that of its record had it not."""
    return path.with_suffix(DIVERGED)


def metrics_path(path: Path) -> Path:
    """The path of a record's epochs."""
    return path.with_suffix(".metrics.jsonl")


def read(path: Path, results: Path | None = None) -> Record:
    """The record in a file, of a folder of results if given.

    Raises:
        InvalidRecord: it is invalid or in a wrong place; the message begins with the path.
    """
    try:
        content = read_json(path)
        run = check(content)
        _check_location(path, path_of(run, Path()), results)
        if record(content) != content:
            raise InvalidRecord("it holds more than a record may: collect the run again")
    except (InvalidRecord, PlanError) as error:
        raise InvalidRecord(f"{path}: {error}") from None
    accepted = Record(run, content, path)
    if metrics_path(path).exists():
        accepted.epochs()  # they must not contradict the summary
    return accepted


def _check_location(path: Path, expected: Path, results: Path | None) -> None:
    """Raise InvalidRecord unless a record is at the expected path, which is relative to the results."""
    ends = path.absolute().parts[-len(expected.parts) :]
    if (path != results / expected) if results else (ends != expected.parts):
        target = results / expected if results else expected
        raise InvalidRecord(f"it is in a wrong place: move it to {target}, or remove it if that exists")


def read_diverged(demo: str = "", results: Path = RESULTS) -> tuple[dict[RunSpec, str], list[str]]:
    """Runs of a scale that diverged -> the reason, and one line for each invalid file."""
    diverged = {}
    files, problems = _files(demo, results)
    for path in (path for path in files if path.name.endswith(DIVERGED)):
        try:
            content = read_json(path)
            run = check_divergence(content)
            _check_location(path, diverged_path(path_of(run, Path())), results)
            diverged[run] = content["reason"]
        except (InvalidRecord, PlanError) as error:
            problems.append(printable(f"{path}: {error}"))
    return diverged, problems


def write_divergence(run: RunSpec, content: dict[str, Any], results: Path) -> Path:
    """Write the record of a run that diverged; returns its path."""
    path = diverged_path(path_of(run, results))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, divergence_record(content), indent=1)
    return path


def read_all(demo: str = "", results: Path = RESULTS) -> tuple[dict[RunSpec, Record], list[str]]:
    """Every record of a scale, and one line for each invalid file and each folder that cannot be read.

    Raises:
        PlanError: configs/lock.json is out of date.
    """
    files, problems = _files(demo, results)
    records, invalid = _read_each((path for path in files if not path.name.endswith(DIVERGED)), results)
    return records, problems + invalid


def read_runs(
    runs: Iterable[RunSpec], demo: str = "", results: Path = RESULTS
) -> tuple[dict[RunSpec, Record], list[str]]:
    """`read_all` of the records of these runs, and of files in a folder that belongs to no run."""
    chosen = {path_of(run, results) for run in runs}
    folders = {_folder_of_spec(spec, demo, results) for spec in lock()[demo]}
    files, problems = _files(demo, results)
    selected = (path for path in files if path in chosen or path.parent not in folders)
    records, invalid = _read_each((path for path in selected if not path.name.endswith(DIVERGED)), results)
    return records, problems + invalid


def _folder_of_spec(spec: str, demo: str, results: Path) -> Path:
    exp, *overrides = spec.split()
    return path_of(RunSpec(exp, 0, tuple(overrides), demo), results).parent


def _files(demo: str, results: Path) -> tuple[list[Path], list[str]]:
    folder = folder_of(demo, results)
    return find_files(folder, lambda path: path.suffix == ".json") if folder.exists() else ([], [])


def _read_each(paths: Iterable[Path], results: Path) -> tuple[dict[RunSpec, Record], list[str]]:
    lock()  # which raises PlanError once, not for each record
    records: dict[RunSpec, Record] = {}
    problems = []
    for path in paths:
        try:
            accepted = read(path, results)
            records[accepted.run] = accepted
        except InvalidRecord as error:
            problems.append(str(error))
    return records, problems


def write(run: RunSpec, summary: dict[str, Any], lines: list[dict[str, Any]] | None, results: Path) -> Path:
    """Write the record of a run and, if given, its epochs; returns the record's path."""
    path = path_of(run, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    if lines is not None:  # before the record, which then implies its epochs
        atomic_write_text(metrics_path(path), "".join(f"{json.dumps(line)}\n" for line in lines))
    atomic_write_json(path, record(summary), indent=1)
    return path


def stores_history(run: RunSpec) -> bool:
    """Return True if a run's record keeps its epochs.

    At the paper's scale the task says so; at the scale of a study all do; else those that a figure shows.
    """
    if not run.demo:
        return run.info.stores_history
    return run.demo in _study_scales() or run.exp in _figure_experiments()


@cache
def _study_scales() -> set[str]:
    """The scales of the studies."""
    return {study(name).demo for name in studies()}


@cache
def _figure_experiments() -> set[str]:
    """The experiments whose curves a figure shows."""
    return {exp for name in figures() for exp in figure(name).series.values()}
