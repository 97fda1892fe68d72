"""Turns finished runs, in directories or in an archive, into committed records."""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ham.errors import one_line, printable
from ham.files import NotRegularError, open_binary

from . import search_grid
from .odd_files import AGAIN, LARGEST, LARGEST_METRICS, InvalidRecord, find_files, parse_json, read_limited
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
from .validation import check, check_divergence, epochs

_MEMBER = re.compile(
    r"(?:\./)?([\w-]+(?:/[\w-]+)?)/seed(\d{1,10})/(summary\.json|metrics\.jsonl|diverged\.json)", re.ASCII
)
_SEED = re.compile(r"seed(\d{1,10})", re.ASCII)
_RESULTS = ("summary.json", "diverged.json")  # of a run that has ended
_LARGEST_ARCHIVE = 2**29  # unpacked


class UsageError(Exception):
    """The source cannot be read; the message is one line with the cure."""


@dataclass(frozen=True)
class FinishedRun:
    """The files of a finished run.

    Args:
        location: path of the files, for error messages.
        name: the run directory without its seed; ends with the run's name.
        seed: seed in the name of the folder, -1 if it is not seed<k>.
        files: name -> content of summary.json or diverged.json, and of metrics.jsonl; a file that cannot be
            read has its reason instead.
    """

    location: str
    name: str
    seed: int
    files: Mapping[str, bytes | InvalidRecord]

    def content(self, *names: str) -> bytes | None:
        """Content of the first of these files that exists and is not empty. Raises InvalidRecord."""
        content = next((self.files[name] for name in names if self.files.get(name)), None)
        if isinstance(content, InvalidRecord):
            raise content
        return content


@dataclass
class CollectResult:
    """Result of `collect`: what was recorded, and what was not.

    Args:
        written: paths of the new records.
        left_out: one line for each run that cannot become a record.
        damaged: one line for each existing record that cannot be read; it is not replaced.
        existing: number of runs that already had a record.
        other_scale: number of runs of another scale.
        grid_points: number of runs of a search grid, which scripts/node_grid.py records.
        empty: sources without a finished run.
    """

    written: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    existing: int = 0
    other_scale: int = 0
    grid_points: int = 0
    empty: list[Path] = field(default_factory=list)


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
        result.empty.append(source)
        for run in find(source, result.left_out):
            result.empty = [other for other in result.empty if other != source]
            try:
                _collect_run(run, demo, results, result)
            except InvalidRecord as error:
                result.left_out.append(printable(f"{run.location}: {error}"))
    return result


def find(source: Path, problems: list[str]) -> Iterator[FinishedRun]:
    """The finished runs in a folder of run directories, in a run directory, or in an archive.

    Args:
        source: the folder, whose links are followed, or the archive.
        problems: list that gets one line for each folder that cannot be read, and each result outside a run
            directory.

    Raises:
        UsageError: the source is missing, or the archive is damaged.
    """
    if source.is_dir():
        if any((source / name).exists() for name in _RESULTS):
            return iter([read_directory(source)])
        files, unread = find_files(source, lambda path: path.name in _RESULTS)
        folders = dict.fromkeys(path.parent for path in files)
        problems += unread
        cure = "it is not in a run directory <exp>/seed<k>: move it there"
        problems += [
            printable(f"{directory}: {cure}")
            for directory in folders
            if not directory.name.startswith("seed")
        ]
        return (read_directory(directory) for directory in folders if directory.name.startswith("seed"))
    if not source.exists():
        raise UsageError(
            f"{source} does not exist: give a folder of runs, or cells.tar.gz of benchmarks/gpu.sh"
        )
    return iter(_read_archive(source))


def read_directory(folder: Path) -> FinishedRun:
    """A run directory, by its own name or, where that is not seed<k>, by that of what a link leads to."""
    directory = folder.absolute() if _SEED.fullmatch(folder.name) else folder.resolve()
    seed = _SEED.fullmatch(directory.name)
    files: dict[str, bytes | InvalidRecord] = {}
    for name in (*_RESULTS, "metrics.jsonl"):
        if os.path.lexists(path := folder / name):
            try:
                files[name] = read_limited(path, LARGEST_METRICS if name == "metrics.jsonl" else LARGEST)
            except InvalidRecord as error:
                files[name] = error
    return FinishedRun(str(folder), directory.parent.as_posix(), int(seed[1]) if seed else -1, files)


