"""The command lines that make a table, a figure or a run again."""

from __future__ import annotations

import shlex

from ham.report import captions
from ham.report.spec import RunSpec
from ham.report.table_files import SHEETS


def for_table(name: str, demo: str = "") -> str:
    """One line that trains what is missing of a table, collects the records and renders it."""
    if name in SHEETS:
        return f"python scripts/tables.py --table {_number(name, 'table')}"
    return _all_steps("table", name, demo)


def for_figure(name: str, demo: str = "") -> str:
    """One line that trains or simulates what a figure shows, and draws it."""
    if name in captions.THEORY:
        own = f"--figure {_number(name, 'figure')}"
        return f"python scripts/theory_runs.py {own} && python scripts/figures.py --theory {own}"
    return _all_steps("figure", name, demo)


def for_study(name: str, demo: str) -> str:
    """One line that trains what is missing of a study, collects the records and writes its page."""
    train = f"python scripts/sweep.py --study {name} --local"
    return f"{train} && python scripts/collect.py --demo {demo} && python scripts/study.py {name}"


def for_run(run: RunSpec) -> str:
    """The line that trains a run."""
    return f"python train.py {shlex.join(run.argv)}"


def _all_steps(kind: str, name: str, demo: str) -> str:
    own, scale = f"--{kind} {_number(name, kind)}", f" --demo {demo}" if demo else ""
    train = f"python scripts/sweep.py {own}{scale} --local"
    return f"{train} && python scripts/collect.py{scale} && python scripts/{kind}s.py {own}{scale}"


def _number(name: str, kind: str) -> str:
    """`table04` -> `4`, `figure02a` -> `2a`; controls keep their name."""
    return name.removeprefix(kind).lstrip("0") if name.startswith(kind) else name
