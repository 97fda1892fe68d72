"""An archive of finished runs that can leave a machine: without bulk, and without paths of the machine."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from ham.files import atomic_write, one_line, read_json, read_text
from ham.report.records import divergence_record, record, strip_paths
from ham.report.spec import RunSpec

_PATH = re.compile(r"^( *)(runs_dir|root):.*(?:\n\1 +.*)*$", re.MULTILINE)
"""Keys with paths; YAML continues long ones on lines with more indentation."""


def pack(runs: list[RunSpec], folder: Path, archive: Path, warn: Callable[[str], None]) -> None:
    """Write the finished run directories among `runs` to a .tar.gz that scripts/collect.py reads.

    Args:
        runs: the runs.
        folder: folder of the run directories.
        archive: the file, replaced in one step.
        warn: function called with a line about each run whose files are damaged; such a run is skipped.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)

    def write(file: io.BufferedIOBase) -> None:
        with tarfile.open(fileobj=file, mode="w:gz") as content:
            for run in runs:
                try:
                    files = _files(run.folder(folder))
                except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                    warn(f"{run.folder(folder)} is not packed: {one_line(error)}")
                    continue
                for name, text in files.items():
                    member = tarfile.TarInfo(f"{run.name}/seed{run.seed}/{name}")  # without owner and time
                    member.size = len(data := text.encode())
                    content.addfile(member, io.BytesIO(data))

    atomic_write(archive, write)


def _files(folder: Path) -> dict[str, str]:
    """Name -> content of a run directory's files; none if it is not finished and has not diverged."""
    summary = read_json(folder / "summary.json")
    if summary is None:
        diverged = read_json(folder / "diverged.json")
        text = json.dumps(divergence_record(diverged), indent=1) + "\n" if diverged else ""
        return {"diverged.json": text} if text else {}
    provenance = json.loads(read_text(folder / "provenance.json"))
    return {
        "summary.json": json.dumps(record(summary), indent=1) + "\n",
        "provenance.json": json.dumps(strip_paths(provenance), indent=1) + "\n",
        "metrics.jsonl": read_text(folder / "metrics.jsonl"),
        "config.yaml": _PATH.sub(r"\1\2: ''", read_text(folder / "config.yaml")),
    }
