"""Write a trained run as plain files: dense weights, masks and compressed rows.

    python scripts/export.py runs/acdc_ham_s90/seed0 [--to DIR]

model.safetensors holds the state_dict of the plain model, without the parameterization of the training; masks
are 1 where a weight is kept; csr.safetensors holds each prunable weight as compressed sparse rows. Prints the
sizes, the network's cost and the Python lines that load it. Exit status: 0 done, 1 a file cannot be written,
2 the run cannot be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain
from ham.report.odd_files import check_target
from ham.report.spec import PlanError
from ham.run.checkpoint import CheckpointError
from ham.run.config import ConfigError
from ham.run.export import export


def main(argv: list[str] | None = None) -> int:
    """Export one run; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run directory, such as runs/acdc_ham_s90/seed0")
    parser.add_argument("--to", type=Path, help="folder to write to (default: RUN/export)")
    args = parser.parse_args(argv)
    target = args.to or args.run / "export"
    try:
        if args.to:
            check_target("--to", target)
        result = export(args.run, target)
    except (ConfigError, CheckpointError, PlanError, ValueError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"export.py: {explain(error)}", file=sys.stderr)
        return 1
    if not (args.run / "summary.json").exists():
        print(f"export.py: {args.run} is not finished: this is its last checkpoint", file=sys.stderr)
    for path in result.files:
        print(f"{path}   {path.stat().st_size / 1e6:.2f} MB")
    cost = result.cost
    print(
        f"sparsity {100 * result.sparsity:.2f} %, {cost.parameters:,} parameters, {cost.megabytes:.3f} MB "
        f"with bit masks, {cost.flops / 1e9:.4g} GFLOPs per image ({cost.flops_ratio:.3f} x dense)"
    )
    print(f"\nload it with\n\n{result.loading_lines}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
