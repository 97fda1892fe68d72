"""The command lines beside tables, figures, studies and runs, word by word."""

from __future__ import annotations

import pytest

pytest.importorskip("jinja2", reason="jinja2 is not installed: pip install -e '.[site]'")

from ham.report.spec import RunSpec
from ham.site import commands

TRAINED = (
    "python scripts/sweep.py {own} --local && python scripts/collect.py{scale} && python scripts/{script}"
)


def steps(own: str, script: str, scale: str = "") -> str:
    """Train, collect and render one part."""
    return TRAINED.format(own=own, scale=scale, script=script)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (commands.for_table("table05"), "python scripts/tables.py --table 5"),
        (commands.for_table("table04"), steps("--table 4", "tables.py --table 4")),
        (commands.for_table("table12"), steps("--table 12", "tables.py --table 12")),
        (
            commands.for_table("table04", "digits"),
            steps("--table 4 --demo digits", "tables.py --table 4 --demo digits", " --demo digits"),
        ),
        (
            commands.for_table("control_decay"),
            steps("--table control_decay", "tables.py --table control_decay"),
        ),
        (
            commands.for_figure("figure02b"),
            "python scripts/theory_runs.py --figure 2b && python scripts/figures.py --theory --figure 2b",
        ),
        (
            commands.for_figure("figure02a", "digits"),
            steps("--figure 2a --demo digits", "figures.py --figure 2a --demo digits", " --demo digits"),
        ),
        (
            commands.for_study("cifar16", "cifar16"),
            "python scripts/sweep.py --study cifar16 --local && python scripts/collect.py --demo cifar16 && "
            "python scripts/study.py cifar16",
        ),
        (
            commands.for_study("other", "digits"),
            "python scripts/sweep.py --study other --local && python scripts/collect.py --demo digits && "
            "python scripts/study.py other",
        ),
        (commands.for_run(RunSpec("acdc_s90", 3)), "python train.py +exp=acdc_s90 seed=3"),
    ],
)
def test_a_command_is_what_a_reader_types(line: str, expected: str) -> None:
    assert line == expected


def test_values_of_a_run_are_quoted_for_the_shell() -> None:
    line = commands.for_run(RunSpec("acdc_s90", 3, ("optimizer.x=[1, 2]",), "tiny"))
    assert "'optimizer.x=[1, 2]'" in line and "+demo=tiny" in line and "seed=3" in line
