"""Committed records of finished runs: where they are, reading and writing them.

    results/runs/<name>/seed<k>.json            the paper's setting, <name> as in runs/
    results/runs/<name>/seed<k>.metrics.jsonl   one line per epoch
    results/demo/<exp>/seed<k>.json             scaled down to the digits
    results/cifar16/<name>/seed<k>.json         scaled down to CIFAR-100 at 16 px, with its epochs as above
    results/epochs20/<exp>/seed<k>.json         graph classification for 20 epochs
    .../seed<k>.diverged.json                   a run that ended with nan or inf, with the reason

A record is a run's summary without bulk and without paths, see validation.py. collect.py writes records;
tables and figures read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ham.files import RESULTS, atomic_write_json, atomic_write_text, one_line

from .plan import figure, figures
from .scales import SCALES
from .spec import PlanError, RunSpec, lock
from .study import studies, study
from .validation import (
    DEMOS,
    PLACES,
    InvalidRecord,
    check,
    check_divergence,
    divergence_record,
    epochs,
    is_number,
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

    def metric(self, name: str) -> float:
        """One of the summary's metrics. Raises InvalidRecord if it is missing or not finite."""
        value = self.content["metrics"].get(name)
        if not is_number(value):
            raise InvalidRecord(f"{self.path}: metrics has no {name}")
        return float(value)

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of its metrics.jsonl. Raises InvalidRecord if they are missing or incomplete."""
        path = metrics_path(self.path)
        try:
            return epochs(path.read_text(), self.content, self.run)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRecord(f"{path} cannot be read ({one_line(error)}): collect the run again") from None
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
    name = run.name.replace(f"{run.exp}-{run.demo}", run.exp, 1) if run.demo else run.name
    return record_path(name, run.seed, folder_of(run.demo, results))


def diverged_path(path: Path) -> Path:
    """The path of the record of a run that diverged, given that of its record had it not."""
    return path.with_suffix(DIVERGED)


def metrics_path(path: Path) -> Path:
    """The path of a record's epochs."""
    return path.with_suffix(".metrics.jsonl")


def read(path: Path) -> Record:
    """The record in a file. Raises InvalidRecord, whose message begins with the path."""
    try:
        content = json.loads(path.read_text())
        run = check(content)
        results = path.parents[2 + run.name.count("/")]
        if (expected := path_of(run, results)) != path:
            raise InvalidRecord(f"it is the record of {run}: move it to {expected.relative_to(results)}")
        if record(content) != content:
            raise InvalidRecord("it holds more than a record may: collect the run again")
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRecord(f"{path}: it cannot be read ({one_line(error)}): collect the run again") from None
    except (InvalidRecord, PlanError) as error:
        raise InvalidRecord(f"{path}: {error}") from None
    accepted = Record(run, content, path)
    if metrics_path(path).exists():
        accepted.epochs()  # they must not contradict the summary
    return accepted


def read_diverged(demo: str = "", results: Path = RESULTS) -> tuple[dict[RunSpec, str], list[str]]:
    """Runs of a scale that diverged -> the reason, and one line for each invalid file."""
    diverged, problems = {}, []
    for path in sorted(folder_of(demo, results).rglob(f"*{DIVERGED}")):
        try:
            content = json.loads(path.read_text())
            run = check_divergence(content)
            if path != diverged_path(path_of(run, results)):
                raise InvalidRecord(f"it is of {run}, which belongs elsewhere")
            diverged[run] = content["reason"]
        except (OSError, ValueError, RecursionError, InvalidRecord) as error:
            problems.append(f"{path}: {one_line(error)}")
    return diverged, problems


def write_divergence(run: RunSpec, content: dict[str, Any], results: Path) -> Path:
    """Write the record of a run that diverged; returns its path."""
    path = diverged_path(path_of(run, results))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, divergence_record(content), indent=1)
    return path


def read_all(demo: str = "", results: Path = RESULTS) -> tuple[dict[RunSpec, Record], list[str]]:
    """Every record of a scale, and one line for each invalid file.

    Raises:
        PlanError: configs/lock.json is out of date.
    """
    files = folder_of(demo, results).rglob("*.json")
    return _read_each(sorted(path for path in files if not path.name.endswith(DIVERGED)))


def read_runs(runs: Iterable[RunSpec], results: Path = RESULTS) -> tuple[dict[RunSpec, Record], list[str]]:
    """`read_all` of those runs that have a record."""
    paths = dict.fromkeys(path_of(run, results) for run in runs)
    return _read_each(sorted(path for path in paths if path.exists()))


def _read_each(paths: Iterable[Path]) -> tuple[dict[RunSpec, Record], list[str]]:
    lock()  # which raises PlanError once, not for each record
    records: dict[RunSpec, Record] = {}
    problems = []
    for path in paths:
        try:
            accepted = read(path)
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
    """Does a run's record keep its epochs?

    At the paper's scale the task says so; at the scale of a study all do; else those that a figure shows.
    """
    if not run.demo:
        return run.info.stores_history
    if run.demo in {study(name).demo for name in studies()}:
        return True
    return run.exp in {exp for name in figures() for exp in figure(name).series.values()}
