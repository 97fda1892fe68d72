"""Options of sbatch that follow --: those that a sweep sets itself are rejected with the cure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ham.errors import printable

from .manifests import SweepError

_WARNING = 300  # seconds before the time limit; --signal in slurm/array.sbatch
_DEFAULT = 60  # of --signal without a time
_RESOLUTION = 60  # SLURM may send a signal that much earlier
_LOG = "the logs of a sweep are in .sweeps/logs of --runs: omit it"
_RESTART = "HAM_MAX_RESTARTS limits how often a job restarts, 0 for never: set that"
_HELP = "it submits nothing: call sbatch itself"
_REJECTED = {  # option: reason and cure
    "job-name": "the sweep finds its jobs by their names: give --comment",
    "array": "its tasks are the runs, and HAM_ARRAY_THROTTLE limits how many run at a time: set that",
    "output": _LOG,
    "error": _LOG,
    "open-mode": _LOG,
    "requeue": _RESTART,
    "no-requeue": _RESTART,
    "wrap": "jobs run slurm/array.sbatch: omit it",
    "parsable": "the sweep gives it: omit it",
    "wait": "a sweep does not wait for its jobs, --status shows them: omit it",
    "test-only": "it submits nothing: give --dry-run instead of --submit",
    "clusters": "squeue has to ask the same cluster: set SBATCH_CLUSTERS",
    "export-file": "the sweep passes its own variables on: omit it",
    "uid": "the sweep finds jobs of its own user only: call it as that user",
    "help": _HELP,
    "usage": _HELP,
    "version": _HELP,
}
_READ = ("dependency", "export", "signal", "time", "time-min")
_SHORTEST = 3  # letters of an abbreviation that is read: shorter ones are ambiguous to sbatch
_LETTERS = {
    **{"J": "job-name", "a": "array", "o": "output", "e": "error", "W": "wait", "M": "clusters"},
    **{"h": "help", "V": "version", "d": "dependency", "t": "time"},
}
_FLAGS = (  # take no value, or one only after =
    *("contiguous", "exclusive", "get-user-env", "hold", "ignore-pbs", "nice", "no-kill", "overcommit"),
    *("oversubscribe", "propagate", "quiet", "reboot", "share", "spread-job", "use-min-nodes", "verbose"),
)
_SHORT_FLAGS = "HhkOQsVvW"
_SIGNAL = re.compile(r"R?B:(?:SIG)?(?:USR1|10)(?:@(\d+))?")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class _Option:
    """An option on a command line: its words there, its long name or its letter, and its value if any."""

    words: tuple[str, ...]
    name: str
    value: str = ""

    def __str__(self) -> str:
        if self.words[0].startswith("--"):
            given = printable(self.words[0].partition("=")[0])
        else:
            given = self.words[0][:2]
        return given if given == f"--{self.name}" else f"{given} (--{self.name})"


def check_options(extra: Iterable[str]) -> None:
    """Raise SweepError if one of these arguments for sbatch conflicts with what a sweep sets."""
    warning, limits = _WARNING, dict[str, tuple[_Option, int]]()
    for option in _parse(extra):
        if reason := _REJECTED.get(option.name):
            raise SweepError(f"{option} cannot be given to sbatch: {reason}")
        if option.name == "export" and option.value.split(",")[0] != "ALL":
            raise SweepError(
                f"{option} must be ALL or begin with ALL, so that jobs get the sweep's own variables, "
                f"got {printable(option.value)!r}"
            )
        if option.name == "signal":
            sent = _SIGNAL.fullmatch(option.value.upper())
            if sent is None:
                raise SweepError(
                    f"{option} must be B:USR1@SECONDS, on which runs save, got {printable(option.value)!r}"
                )
            warning = int(sent[1] or _DEFAULT)
        elif option.name in ("time", "time-min"):
            limits[option.name] = option, _seconds(option.value)
    for option, seconds in limits.values():
        if 0 < seconds <= warning + _RESOLUTION:
            cure = f"give more than {warning + _RESOLUTION} s"
            if seconds > _DEFAULT + _RESOLUTION:
                cure += f", or a later warning such as --signal=B:USR1@{_DEFAULT}"
            raise SweepError(
                f"{option} {printable(option.value)} leaves no time to train, since SLURM warns a run "
                f"{warning} to {warning + _RESOLUTION} s before the end, and it then saves: {cure}"
            )


def join_dependencies(extra: Sequence[str], sources: Sequence[str]) -> list[str]:
    """These arguments for sbatch with one --dependency: the last that is given, and the end of these tasks.

    Raises:
        SweepError: the given jobs are separated by ?, and the tasks cannot be added to them.
    """
    given, words = "", list[str]()
    for option in _parse(extra):
        if option.name == "dependency":
            given = option.value
        else:
            words += option.words
    own = f"afterany:{':'.join(sources)}" if sources else ""
    if own and "?" in given:
        raise SweepError(
            f"--dependency={printable(given)} cannot be joined with the wait for masks: separate jobs by ','"
        )
    joined = ",".join(filter(None, (given, own)))
    return [*([f"--dependency={joined}"] if joined else []), *words]


def _parse(extra: Iterable[str]) -> Iterator[_Option]:
    """The options among the arguments.

    Raises:
        SweepError: an argument is not an option, so that sbatch would take it for the batch script.
    """
    words = list(extra)
    while words:
        word = words.pop(0)
        if word in ("-", "--") or not word.startswith("-"):
            raise SweepError(
                f"{printable(word)} is not an option of sbatch: omit it, or write --option=VALUE"
            )
        options, takes_value = _long(word) if word.startswith("--") else _short(word)
        if takes_value and words and not words[0].startswith("-"):
            value = words.pop(0)
            options[-1] = _Option((*options[-1].words, value), options[-1].name, value)
        yield from options


def _long(word: str) -> tuple[list[_Option], bool]:
    """The option, whose name may be abbreviated, and whether the next word is its value."""
    given, is_assigned, value = word.removeprefix("--").partition("=")
    known = (*_REJECTED, *(_READ if len(given) >= _SHORTEST else ()))
    longer = next((name for name in known if name.startswith(given)), given)
    name = given if given in known else longer
    is_flag = any(flag.startswith(given) for flag in _FLAGS)
    return [_Option((word,), name, value)], not (is_assigned or is_flag)


def _short(word: str) -> tuple[list[_Option], bool]:
    """The options of a word such as -Hd7, and whether the next word is the value of the last."""
    options: list[_Option] = []
    for i, letter in enumerate(word[1:], start=1):
        name, value = _LETTERS.get(letter, letter), word[i + 1 :]
        if letter not in _SHORT_FLAGS:
            return [*options, _Option((f"-{letter}{value}",), name, value)], not value
        options.append(_Option((f"-{letter}",), name))
    return options, False


def _seconds(limit: str) -> int:
    """A time limit as sbatch reads it, such as 5, 5:00, 1:00:00 or 1-0; 0 if there is none."""
    match = _TIME.fullmatch(limit.strip())
    if match is None:
        return 0
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part]
    hours, minutes, seconds = ([*numbers, 0, 0] if days or len(numbers) == 3 else [0, *numbers, 0])[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
