"""Render a study from the committed records: its page, its runs as csv, a forest plot and curves.

    python scripts/study.py cifar16

Writes results/tables/study_<name>.{md,csv} and results/figures/study_<name>_{forest,curves}.{pdf,png}; a
figure without a run to show is not drawn. Needs matplotlib and scipy, no torch. Exit status: 0 done, 1 a
record was left out, 2 wrong use.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ham.command_line import Parser, run_script
from ham.errors import explain, printable
from ham.files import atomic_write_text, short_path
from ham.report.odd_files import check_results, check_target
from ham.report.records import RESULTS, InvalidRecord, read_all, read_diverged
from ham.report.spec import PlanError
from ham.report.study import studies, study


def main(argv: list[str] | None = None) -> int:
    """Write the page, the csv and the figures; returns the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=studies(), help="name of a study")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the records (default: results)"
    )
    parser.add_argument("--to", type=Path, help="folder of tables/ and figures/ (default: the records')")
    args = parser.parse_args(argv)
    try:
        check_results(args.results)
        check_target("--to", args.to or args.results)
        paths, problems = render(args.study, args.results, args.to or args.results)
    except (PlanError, InvalidRecord, OSError) as error:
        print(f"study.py: {explain(error)}", file=sys.stderr)
        return 2
    for path in paths:
        print(f"wrote {printable(short_path(path))}")
    for problem in dict.fromkeys(problems):
        print(f"study.py: left out {problem}", file=sys.stderr)
    return 1 if problems else 0


def render(name: str, results_folder: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the files of a study; returns their paths and a line for each record that was left out."""
    from ham.report import study_figures, study_page
    from ham.report.study_results import results, with_epochs

    plan = study(name)
    records, problems = read_all(plan.demo, results_folder)
    diverged, more = read_diverged(plan.demo, results_folder)
    records, incomplete = with_epochs(records)
    result = results(plan, records, diverged)
    texts = {"md": study_page.page(result), "csv": study_page.comma_separated(result)}
    paths = [folder / "tables" / f"study_{name}.{ending}" for ending in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, text)
    return [*paths, *study_figures.draw(result, folder / "figures")], [*problems, *more, *incomplete]


if __name__ == "__main__":
    sys.exit(run_script(main))
