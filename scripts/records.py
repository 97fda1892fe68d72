"""What is committed of a finished run: its summary without bulk and without places on a machine.

    python scripts/records.py out/cells.tar.gz

keeps the runs that `benchmarks/gpu.sh` brought back as results/runs/<exp>/seed<k>.json, one record per run.
A record that is there already is left as it is. Exit status 2, and one line, where the archive is wrong.
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
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parents[1] / "results" / "runs"
PLACES = ("runs_dir", "data.root")
_SUMMARY = re.compile(r"(\w+)/seed(\d+)/summary\.json")
_LARGEST = 2**24  # bytes of a summary


def record(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without its bulk and without places on this machine."""
    sparsity = {key: value for key, value in summary["sparsity"].items() if key != "layers"}
    return summary | {"sparsity": sparsity, "provenance": placeless(summary["provenance"])}


def placeless(provenance: dict[str, Any]) -> dict[str, Any]:
    """A provenance whose command line names no place on this machine."""
    argv = [text for text in provenance["argv"] if text.partition("=")[0] not in PLACES]
    return provenance | {"argv": argv}


def record_path(exp: str, seed: int, folder: Path = RECORDS) -> Path:
    """Where the record of a run is committed."""
    return folder / exp / f"seed{seed}.json"


def write_record(path: Path, summary: dict[str, Any]) -> None:
    """Write the record of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record(summary), indent=1) + "\n")


def keep(archive: Path, folder: Path = RECORDS) -> list[Path]:
    """Write the records of the runs in an archive that have none yet; returns their paths.

    Raises:
        ValueError: it is no archive of runs, or holds runs that are scaled down or altered.
    """
    summaries: dict[Path, dict[str, Any]] = {}
    try:
        content = gzip.decompress(archive.read_bytes())  # as a whole, which compares its checksum
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as members:
            for member in members:
                if (found := _SUMMARY.fullmatch(member.name)) and member.isfile() and member.size < _LARGEST:
                    path = record_path(found[1], int(found[2]), folder)
                    summaries[path] = json.load(members.extractfile(member))
    except (gzip.BadGzipFile, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{archive} is no whole archive of runs ({error}): fetch it anew") from None
    for path, summary in summaries.items():
        if summary["demo"] or summary["overridden"]:
            raise ValueError(
                f"{archive} holds {path.parent.name} scaled down or altered, no cell of the paper: "
                "give an archive made without --tiny"
            )
    fresh = [path for path in summaries if not path.exists()]
    for path in fresh:
        write_record(path, summaries[path])
    return fresh


def main(argv: list[str] | None = None) -> int:
    """Keep the runs of an archive; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="cells.tar.gz of benchmarks/gpu.sh")
    archive = parser.parse_args(argv).archive
    try:
        fresh = keep(archive)
    except (ValueError, OSError) as error:
        print(f"records.py: {error}", file=sys.stderr)
        return 2
    for path in fresh:
        print(path.relative_to(RECORDS.parents[1]))
    print(f"{len(fresh)} new records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
