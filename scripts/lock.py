"""Write configs/lock.json: the facts of each run, so that reports and sweeps need neither torch nor Hydra.

    python scripts/lock.py

Run it after a change to configs; a test compares the file with the configurations.
"""

from __future__ import annotations

import sys

from ham.command_line import Parser, run_script
from ham.errors import explain
from ham.files import ROOT, atomic_write_text
from ham.report.spec import LOCK, PlanError
from ham.run.config import ConfigError
from ham.run.lock import lock_text


def main(argv: list[str] | None = None) -> int:
    """Write the file; returns the exit status."""
    Parser(description=__doc__.splitlines()[0]).parse_args(argv)
    try:
        atomic_write_text(LOCK, lock_text())
    except (ConfigError, PlanError, OSError) as error:
        print(f"lock.py: {explain(error)}", file=sys.stderr)
        return 2
    print(f"wrote {LOCK.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
