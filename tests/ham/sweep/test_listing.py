"""What a sweep prints: counts, missing runs, and what the rest will cost."""

from __future__ import annotations

import pytest

from ham.command_line import OutputError
from ham.report.spec import RunSpec
from ham.sweep import listing
from ham.sweep.listing import counted, print_estimate, print_line, print_missing, print_overview, warn
from ham.sweep.resources import Resources
from ham.sweep.status import RunStatus, Status

DENSE = [RunSpec("dense", seed, demo="tiny") for seed in range(3)]
SOURCE, DEPENDENT = RunSpec("acdc_s90", 0, demo="tiny"), RunSpec("mask_acdc_s90", 0, demo="tiny")
OPEN, DONE, STALE = (RunStatus(kind) for kind in (Status.NOT_LAUNCHED, Status.DONE, Status.STALE))


def test_counts_follow_the_order_of_the_statuses() -> None:
    states = [RunStatus(kind) for kind in (Status.STALE, Status.DONE, Status.RUNNING, Status.DONE)]
    assert counted(states) == "2 done, 1 running, 1 stale"
    assert counted([]) == "nothing"
    assert [listing.pluralize(number) for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def test_an_overview_counts_cells_seeds_and_masks(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = {"table4": DENSE[:1], "table10": [*DENSE, DEPENDENT]}
    print_overview(chosen, dict.fromkeys([*DENSE, SOURCE, DEPENDENT], OPEN))
    assert capsys.readouterr().out.splitlines() == [
        "table4                 1 cells x 1 seed: 1 not launched",
        "table10                2 cells with 4 runs: 4 not launched",
        "their masks            1 more runs: 1 not launched",
    ]


def test_missing_runs_share_a_line_where_their_seed_alone_differs(capsys: pytest.CaptureFixture[str]) -> None:
    queued = RunStatus(Status.QUEUED, "Priority", "7_2")
    paper = RunSpec("dense", 4)
    print_missing({DENSE[2]: OPEN, SOURCE: queued, DENSE[0]: OPEN, DENSE[1]: DONE, paper: OPEN})
    assert capsys.readouterr().out.splitlines() == [
        "acdc_s90 (tiny)                   seed 0  queued  7_2  Priority",
        "dense (tiny)                      seeds 0 2  not launched",
        "dense                             seed 4  not launched",
    ]


def test_an_estimate_adds_up_hours_and_disk_of_each_class(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 images an epoch at 0.001 a second are 10 hours an epoch."""
    slow = Resources({"time": "1:00", "mem": "2G"}, 36, 0.001, 0.75)
    monkeypatch.setattr(listing, "resources", lambda: {"long": slow, "demo": Resources({}, 1, 0, 0.5)})
    monkeypatch.setattr(listing, "resource_class", lambda run: "long" if run in DENSE else "demo")
    hours = 10 * DENSE[0].info.epochs
    print_estimate(dict.fromkeys([DENSE[0], SOURCE, DENSE[1], DEPENDENT], OPEN) | {DENSE[2]: DONE})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "to launch         runs   GPU hours   disk GB   each",
        f"long                 2{2 * hours:>12}       1.5   --time=1:00 --mem=2G",
        "demo                 2           0       1.0   ",
        f"total                4{2 * hours:>12}       2.5",
        "GPU hours follow from the images per second assumed in slurm/resources.yaml",
        "waiting for masks: 1 run, for those of 1 run",
    ]
    print_estimate({SOURCE: DONE, DEPENDENT: OPEN})
    assert capsys.readouterr().out.splitlines()[2:] == [
        "demo                 1           0       0.5   ",
        "total                1           0       0.5",
    ]
    print_estimate({SOURCE: DONE})
    assert capsys.readouterr().out == "nothing is left to launch\n"


def test_stale_runs_and_those_that_they_hold_up_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    warn({SOURCE: RunStatus(Status.STALE, "move it"), DENSE[0]: OPEN, DEPENDENT: OPEN})
    assert capsys.readouterr().err.splitlines() == [
        f"sweep.py: {SOURCE} is stale: move it",
        "sweep.py: 1 run not launched: the runs whose masks they take are stale, diverged, run on this "
        "machine or may be queued",
    ]
    warn({DENSE[0]: OPEN, SOURCE: DONE})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [BrokenPipeError, OutputError])
def test_a_line_whose_reader_has_left_is_dropped(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[bool] = []

    def fail(*_: object, flush: bool) -> None:
        assert flush
        raise error

    monkeypatch.setattr(listing, "print", fail, raising=False)
    monkeypatch.setattr(listing, "ignore_broken_pipe", lambda: ignored.append(True))
    print_line("text")
    assert ignored == [True]
