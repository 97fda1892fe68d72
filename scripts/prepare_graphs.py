"""Get the raw files of graphs and check them.

    python scripts/prepare_graphs.py cora citeseer [--to DIR]
    python scripts/prepare_graphs.py all
    python scripts/prepare_graphs.py ogbg-molhiv [--walk-steps K]

`all` are the 13 sets for node classification. They are written to DIR/graphs/<set>/raw and DIR/graphs/splits;
DIR is $HAM_DATA if not given, else the current folder. Existing files are kept; every set is read once to
count its nodes, edges and features. A set of OGB (ogbg-*) is downloaded from OGB's server, unpacked, checked
and converted to a cache in its folder, with the random-walk encodings of K steps: without K, those of the
paper's recipe for the set, if it has any. A run on several ranks needs this cache. Exit status 2, and one
line for each set whose files cannot be obtained or are wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ham.data import OGBG, DataError, ogbg_download, ogbg_sets
from ham.data.graph_files import SETS, fetch, fixed_split, read


def main(argv: list[str] | None = None) -> int:
    """Download and check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [*SETS, "all", *ogbg_sets.SETS]
    parser.add_argument("sets", nargs="+", choices=choices, metavar="SET", help=", ".join(choices))
    parser.add_argument("--to", type=Path, default=Path(os.environ.get("HAM_DATA", ".")), metavar="DIR")
    parser.add_argument("--walk-steps", type=int, metavar="K", help="of OGB's sets; default: as in the paper")
    args = parser.parse_args(argv)
    if args.walk_steps is not None and args.walk_steps < 0:
        parser.error(f"--walk-steps must not be negative, got {args.walk_steps}")
    root, status = args.to / "graphs", 0
    names = [name for name in args.sets if name != "all"]
    for name in dict.fromkeys([*(SETS if "all" in args.sets else ()), *names]):
        try:
            is_nodes = name in SETS
            print(_prepare_nodes(name, root) if is_nodes else _prepare_graphs(name, root, args.walk_steps))
        except DataError as error:
            print(f"prepare_graphs.py: {error}", file=sys.stderr)
            status = 2
    return status


def _prepare_nodes(name: str, root: Path) -> str:
    """Prepare one of the 13 sets for node classification; returns a line of counts."""
    downloaded = fetch(name, root)
    graph = read(name, root)
    if SETS[name].reader in ("Amazon", "Coauthor"):
        fixed_split(name, root)
    counts = f"{len(graph.labels):,} nodes, {graph.edges.shape[1] // 2:,} edges"
    return f"{name}: {counts}; {len(downloaded)} files downloaded"


def _prepare_graphs(name: str, root: Path, walk_steps: int | None) -> str:
    """Prepare one of OGB's sets; returns a line of counts. Edges count once per direction."""
    is_new = ogbg_download.fetch(name, root)
    steps = ogbg_sets.SETS[name].walk_steps if walk_steps is None else walk_steps
    graphs = OGBG(name=name, root=str(root), walk_steps=steps).load_graphs()
    counts = f"{len(graphs):,} graphs, {len(graphs.nodes):,} nodes, {len(graphs.sources):,} edges"
    parts = ", ".join(f"{part} {len(rows):,}" for part, rows in graphs.parts.items())
    walks = f"; walks of {steps} steps" if steps else ""
    return f"{name}: {counts}; {parts}{walks}" + ("; downloaded" if is_new else "")


if __name__ == "__main__":
    sys.exit(main())
