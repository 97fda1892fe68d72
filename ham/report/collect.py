"""Turns finished runs, in directories or in an archive, into committed records."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import search_grid
from .records import (
    RESULTS,
    diverged_path,
    metrics_path,
    path_of,
    read,
    stores_history,
    write,
    write_divergence,
)
from .spec import RunSpec
from .validation import InvalidRecord, check, check_divergence, epochs

_MEMBER = re.compile(r"(?:\./)?([\w-]+(?:/[\w-]+)?)/seed(\d+)/(summary\.json|metrics\.jsonl|diverged\.json)")
_LARGEST = 2**26  # bytes of one file
_LARGEST_ARCHIVE = 2**29  # unpacked


class UsageError(Exception):
    """The source cannot be read; the message is one line with the cure."""


@dataclass(frozen=True)
class FinishedRun:
    """The files of a finished run.

    Args:
        location: where they are, for error messages.
        name: the run directory without its seed; ends with the run's name.
        seed: from the name of the folder, -1 if it is not seed<k>.
        summary: content of summary.json, or of diverged.json if the run diverged.
        metrics: content of metrics.jsonl, None if it is missing.
    """

    location: str
    name: str
    seed: int
    summary: bytes
    metrics: bytes | None


@dataclass
class CollectResult:
    """What became of the finished runs.

    Args:
        written: paths of the new records.
        left_out: one line for each run that cannot become a record.
        damaged: one line for each existing record that cannot be read; it is not replaced.
        existing: number of runs that already had a record.
        other_scale: number of runs of another scale.
        grid_points: number of runs of a search grid, which scripts/node_grid.py records.
    """

    written: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    existing: int = 0
    other_scale: int = 0
    grid_points: int = 0


def collect(sources: Iterable[Path], demo: str = "", results: Path = RESULTS) -> CollectResult:
    """Write the records of all finished runs of one scale that have none yet.

    Args:
        sources: folders of runs, run directories or archives of runs.
        demo: the scale, "" for the paper's.
        results: folder of the records.

    Raises:
        UsageError: a source is missing, or an archive is damaged.
        OSError: a record cannot be written.
    """
    result = CollectResult()
    for source in sources:
        for run in find(source):
            try:
                _collect_run(run, demo, results, result)
            except InvalidRecord as error:
                result.left_out.append(f"{run.location}: {error}")
    return result


def find(source: Path) -> Iterator[FinishedRun]:
    """The finished runs in a folder of run directories, in a run directory, or in an archive.

    Raises:
        UsageError: the source is missing, or the archive is damaged.
    """
    if source.is_dir():
        names = ("summary.json", "diverged.json")
        own = any((source / name).exists() for name in names)
        below = {path.parent for name in names for path in source.glob(f"**/seed*/{name}")}
        folders = [source] if own else sorted(below)
        return map(_read_directory, folders)
    if not source.exists():
        raise UsageError(
            f"{source} does not exist: give a folder of runs, or cells.tar.gz of benchmarks/gpu.sh"
        )
    return iter(_read_archive(source))


def _read_directory(folder: Path) -> FinishedRun:
    folder = folder.resolve() if folder.name in ("", ".", "..") else folder
    seed = re.fullmatch(r"seed(\d{1,10})", folder.name)
    return FinishedRun(
        str(folder),
        folder.resolve().parent.as_posix(),
        int(seed[1]) if seed else -1,
        # an empty file is reported as incomplete
        next(filter(None, (_read_bytes(folder / name) for name in ("summary.json", "diverged.json"))), b""),
        _read_bytes(folder / "metrics.jsonl"),
    )


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read_archive(archive: Path) -> list[FinishedRun]:
    """Read summaries and metrics by their names; nothing is extracted, other members are ignored."""
    files: dict[tuple[str, str], dict[str, bytes]] = {}
    try:
        with gzip.open(archive) as packed:
            content = packed.read(_LARGEST_ARCHIVE + 1)  # to the end, where gzip compares the checksum
        if len(content) > _LARGEST_ARCHIVE:
            raise UsageError(f"{archive} is larger than an archive of runs can be: download it again")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as members:
            for member in members:
                name = _MEMBER.fullmatch(member.name)
                if name and member.isreg() and not member.issparse() and member.size < _LARGEST:
                    files.setdefault(name.group(1, 2), {})[name[3]] = members.extractfile(member).read()
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error, ValueError, OSError) as error:
        raise UsageError(
            f"{archive} is not a complete archive of runs ({error}): download it again"
        ) from None
    return [
        FinishedRun(
            *(f"{archive}:{name}/seed{seed}", name, int(seed)),
            *(run.get("summary.json") or run["diverged.json"], run.get("metrics.jsonl")),
        )
        for (name, seed), run in files.items()
        if run.keys() & {"summary.json", "diverged.json"}
    ]


def _collect_run(finished: FinishedRun, demo: str, results: Path, result: CollectResult) -> None:
    """Write the record of one run if it is of this scale and has none yet. Raises InvalidRecord."""
    try:
        summary = json.loads(finished.summary)
    except (ValueError, RecursionError):
        raise InvalidRecord("summary.json is incomplete: start the run again") from None
    if _is_grid_point(summary):
        result.grid_points += 1
        return
    has_diverged = isinstance(summary, dict) and summary.get("status") == "diverged"
    run = check_divergence(summary) if has_diverged else check(summary)
    if run.demo != demo:
        result.other_scale += 1
        return
    is_named = any(f"/{finished.name}".endswith(f"/{name}") for name in (run.name, run.exp))
    if not is_named or finished.seed != run.seed:
        raise InvalidRecord(f"its summary is of {run}, whose directory is {run.name}/seed{run.seed}")
    path = path_of(run, results)
    if has_diverged:
        if path.exists() or diverged_path(path).exists():
            result.existing += 1
        else:
            result.written.append(write_divergence(run, summary, results))
        return
    if diverged_path(path).exists():
        raise InvalidRecord(f"it diverged before, and the first outcome counts: {diverged_path(path)}")
    if path.exists() and not _lacks_epochs(path, run, result):
        result.existing += 1
        return
    lines = None
    if stores_history(run):
        if finished.metrics is None:
            raise InvalidRecord("it has no metrics.jsonl: run it again")
        lines = epochs(finished.metrics.decode(errors="replace"), summary, run)
    result.written.append(write(run, summary, lines, results))


def _is_grid_point(summary: Any) -> bool:
    """Is it an altered run of a search in node classification, which has one record for all its runs?"""
    if not isinstance(summary, dict) or summary.get("overridden") is not True:
        return False
    searched = {base: search_grid.methods(base) for base in search_grid.node_bases()}
    exps = (f"{base}_{method}" for base, methods in searched.items() for method in methods)
    return summary.get("exp") in [*searched, *exps]


def _lacks_epochs(path: Path, run: RunSpec, result: CollectResult) -> bool:
    """Does an existing record lack nothing but its epochs? A damaged one is reported, not replaced."""
    try:
        read(path)
    except InvalidRecord as error:
        result.damaged.append(f"{error}; delete it to collect this run")
        return False
    return stores_history(run) and not metrics_path(path).exists()