def _read_archive(archive: Path) -> list[FinishedRun]:
    """Read summaries and metrics by their names; nothing is extracted, other members are ignored."""
    files: dict[tuple[str, str], dict[str, bytes]] = {}
    try:
        with open_binary(archive) as file, gzip.open(file) as packed:
            content = packed.read(_LARGEST_ARCHIVE + 1)  # to the end, where gzip compares the checksum
        if len(content) > _LARGEST_ARCHIVE:
            raise UsageError(f"{archive} is larger than an archive of runs can be: download it again")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as members:
            for member in members:
                name = _MEMBER.fullmatch(member.name)
                if name and member.isreg() and not member.issparse() and member.size <= LARGEST_METRICS:
                    files.setdefault(name.group(1, 2), {})[name[3]] = members.extractfile(member).read()
    except NotRegularError:
        raise UsageError(f"{archive} is not a regular file: save the archive to a file first") from None
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error, ValueError, OSError) as error:
        raise UsageError(
            f"{archive} is not a complete archive of runs ({one_line(error)}): download it again"
        ) from None
    return [
        FinishedRun(f"{archive}:{name}/seed{seed}", name, int(seed), run)
        for (name, seed), run in files.items()
        if run.keys() & {*_RESULTS}
    ]


def _collect_run(finished: FinishedRun, demo: str, results: Path, result: CollectResult) -> None:
    """Write the record of one run if it is of this scale and has none yet. Raises InvalidRecord."""
    summary = parse_json(finished.content(*_RESULTS) or b"")
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
        raise InvalidRecord(f"its summary is of {run}: move it to {run.name}/seed{run.seed}")
    path = path_of(run, results)
    if has_diverged:
        if path.exists() or diverged_path(path).exists():
            result.existing += 1
        else:
            result.written.append(write_divergence(run, summary, results))
        return
    check_first_outcome(path)
    if path.exists() and not _lacks_epochs(path, run, result):
        result.existing += 1
        return
    result.written.append(write(run, summary, history(finished, summary, run), results))


def history(finished: FinishedRun, summary: dict[str, Any], run: RunSpec) -> list[dict[str, Any]] | None:
    """The epochs that the record of a run keeps, None if it keeps none.

    Args:
        finished: files of the run.
        summary: its summary, which `check` has accepted.
        run: the run.

    Raises:
        InvalidRecord: they are missing, or not those of the summary.
    """
    if not stores_history(run):
        return None
    metrics = finished.content("metrics.jsonl")
    if metrics is None:
        raise InvalidRecord(f"it has no metrics.jsonl: {AGAIN}")
    return epochs(metrics, summary, run)


def check_first_outcome(path: Path) -> None:
    """Raise InvalidRecord if the run of this record has a record of its divergence."""
    if diverged_path(path).exists():
        raise InvalidRecord(
            f"it diverged before, and the first outcome counts: move it away, or delete {diverged_path(path)}"
        )


def _is_grid_point(summary: Any) -> bool:
    """Return True for an altered run of a node classification search, which has one record for all runs."""
    if not isinstance(summary, dict) or summary.get("overridden") is not True:
        return False
    searched = {base: search_grid.methods(base) for base in search_grid.node_bases()}
    exps = (f"{base}_{method}" for base, methods in searched.items() for method in methods)
    return summary.get("exp") in [*searched, *exps]


def _lacks_epochs(path: Path, run: RunSpec, result: CollectResult) -> bool:
    """Return True if an existing record lacks only its epochs. A damaged one is reported, not replaced."""
    try:
        read(path)
    except InvalidRecord as error:
        result.damaged.append(f"{error}; delete it to collect this run")
        return False
    return stores_history(run) and not metrics_path(path).exists()
