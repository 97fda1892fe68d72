"""Runs of Table 7 that a machine with one GPU trains: which are missing, and what comes back of them."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ham.report.records import record, record_path, strip_paths

ROOT = Path(__file__).resolve().parents[1]
ENOUGH = 2  # failures of a run before it is left out
_PLACE = re.compile(r"^(\s*(?:runs_dir|root):).*$", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """One run."""

    exp: str
    seed: int

    def __str__(self) -> str:
        return f"{self.exp}/seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """The runs that are wanted and where they are.

    Args:
        cells: in the order in which they are trained.
        runs: where run directories go.
        epochs: of each run.
        overrides: what each command line says besides experiment and seed.
        records: the folder with committed records; None where none count.
        root: the repository.
    """

    cells: tuple[Cell, ...]
    runs: Path
    epochs: int
    overrides: tuple[str, ...] = ()
    records: Path | None = None
    root: Path = ROOT

    def command(self, cell: Cell) -> list[str]:
        """The command line of a run."""
        start = [sys.executable, "train.py", f"+exp={cell.exp}", f"seed={cell.seed}"]
        return [*start, *self.overrides, f"runs_dir={self.runs}"]

    def folder(self, cell: Cell) -> Path:
        """The run directory; the name of an altered run has more after a hyphen, see ham.run.main."""
        altered = (
            sorted((self.root / self.runs).glob(f"{cell.exp}-*/seed{cell.seed}")) if self.overrides else []
        )
        return altered[0] if altered else self.root / self.runs / cell.exp / f"seed{cell.seed}"

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """The summary or the committed record of a run that is done."""
        paths = [self.folder(cell) / "summary.json"]
        if self.records:
            paths.append(record_path(cell.exp, cell.seed, self.records))
        return next((json.loads(path.read_text()) for path in paths if path.exists()), None)

    def epochs_done(self, cell: Cell) -> int:
        """Epochs behind it."""
        if self.summary(cell):
            return self.epochs
        path = self.folder(cell) / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    # failures outlive a slice

    @property
    def _failures(self) -> Path:
        return self.root / self.runs / "failures.json"

    def failures(self) -> dict[str, list[str]]:
        """What each failing run said last, once per failure."""
        return json.loads(self._failures.read_text()) if self._failures.exists() else {}

    def failed(self, cell: Cell, said: str) -> int:
        """Note a failure; returns how many there were of this run."""
        failures = self.failures()
        failures.setdefault(str(cell), []).append(said)
        temporary = self._failures.with_suffix(".tmp")
        temporary.write_text(json.dumps(failures, indent=1) + "\n")
        os.replace(temporary, self._failures)
        return len(failures[str(cell)])

    def missing(self) -> list[Cell]:
        """Runs to go on with, in their order; those that failed once come last."""
        failures = {cell: len(self.failures().get(str(cell), ())) for cell in self.cells}
        left = [cell for cell in self.cells if not self.summary(cell) and failures[cell] < ENOUGH]
        return sorted(left, key=failures.__getitem__)

    def hopeless(self) -> list[Cell]:
        """Runs that are left out."""
        failures = self.failures()
        return [c for c in self.cells if len(failures.get(str(c), ())) >= ENOUGH and not self.summary(c)]


def top1(summary: dict[str, Any]) -> str:
    return f"top-1 {summary['metrics']['top1_last']:.2f} %"


def placeless_text(text: str, root: Path = ROOT) -> str:
    """A text without places on this machine and without its name."""
    for place, name in ((str(root), "."), (str(Path.home()), "~"), (os.uname().nodename, "host")):
        if len(place) > 1:
            text = text.replace(place, name)
    return re.sub(r"(?<![\w.~])/(?:[\w.+-]+/)+", "", text)


def pack(study: Study, out: Path) -> None:
    """Write cells.tar.gz with what is kept of the runs done here; one file, however many runs there are."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / ".cells.tmp"
    with tarfile.open(temporary, "w:gz") as archive:
        for cell in study.cells:
            folder = study.folder(cell)
            if not (folder / "summary.json").exists():
                continue
            summary = record(json.loads((folder / "summary.json").read_text()))
            info = strip_paths(json.loads((folder / "provenance.json").read_text()))
            contents = {
                "summary.json": json.dumps(summary, indent=1) + "\n",
                "provenance.json": json.dumps(info, indent=1) + "\n",
                "metrics.jsonl": (folder / "metrics.jsonl").read_text(),
                "config.yaml": _PLACE.sub(r"\1 ''", (folder / "config.yaml").read_text()),
            }
            for name, text in contents.items():
                member = tarfile.TarInfo(f"{cell}/{name}")  # owner and time are left out
                member.size = len(content := text.encode())
                archive.addfile(member, io.BytesIO(content))
    os.replace(temporary, out / "cells.tar.gz")
