"""Deprecated alias of scripts/sweep.py --local for node classification."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import sweep

from ham.command_line import Parser, run_script
from ham.report import search_grid


def main(argv: list[str] | None = None) -> int:
    """Translate the command line, print the new command, and run it."""
    parser = Parser(description=__doc__)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--archs", nargs="+", default=["gcn", "gat", "sage"])
    parser.add_argument("--methods", nargs="+", default=["base", "ham", "nham"])
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args(argv)
    if args.grid and set(args.methods) != {"base", "ham", "nham"}:
        parser.error("--grid with --methods was removed: use sweep.py --grid EXP --only TEXT")
    names = [f"/{name.replace('-', '_')}_{arch}" for name in args.sets for arch in args.archs]
    bases = [exp for name in names for exp in search_grid.node_bases() if exp.endswith(name)]
    if args.seeds is not None and args.seeds < 1:
        parser.error("--seeds must be at least 1")
    if not bases:
        parser.error("unknown set or architecture: see python train.py --list")
    suffixes = {"base": "", "ham": "_ham", "nham": "_nham"}
    exps = [base + suffixes[method] for base in bases for method in args.methods]
    command = ["--grid", *bases] if args.grid else ["--exp", *exps]
    command += ["--dry-run"] if args.list else ["--local", "--jobs", args.jobs, "--allow-dirty"]
    command += ["--runs", args.runs, *["--again"] * args.again]
    command += ["--seeds", *map(str, range(args.seeds))] if args.seeds else []
    new = f"python scripts/sweep.py {' '.join(command)}"
    print(f"nodes.py: DeprecationWarning: use {new}", file=sys.stderr)
    return sweep.main(command)


if __name__ == "__main__":
    sys.exit(run_script(main))
