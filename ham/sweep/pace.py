"""How long runs take: seconds per epoch, as measured, and the time that is left."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import pairwise

from ham.files import read_json
from ham.report.schema import is_number
from ham.report.spec import RunSpec

from .manifests import log_end
from .status import Sweeps

_PROGRESS = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)  (?:epoch|step) (\d+)/(\d+)  ")


class Pace:
    """Seconds per epoch of runs that cost the same: of one base, scale and number of passes."""

    def __init__(self) -> None:
        self._measured: dict[tuple[str, str, int], tuple[float, float]] = {}  # seconds, epochs

    def add(self, run: RunSpec, seconds: float, epochs: float) -> None:
        """A run took these seconds for these epochs."""
        before = self._measured.get(_kind(run), (0.0, 0.0))
        self._measured[_kind(run)] = before[0] + seconds, before[1] + epochs

    def of(self, run: RunSpec) -> float | None:
        """Seconds per epoch of runs like this one; None if none has been measured."""
        seconds, epochs = self._measured.get(_kind(run), (0.0, 0.0))
        return seconds / epochs if epochs else None

    def of_any(self, run: RunSpec) -> float | None:
        """As `of`, else the mean over the kinds of runs that have been measured."""
        known = [seconds / epochs for seconds, epochs in self._measured.values() if epochs]
        return self.of(run) or (statistics.fmean(known) if known else None)


def _kind(run: RunSpec) -> tuple[str, str, int]:
    return run.info.base, run.demo, run.info.passes


def measured_pace(runs: Iterable[RunSpec], sweeps: Sweeps) -> Pace:
    """The pace of these runs, from the summaries in their directories, else from the times in their logs."""
    pace = Pace()
    for run in runs:
        if seconds := _seconds(run, sweeps):
            pace.add(run, seconds, run.info.epochs)
    return pace


def _seconds(run: RunSpec, sweeps: Sweeps) -> float | None:
    """The time that a run took or takes; None if it is unknown."""
    summary = read_json(run.folder(sweeps.runs) / "summary.json")
    timing = summary.get("timing") if summary else None
    seconds = timing.get("seconds") if isinstance(timing, dict) else None
    return seconds if is_number(seconds) and seconds > 0 else _seconds_by_log(run, sweeps)


def _seconds_by_log(run: RunSpec, sweeps: Sweeps) -> float | None:
    """The time that a run takes by the progress lines of its train.log; None if it has fewer than two.

    The median over pairs of lines does not count the time between an interruption and its resumption.
    """
    try:
        text = log_end(run.folder(sweeps.runs) / "train.log")
    except OSError:
        return None
    marks = []
    for when, done, total in _PROGRESS.findall(text):
        try:
            marks.append((datetime.fromisoformat(when), int(done) / int(total)))
        except (ValueError, ZeroDivisionError):
            continue
    paces = [(b[0] - a[0]).total_seconds() / (b[1] - a[1]) for a, b in pairwise(marks) if b[1] > a[1]]
    return statistics.median(paces) if paces else None


def seconds_left(
    runs: Iterable[RunSpec], sweeps: Sweeps, seconds_per_epoch: Callable[[RunSpec], float | None]
) -> tuple[float, int]:
    """The time that runs need one after the other, and the number of those whose pace is unknown."""
    total, unknown = 0.0, 0
    for run in runs:
        if (pace := seconds_per_epoch(run)) is None:
            unknown += 1
        else:
            total += max(0, run.info.epochs - sweeps.epochs_done(run)) * pace
    return total, unknown


def duration(seconds: float) -> str:
    """3 h 20 min, 5 min or 40 s."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"
