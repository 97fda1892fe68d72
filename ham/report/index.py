"""The pages results/README.md and results/figures/README.md: links, one-line captions and states."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ham.errors import printable
from ham.files import atomic_write_text, read_text

from . import captions, coverage, hyperparameters, plan, qualitative
from .coverage import Coverage
from .grid import Grid, record_path
from .grid import read_all as read_grids
from .records import DEMOS, Record, diverged_path, path_of, read_all, read_diverged
from .render import DIVERGED, PLUS_MINUS
from .scales import SCALES
from .spec import PlanError, RunSpec

Counts = Mapping[str, Mapping[str, Coverage]]  # scale -> name of a table or figure -> its coverage
COMMAND = "python scripts/index.py"
FOLDERS = {  # folder of results/ -> what its records are
    "runs": "Runs at the paper's setting, one record per experiment and seed: metrics, sparsity, provenance",
    **{
        scale.folder: f"Runs scaled down to {scale.summary}; not the paper's setting"
        for scale in SCALES.values()
    },
    "node_grid": "Searches for (alpha, beta) in node classification, one record per graph and network",
    "theory": "Simulated data of the theory's figures, with provenance",
}
PAGES = ("figures", "site", "tables")  # folders without records
_HEAD = f"""\
# Results

Written by `{COMMAND}` from the files beside it; do not edit. `make results` renders all tables and
figures again from the records, then this page.

**state**: complete if every cell, curve or point has all its seeds, partial if at least one has a run,
otherwise not run; in parentheses how many are complete. [Coverage](tables/coverage.md) has the counts.
Markdown and LaTeX show mean {PLUS_MINUS} sample standard deviation and the number n of runs; in the csv these
are the columns mean, std and n, unrounded.
A LaTeX table needs booktabs and fits an `article` at 10 pt with margins of 25 mm, on A4 or letter.

"""


_SITE = """\
**In a browser**: [site/index.html](site/index.html), written by `make report`; how to open and publish it:
[docs/report.md](../docs/report.md).

"""


def write_index(results: Path) -> tuple[list[Path], list[str]]:
    """Write coverage.md, figures/README.md and README.md; returns them and a line per invalid record.

    Raises:
        PlanError: a file or folder has no caption.
        OSError: a file cannot be read or written.
    """
    records: dict[str, Mapping[RunSpec, Record]] = {}
    problems: list[str] = []
    for demo in ("", *DEMOS):
        records[demo], invalid = read_all(demo, results)
        problems += invalid
        problems += read_diverged(demo, results)[1]
    grids, invalid = read_grids(results / "node_grid")
    problems += invalid
    simulated = {path.stem for path in (results / "theory").glob("*.json")}
    texts = {results / "tables" / "coverage.md": coverage.page(records, simulated)}
    if figure_stems(results):
        texts[results / "figures" / "README.md"] = gallery(results)
    for path, text in texts.items():
        path.parent.mkdir(exist_ok=True)
        atomic_write_text(path, text)
    texts[results / "README.md"] = index(results, records, grids)
    atomic_write_text(results / "README.md", texts[results / "README.md"])
    return list(texts), problems


def figure_stems(results: Path) -> list[str]:
    """Names of the drawn figures, without endings."""
    return sorted({path.stem for path in (results / "figures").glob("*.p*")})


def gallery(results: Path) -> str:
    """The page with every figure over its caption."""
    parts = [f"# Figures\n\nWritten by `{COMMAND}`; do not edit. A method has one color in all figures.\n"]
    for stem in sorted(figure_stems(results), key=_sort_key):
        title, caption = captions.figure_texts(stem)
        parts.append(
            f"## {title}\n\n![{title}]({stem}.png)\n\n{textwrap.fill(caption, 110, break_on_hyphens=False)}\n"
        )
    return "\n".join(parts)


def index(results: Path, records: Mapping[str, Mapping[RunSpec, Record]], grids: Sequence[Grid]) -> str:
    """The page that links every table, figure and valid record."""
    counts = {demo: coverage.of_plan(runs, demo) for demo, runs in records.items()}
    head = _HEAD + (_SITE if (results / "site" / "index.html").exists() else "")
    return head + "\n".join(
        [
            *("## Tables\n", "| table | what it shows | state | files |", "|---|---|---|---|"),
            *_tables(results, counts),
            *("\n## Figures\n", "With captions: [figures/README.md](figures/README.md).\n"),
            *("| figure | what it shows | state | files |", "|---|---|---|---|"),
            *_figures(results, counts),
            *("\n## Records\n", *_folders(results, _subjects(results, records, grids))),
        ]
    )


def _tables(results: Path, counts: Counts) -> list[str]:
    """A row for each page of results/tables, the paper's tables first."""
    rows = {}
    for stem in (path.stem for path in (results / "tables").glob("*.md")):
        page = read_text(results / "tables" / f"{stem}.md", errors="replace")
        heading = page.partition("\n")[0].removeprefix("# ")
        label = coverage.label_of(stem)
        title = heading.removeprefix(f"{label}. ")
        others = [ending for ending in ("csv", "tex") if (results / "tables" / f"{stem}.{ending}").exists()]
        files = ", ".join(f"[{ending}](tables/{stem}.{ending})" for ending in others) or "-"
        rows[stem] = f"| [{label}](tables/{stem}.md) | {title} | {_state(stem, counts)} | {files} |"
    return [rows[stem] for stem in sorted(rows, key=_sort_key)]


