"""Get the raw files of graphs and check them.

    python scripts/prepare_graphs.py cora citeseer [--to DIR]
    python scripts/prepare_graphs.py all
    python scripts/prepare_graphs.py ogbg-molhiv [--walk-steps K]

`all` are the 13 sets for node classification. They are written to DIR/graphs/<set>/raw and DIR/graphs/splits;
DIR is $HAM_DATA if not given, else the current folder. Every set is read once and checked. Good files are
kept; a damaged one is downloaded again, and the old one is renamed to *.damaged. A set of OGB (ogbg-*) is
downloaded from OGB's server, unpacked, checked and converted to a cache in its folder, with the random-walk
encodings of K steps: without K, those of the paper's recipe for the set, if it has any. A run on several
ranks needs this cache. Exit status 2, and one line for each set whose files cannot be obtained or are wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.data import OGBG, DataError, graph_download
from ham.data.damaged import DamagedError
from ham.data.graph_files import SETS, fixed_split, read
from ham.data.ogbg import download as ogbg_download
from ham.data.ogbg import sets as ogbg_sets
from ham.errors import explain
from ham.report.odd_files import check_target
from ham.report.spec import PlanError


def main(argv: list[str] | None = None) -> int:
    """Download and check; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    choices = [*SETS, "all", *ogbg_sets.SETS]
    parser.add_argument("sets", nargs="+", choices=choices, metavar="SET", help=", ".join(choices))
    folder = Path(os.environ.get("HAM_DATA", "."))
    to = "folder of all data sets (default: $HAM_DATA, else the current folder)"
    parser.add_argument("--to", type=Path, default=folder, metavar="DIR", help=to)
    steps = "steps of the random-walk encodings of OGB's sets (default: as in the paper)"
    parser.add_argument("--walk-steps", type=int, metavar="K", help=steps)
    args = parser.parse_args(argv)
    if args.walk_steps is not None and args.walk_steps < 0:
        parser.error(f"--walk-steps must not be negative, got {args.walk_steps}")
    try:
        check_target("--to", args.to)
    except PlanError as error:
        print(f"prepare_graphs.py: {error}", file=sys.stderr)
        return 2
    root, status = args.to / "graphs", 0
    names = [name for name in args.sets if name != "all"]
    for name in dict.fromkeys([*(SETS if "all" in args.sets else ()), *names]):
        try:
            print(prepare(name, root, args.walk_steps))
        except (DataError, OSError) as error:
            print(f"prepare_graphs.py: {explain(error)}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print("prepare_graphs.py: interrupted; the same command resumes", file=sys.stderr)
            return 130
    return status


def prepare(name: str, root: Path, walk_steps: int | None) -> str:
    """Download what is missing of a set, and again what is damaged; returns a line of counts.

    Raises:
        DataError: a file cannot be downloaded, or what is downloaded is damaged.
        OSError: a folder cannot be read or written.
    """
    is_nodes = name in SETS
    fetch = graph_download.fetch if is_nodes else ogbg_download.fetch
    downloaded = set(fetch(name, root))
    while True:
        try:
            counts = _check_nodes(name, root) if is_nodes else _check_graphs(name, root, walk_steps)
        except DamagedError as error:
            if not (damaged := set(error.paths) - downloaded):
                raise DataError(f"{error.problem}, although just downloaded: try again later") from error
            print(f"{error.problem}: downloading it again", file=sys.stderr)
            downloaded |= set(fetch(name, root, tuple(damaged)))
            continue
        return f"{name}: {counts}" + ("; downloaded" if downloaded else "")


def _check_nodes(name: str, root: Path) -> str:
    """Read one of the 13 sets for node classification; returns its counts."""
    graph = read(name, root)
    if SETS[name].reader in ("Amazon", "Coauthor"):
        fixed_split(name, root)
    return f"{len(graph.labels):,} nodes, {graph.edges.shape[1] // 2:,} edges"


def _check_graphs(name: str, root: Path, walk_steps: int | None) -> str:
    """Read one of OGB's sets and write its cache; returns its counts. Edges count once per direction."""
    steps = ogbg_sets.SETS[name].walk_steps if walk_steps is None else walk_steps
    graphs = OGBG(name=name, root=str(root), walk_steps=steps).load_graphs()
    counts = f"{len(graphs):,} graphs, {len(graphs.nodes):,} nodes, {len(graphs.sources):,} edges"
    parts = ", ".join(f"{part} {len(rows):,}" for part, rows in graphs.parts.items())
    return f"{counts}; {parts}" + (f"; walks of {steps} steps" if steps else "")


if __name__ == "__main__":
    sys.exit(run_script(main))
