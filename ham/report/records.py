"""What is committed of a finished run: its summary without bulk and without places, and its epochs.

    results/runs/<name>/seed<k>.json            the paper's setting, <name> as in runs/
    results/runs/<name>/seed<k>.metrics.jsonl   one line per epoch
    results/demo/<exp>/seed<k>.json             scaled down to the digits

`collect.py` writes records, `tables.py` and `figures.py` read them, all by the rules of rules.py. No torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ham.files import atomic_write_text

from .plan import figure, figures
from .spec import PlanError, RunSpec
from .validation import DEMOS, PLACES, InvalidRecord, check, epochs, is_number, record, strip_paths

RESULTS = Path(__file__).resolve().parents[2] / "results"
RECORDS = RESULTS / "runs"

__all__ = [  # with names of rules.py: whoever reads records imports this module alone
    "DEMOS",
    "PLACES",
    "RECORDS",
    "RESULTS",
    "InvalidRecord",
    "Record",
    "atomic_write_text",
    "check",
    "epochs",
    "folder_of",
    "metrics_path",
    "path_of",
    "read",
    "read_all",
    "record",
    "record_path",
    "stores_history",
    "strip_paths",
    "write",
]


@dataclass(frozen=True)
class Record:
    """A record that `check` has passed.

    Args:
        run: the run, as the plan names it.
        content: the file's.
        path: the file.
    """

    run: RunSpec
    content: dict[str, Any]
    path: Path

    def metric(self, name: str) -> float:
        """One of the summary's metrics. Raises Unfit where it has none of that name."""
        value = self.content["metrics"].get(name)
        if not is_number(value):
            raise InvalidRecord(f"{self.path}: metrics has no {name}")
        return float(value)

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of the metrics beside it. Raises Unfit where they are missing or not whole."""
        path = metrics_path(self.path)
        try:
            return epochs(path.read_text(), self.content)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRecord(f"{path} cannot be read ({_reason(error)}): collect the run anew") from None
        except InvalidRecord as error:
            raise InvalidRecord(f"{path}: {error}") from None


def folder_of(demo: str, results: Path = RESULTS) -> Path:
    """Where the records of a scale are."""
    return results / ("demo" if demo else "runs")


def record_path(exp: str, seed: int, folder: Path = RECORDS) -> Path:
    """Where the record of a run is committed."""
    return folder / exp / f"seed{seed}.json"


def path_of(run: RunSpec, results: Path = RESULTS) -> Path:
    """The same for a run of the plan: an altered one has its hash in the name, a demo no suffix."""
    name = run.name.replace(f"{run.exp}-{run.demo}", run.exp, 1) if run.demo else run.name
    return record_path(name, run.seed, folder_of(run.demo, results))


def metrics_path(path: Path) -> Path:
    """The file of a record's epochs."""
    return path.with_suffix(".metrics.jsonl")


def read(path: Path) -> Record:
    """The record in a file. Raises Unfit, whose message begins with the path."""
    try:
        content = json.loads(path.read_text())
        run = check(content)
        results = path.parents[2 + run.name.count("/")]
        if (place := path_of(run, results)) != path:
            raise InvalidRecord(f"it says that it is {run}: it belongs into {place.relative_to(results)}")
        if record(content) != content:
            raise InvalidRecord("it holds more than a record may: collect the run anew")
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRecord(f"{path}: it cannot be read ({_reason(error)}): collect the run anew") from None
    except (InvalidRecord, PlanError) as error:
        raise InvalidRecord(f"{path}: {error}") from None
    kept = Record(run, content, path)
    if metrics_path(path).exists():
        kept.epochs()  # which contradict neither the summary nor themselves
    return kept


def read_all(demo: str = "", results: Path = RESULTS) -> tuple[dict[RunSpec, Record], list[str]]:
    """Every record of a scale, and one line for each file that is none."""
    found: dict[RunSpec, Record] = {}
    problems = []
    for path in sorted(folder_of(demo, results).rglob("*.json")):
        try:
            kept = read(path)
            found[kept.run] = kept
        except InvalidRecord as error:
            problems.append(str(error))
    return found, problems


def write(run: RunSpec, summary: dict[str, Any], lines: list[dict[str, Any]] | None, results: Path) -> Path:
    """Write the record of a run and, if given, its epochs; returns the record's path."""
    path = path_of(run, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    if lines is not None:  # first: a record is there only when all of it is
        atomic_write_text(metrics_path(path), "".join(f"{json.dumps(line)}\n" for line in lines))
    atomic_write_text(path, json.dumps(record(summary), indent=1) + "\n")
    return path


def stores_history(run: RunSpec) -> bool:
    """Are a run's epochs kept? At the paper's scale always; of a demo only where a figure has its curve."""
    if not run.demo:
        return not run.exp.startswith("node/")  # no figure shows them, and they are hundreds
    return run.exp in {exp for name in figures() for exp in figure(name).series.values()}


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