def _figures(results: Path, counts: Counts) -> list[str]:
    """A row for each figure of the paper, drawn or not, then for those of other scales."""
    rows = {
        name: f"| {coverage.label_of(name)} | {plan.figure(name).title} | {_state(name, counts)} | - |"
        for name in plan.figures()
    }
    for stem in figure_stems(results):
        heading, _ = captions.figure_texts(stem)
        label = coverage.label_of(stem)
        title, state = heading.removeprefix(f"{label}. "), _state(stem, counts)
        rows[stem] = f"| [{label}](figures/{stem}.png) | {title} | {state} | [pdf](figures/{stem}.pdf) |"
    return [rows[stem] for stem in sorted(rows, key=_sort_key)]


def _sort_key(stem: str) -> tuple[bool, str]:
    """Order: tables and figures with a number of the paper, then the others."""
    return (coverage.label_of(stem) == stem, stem)


def _state(stem: str, counts: Counts) -> str:
    """State and counts of a table or figure of a scale; other pages have none."""
    known = {
        **dict.fromkeys(qualitative.SHEETS, "as stated"),
        **dict.fromkeys(hyperparameters.SHEETS, "settings"),
    }
    known |= dict.fromkeys(captions.THEORY, "simulated")
    if stem in known:
        return known[stem]
    prefixes = {"": ""} | {scale.prefix: demo for demo, scale in SCALES.items()}
    for prefix, demo in prefixes.items():
        count = counts.get(demo, {}).get(stem.removeprefix(prefix)) if stem.startswith(prefix) else None
        if count:
            return f"{count.state} ({count.complete} of {count.parts})"
    return "-"


def _subjects(
    results: Path, records: Mapping[str, Mapping[RunSpec, Record]], grids: Sequence[Grid]
) -> dict[Path, str]:
    """Path of each valid record and of the theory's data -> what it is of, in words without markup."""
    subjects = {record_path(grid.exp, results / "node_grid"): grid.exp for grid in grids}
    for demo, own in records.items():
        subjects |= {record.path: _subject(record.content) for record in own.values()}
        for run in read_diverged(demo, results)[0]:
            subjects[diverged_path(path_of(run, results))] = f"{run.exp}, {DIVERGED}"
    theory = {path: path.stem for path in (results / "theory").glob("*.json") if path.stem in captions.THEORY}
    return subjects | {
        path: f"{coverage.label_of(stem)}. {captions.THEORY[stem][0]}" for path, stem in theory.items()
    }


def _subject(content: Mapping[str, Any]) -> str:
    """The subject of a record: its cell, else its experiment."""
    cell = content.get("cell") or ""
    return f"{cell}, with overrides" if content["overridden"] else cell or content["exp"]


def _folders(results: Path, subjects: Mapping[Path, str]) -> list[str]:
    """Every folder with records: what they are, and a row per experiment, or per file without one."""
    lines = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir() and path.name not in PAGES):
        if folder.name not in FOLDERS:
            raise PlanError(
                f"{printable(folder)} is not a folder of results: move it away, or add it to FOLDERS in "
                "ham/report/index.py"
            )
        files = sorted(path for path in subjects if path.is_relative_to(folder))
        locations = {path.parent if path.parent != folder else path: path for path in reversed(files)}
        count = f"{len(files)} record{'s' * (len(files) != 1)}"
        lines += [
            f"### {folder.name}\n",
            f"[{folder.name}]({folder.name}): {FOLDERS[folder.name]}; {count}.\n",
        ]
        if locations:
            lines += ["| records | of | n |", "|---|---|---|"]
        for location, first in sorted(locations.items()):
            number = sum(location in (path, path.parent) for path in files)
            name = location.relative_to(folder).with_suffix("")
            lines.append(f"| [{name}]({location.relative_to(results)}) | {subjects[first]} | {number} |")
        lines.append("")
    return lines
