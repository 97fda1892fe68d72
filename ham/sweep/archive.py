"""An archive of finished runs that can leave a machine: without bulk, and without paths of the machine."""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from ham.errors import one_line, printable
from ham.files import atomic_write, open_binary, read_json, read_text
from ham.report.odd_files import check_file_target
from ham.report.records import divergence_record, record, strip_paths
from ham.report.spec import RunSpec

from .manifests import SweepError

_PATH = re.compile(r"^( *)(runs_dir|root):.*(?:\n\1 +.*)*$", re.MULTILINE)
"""Keys with paths; YAML continues long ones on lines with more indentation."""

_PAUSE_SECONDS, _PAUSE_RATIO = 60.0, 10.0  # between two archives: seconds, and times the last one took
_MEMBER = re.compile(r"[\w/-]+/seed\d+/(summary\.json|diverged\.json)")


def check_archive(file: Path) -> None:
    """Raise unless `pack` may write this file: it may replace an earlier archive, and no other file.

    Raises:
        PlanError: the file cannot be written there.
        SweepError: it exists and is not an archive of `pack`.
        OSError: it exists and cannot be read.
    """
    check_file_target("--pack", file)
    if not file.exists():
        return
    try:
        with open_binary(file) as packed, tarfile.open(fileobj=packed, mode="r:gz") as content:
            first = content.next()
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error):
        is_own = False
    else:  # members of `pack` have no time
        is_own = first is None or (first.mtime == 0 and _MEMBER.fullmatch(first.name) is not None)
    if not is_own:
        raise SweepError(
            f"--pack {printable(file)} is not an archive of sweep.py: give another name, or remove it"
        )


class Packer:
    """Packs the finished runs of a sweep while it works: seldom enough to take little of its time.

    Threads may call it. A failure to pack ends no run: it is a line on stderr, and the next call packs again.

    Args:
        runs: the runs.
        folder: folder of the run directories.
        archive: the file; None packs nothing.
    """

    def __init__(self, runs: list[RunSpec], folder: Path, archive: Path | None) -> None:
        self._runs, self._folder, self._archive = runs, folder, archive
        self._packing, self._next = threading.Lock(), 0.0

    def pack_sometimes(self) -> None:
        """Pack, unless another thread does or the last archive was written shortly before."""
        if self._archive and time.monotonic() >= self._next and self._packing.acquire(blocking=False):
            try:
                self._pack()
            finally:
                self._packing.release()

    def pack_now(self) -> None:
        """Pack."""
        with self._packing:
            self._pack()

    def _pack(self) -> None:
        if self._archive is None:
            return
        start = time.monotonic()
        try:
            pack(self._runs, self._folder, self._archive, _warn)
        except OSError as error:
            _warn(f"cannot pack {self._archive}: {one_line(error)}")
        end = time.monotonic()
        self._next = end + max(_PAUSE_SECONDS, _PAUSE_RATIO * (end - start))


def _warn(line: str) -> None:
    print(f"sweep.py: {printable(line)}", file=sys.stderr)


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
