"""Names the runs of a table that diverged: the means of their cells are over the other seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from . import plan
from .spec import RunSpec

NOTE = "Diverged, hence not in a mean: {runs}."


def diverged_note(
    table: plan.Table, diverged: Mapping[RunSpec, str], recorded: Collection[RunSpec], demo: str = ""
) -> str:
    """A sentence that names each run of a table that diverged, with the reason; "" without any.

    Args:
        table: table of the plan.
        diverged: run -> reason, from `records.read_diverged`.
        recorded: runs with a result; a run that diverged at first and was finished later is one of them.
        demo: the scale.
    """
    runs = [run for run in table.runs(demo=demo) if run in diverged and run not in recorded]
    return (
        NOTE.format(runs="; ".join(f"{r.exp}, seed {r.seed} ({diverged[r]})" for r in runs)) if runs else ""
    )
