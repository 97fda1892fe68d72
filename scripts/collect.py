"""Make committed records of finished runs.

    python scripts/collect.py                        # runs/<name>/seed<k>, the paper's setting
    python scripts/collect.py out/cells.tar.gz       # what benchmarks/gpu.sh brought back
    python scripts/collect.py --demo digits          # the runs scaled down to the digits

Writes results/runs/<name>/seed<k>.json with its epochs in seed<k>.metrics.jsonl beside it; of a demo
results/demo/<exp>/seed<k>.json, with epochs only where a figure has its curve. A record that is there is left
as it is, unless its epochs are missing. Runs that are no record are named, one line each. Exit status: 0 all
collected, 1 something was left out, 2 wrong use or a damaged archive.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ham.report.records import (
    DEMOS,
    RESULTS,
    InvalidRecord,
    check,
    epochs,
    metrics_path,
    path_of,
    read,
    stores_history,
    write,
)
from ham.report.spec import RunSpec

ROOT = Path(__file__).resolve().parents[1]
_MEMBER = re.compile(r"(?:\./)?([\w-]+(?:/[\w-]+)?)/seed(\d+)/(summary\.json|metrics\.jsonl)")
_LARGEST = 2**26  # bytes of one file
_LARGEST_ARCHIVE = 2**29  # unpacked


class UsageError(Exception):
    """Nothing can be collected from there; the message is one line with the cure."""


@dataclass
class FinishedRun:
    """The files of a finished run.

    Args:
        place: where they lie, for the reader.
        name: the run directory, which ends with the run's name.
        seed: as its folder says.
        summary: text of summary.json.
        metrics: text of metrics.jsonl, None if it is missing.
    """

    place: str
    name: str
    seed: int
    summary: bytes
    metrics: bytes | None


@dataclass
class CollectResult:
    """Records written, a line for each run left out, and how many runs are no matter of this command.

    `there`: have a record; `elsewhere`: of another scale; `points`: of a node grid, scripts/node_grid.py's.
    """

    written: list[Path]
    left_out: list[str]
    existing: int = 0
    other_scale: int = 0
    grid_points: int = 0


def find(source: Path) -> Iterator[FinishedRun]:
    """The finished runs in a folder of run directories, in a run directory, or in an archive.

    Raises:
        UsageError: there is no such place, or the archive is damaged.
    """
    if source.is_dir():
        folders = (
            [source]
            if (source / "summary.json").exists()
            else sorted(path.parent for path in source.glob("**/seed*/summary.json"))
        )
        return (_read(folder) for folder in folders if (folder / "summary.json").exists())
    if not source.exists():
        raise UsageError(
            f"{source} is not there: give a folder of runs, or cells.tar.gz of benchmarks/gpu.sh"
        )
    return iter(_unpack(source))


def _read(folder: Path) -> FinishedRun:
    folder = folder.resolve() if folder.name in ("", ".", "..") else folder
    seed = re.fullmatch(r"seed(\d{1,10})", folder.name)
    return FinishedRun(
        str(folder),
        folder.resolve().parent.as_posix(),
        int(seed[1]) if seed else -1,
        _bytes(folder / "summary.json") or b"",  # which is not whole
        _bytes(folder / "metrics.jsonl"),
    )


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _unpack(archive: Path) -> list[FinishedRun]:
    """Nothing is extracted: two kinds of plain files are read by their names, the rest is passed over."""
    files: dict[tuple[str, str], dict[str, bytes]] = {}
    try:
        with gzip.open(archive) as packed:
            content = packed.read(_LARGEST_ARCHIVE + 1)  # to its end, which compares its checksum
        if len(content) > _LARGEST_ARCHIVE:
            raise UsageError(f"{archive} is larger than any archive of runs: fetch it anew")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as members:
            for member in members:
                name = _MEMBER.fullmatch(member.name)
                if name and member.isreg() and not member.issparse() and member.size < _LARGEST:
                    files.setdefault(name.group(1, 2), {})[name[3]] = members.extractfile(member).read()
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error, ValueError, OSError) as error:
        raise UsageError(f"{archive} is no whole archive of runs ({error}): fetch it anew") from None
    return [
        FinishedRun(
            f"{archive}:{name}/seed{seed}", name, int(seed), run["summary.json"], run.get("metrics.jsonl")
        )
        for (name, seed), run in files.items()
        if "summary.json" in run
    ]


def collect(found: FinishedRun, demo: str, results: Path, tally: CollectResult) -> None:
    """Write the record of a run, if it is one of this scale that has none yet.

    Raises:
        Unfit: it is no record.
    """
    try:
        summary = json.loads(found.summary)
    except (ValueError, RecursionError):
        raise InvalidRecord("summary.json is not whole: start the run again") from None
    if _is_point(summary):
        tally.grid_points += 1
        return
    run = check(summary)
    if run.demo != demo:
        tally.other_scale += 1
        return
    named = any(f"/{found.name}".endswith(f"/{name}") for name in (run.name, run.exp))
    if not named or found.seed != run.seed:
        raise InvalidRecord(f"it says that it is {run}, which lies in {run.name}/seed{run.seed}")
    path = path_of(run, results)
    if path.exists() and not _lacks_epochs(path, run):
        tally.existing += 1
        return
    lines = None
    if stores_history(run):
        if found.metrics is None:
            raise InvalidRecord("it has no metrics.jsonl: run it again")
        lines = epochs(found.metrics.decode(errors="replace"), summary)
    tally.written.append(write(run, summary, lines, results))


def _is_point(summary: Any) -> bool:
    """Is it a node run with another (alpha, beta)? Grids are recorded whole, by a script of their own."""
    told = summary if isinstance(summary, dict) else {}
    return told.get("overridden") is True and str(told.get("exp")).startswith("node/")


def _lacks_epochs(path: Path, run: RunSpec) -> bool:
    """Is it whole but for its epochs? One that cannot be read may be somebody's: named, not replaced."""
    try:
        read(path)
    except InvalidRecord as error:
        print(f"{error}; delete it to collect this run")
        return False
    return stores_history(run) and not metrics_path(path).exists()


def main(argv: list[str] | None = None) -> int:
    """Collect what is there; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="folders of runs or archives (runs)")
    parser.add_argument("--demo", default="", choices=DEMOS, help="collect scaled-down runs instead")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where records go (results)")
    args = parser.parse_args(argv)
    tally = CollectResult([], [])
    try:
        for source in args.sources or [ROOT / "runs"]:
            for found in find(source):
                try:
                    collect(found, args.demo, args.results, tally)
                except InvalidRecord as error:
                    tally.left_out.append(f"{found.place}: {error}")
    except (UsageError, OSError) as error:
        print(f"collect.py: {error}", file=sys.stderr)
        return 2
    _tell(tally, args.demo)
    return 1 if tally.left_out else 0


def _tell(tally: CollectResult, demo: str) -> None:
    for path in tally.written:
        print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    print(
        f"new records: {len(tally.written)}, there before: {tally.existing}, left out: {len(tally.left_out)}"
    )
    if tally.other_scale:
        other = "of the paper's setting (without --demo)" if demo else "scaled down (--demo)"
        print(f"runs that are {other}: {tally.other_scale}")
    if tally.grid_points:
        print(f"node runs with altered values (scripts/node_grid.py records grids): {tally.grid_points}")
    for line in tally.left_out:
        print(f"collect.py: left out {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
