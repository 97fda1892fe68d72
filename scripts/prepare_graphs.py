"""Get the raw files of node classification sets and check them.

    python scripts/prepare_graphs.py cora citeseer [--to DIR]
    python scripts/prepare_graphs.py all

They are written to DIR/graphs/<set>/raw and DIR/graphs/splits; DIR is $HAM_DATA if not given, else the
current folder. Existing files are kept; every set is read once to count its nodes, edges and features. Exit
status 2, and one line for each set whose files cannot be obtained or are wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ham.data import DataError
from ham.data.graph_files import SETS, fetch, fixed_split, read


def main(argv: list[str] | None = None) -> int:
    """Download and check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [*SETS, "all"]
    parser.add_argument("sets", nargs="+", choices=choices, metavar="SET", help=", ".join(choices))
    parser.add_argument("--to", type=Path, default=Path(os.environ.get("HAM_DATA", ".")), metavar="DIR")
    args = parser.parse_args(argv)
    root, status = args.to / "graphs", 0
    for name in SETS if "all" in args.sets else args.sets:
        try:
            downloaded = fetch(name, root)
            graph = read(name, root)
            if SETS[name].reader in ("Amazon", "Coauthor"):
                fixed_split(name, root)
        except DataError as error:
            print(f"prepare_graphs.py: {error}", file=sys.stderr)
            status = 2
            continue
        counts = f"{len(graph.labels):,} nodes, {graph.edges.shape[1] // 2:,} edges"
        print(f"{name}: {counts}; {len(downloaded)} files downloaded")
    return status


if __name__ == "__main__":
    sys.exit(main())
