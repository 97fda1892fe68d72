"""What needs a GPU, in slices that end by themselves: its tests, the throughput, the cells of Table 7.

    benchmarks/gpu.sh [--seconds 540] [--jobs 3] [--tiny] [tests] [bench] [cells]

`cells` trains the next runs of Table 7 that have neither a summary in runs/gpu nor a record in results/runs,
several side by side. Before the time is up they are asked to save and stop, and the next slice goes on with
them. A run that fails twice is left out; runs/gpu/failures.json says why, and without that file it is tried
anew. What is worth keeping of the finished runs goes to $OUT (out/ if not set) as one archive, cells.tar.gz,
without places on this machine; `python scripts/records.py out/cells.tar.gz` makes records of it.

Exit status: 0 nothing is left to do, 1 something failed, 2 wrong use or missing data, 85 runs are left: the
same command again goes on, 130 Ctrl-C (`cells` then has its runs save, as at the end of its time: 85).
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from records import RECORDS, placeless, record, record_path

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("tests", "bench", "cells")
EXPERIMENTS = tuple(
    f"cifar100{sam}{part}" for sam in ("", "_sam") for part in ("", "_beta_only", "_alpha_only", "_ham")
)
SEEDS = (0, 1, 2)
ENOUGH = 2  # failures of a run before it is left out
STOPPED = 85
_PLACE = re.compile(r"^(\s*(?:runs_dir|root):).*$", re.MULTILINE)
_BAR = re.compile(r"\d+/\d+ \[.*\]\s*$")


class UsageError(Exception):
    """What was asked for cannot start; one line with the cure."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    exp: str
    seed: int

    def __str__(self) -> str:
        return f"{self.exp}/seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """The runs that are wanted and where they are.

    Args:
        cells: in the order in which they are trained.
        runs: where run directories go.
        epochs: of each run.
        overrides: what each command line says besides experiment and seed.
        records: the folder with committed records; None where none count.
    """

    cells: tuple[Cell, ...]
    runs: Path
    epochs: int
    overrides: tuple[str, ...] = ()
    records: Path | None = None

    def command(self, cell: Cell) -> list[str]:
        """The command line of a run."""
        start = [sys.executable, "train.py", f"+exp={cell.exp}", f"seed={cell.seed}"]
        return [*start, *self.overrides, f"runs_dir={self.runs}"]

    def folder(self, cell: Cell) -> Path:
        """The run directory; the name of an altered run has more after a hyphen, see ham.run.main."""
        altered = sorted((ROOT / self.runs).glob(f"{cell.exp}-*/seed{cell.seed}")) if self.overrides else []
        return altered[0] if altered else ROOT / self.runs / cell.exp / f"seed{cell.seed}"

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """The summary or the committed record of a run that is done."""
        paths = [self.folder(cell) / "summary.json"]
        if self.records:
            paths.append(record_path(cell.exp, cell.seed, self.records))
        return next((json.loads(path.read_text()) for path in paths if path.exists()), None)

    def epochs_done(self, cell: Cell) -> int:
        """Epochs behind it."""
        if self.summary(cell):
            return self.epochs
        path = self.folder(cell) / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    # failures outlive a slice

    @property
    def _failures(self) -> Path:
        return ROOT / self.runs / "failures.json"

    def failures(self) -> dict[str, list[str]]:
        """What each failing run said last, once per failure."""
        return json.loads(self._failures.read_text()) if self._failures.exists() else {}

    def failed(self, cell: Cell, said: str) -> int:
        """Note a failure; returns how many there were of this run."""
        failures = self.failures()
        failures.setdefault(str(cell), []).append(said)
        temporary = self._failures.with_suffix(".tmp")
        temporary.write_text(json.dumps(failures, indent=1) + "\n")
        os.replace(temporary, self._failures)
        return len(failures[str(cell)])

    def missing(self) -> list[Cell]:
        """Runs to go on with, in their order; those that failed once come last."""
        failures = {cell: len(self.failures().get(str(cell), ())) for cell in self.cells}
        left = [cell for cell in self.cells if not self.summary(cell) and failures[cell] < ENOUGH]
        return sorted(left, key=failures.__getitem__)

    def hopeless(self) -> list[Cell]:
        """Runs that are left out."""
        failures = self.failures()
        return [c for c in self.cells if len(failures.get(str(c), ())) >= ENOUGH and not self.summary(c)]


class Slice:
    """Trains what is missing until the time is up, or until it is told to stop.

    Args:
        study: what is wanted.
        jobs: runs side by side.
        stop_at: when runs are asked to save and stop, in seconds of `time.monotonic`.
        kill_at: when those that did not are killed; their last checkpoint remains.
        out: where the archive goes.
    """

    def __init__(self, study: Study, *, jobs: int, stop_at: float, kill_at: float, out: Path) -> None:
        self.study, self.jobs, self.stop_at, self.kill_at, self.out = study, jobs, stop_at, kill_at, out
        self.running: dict[Cell, subprocess.Popen[bytes]] = {}
        self.stopping = False

    def stop(self, *_: object) -> None:
        """Have the slice end now rather than at its time."""
        self.stop_at = time.monotonic()
        self.kill_at = min(self.kill_at, self.stop_at + 20)

    def work(self) -> None:
        """Until nothing is missing or the time is up."""
        queue = deque(self.study.missing())
        (ROOT / self.study.runs / "logs").mkdir(parents=True, exist_ok=True)
        try:
            while self.running or (queue and not self.stopping):
                if not self.stopping and time.monotonic() >= self.stop_at:
                    self.stopping = True
                    for child in self.running.values():
                        child.send_signal(signal.SIGUSR1)
                while queue and not self.stopping and len(self.running) < self.jobs:
                    self._start(queue.popleft())
                time.sleep(0.1)
                if time.monotonic() >= self.kill_at:
                    self._kill()
                ended = [cell for cell, child in self.running.items() if child.poll() is not None]
                queue.extend(cell for cell in ended if self._end(cell))
        finally:
            self._kill()  # only after an exception of our own is there anything left

    def _start(self, cell: Cell) -> None:
        told = f"from epoch {done + 1}" if (done := self.study.epochs_done(cell)) else "anew"
        say(f"{cell}: begins {told}")
        share = max(1, (os.cpu_count() or 1) // self.jobs)
        environment = {"OMP_NUM_THREADS": str(share)} | os.environ
        with open(self._log(cell, "out"), "ab") as out, open(self._log(cell, "err"), "wb") as err:
            command = self.study.command(cell)
            # a group of its own: Ctrl-C reaches this process alone, which then asks the runs to save
            self.running[cell] = subprocess.Popen(
                command, stdout=out, stderr=err, cwd=ROOT, env=environment, process_group=0
            )

    def _end(self, cell: Cell) -> bool:
        """Take note of how a run ended; may it be tried once more in this slice?"""
        status = self.running.pop(cell).returncode
        if status == 0 and (summary := self.study.summary(cell)):
            say(f"{cell}: done, {top1(summary)}")
            pack(self.study, self.out)
            return False
        stopped_early = self.stopping and status < 0  # before it could heed a signal: nothing is lost
        if status == STOPPED or stopped_early:
            say(f"{cell}: stopped (status {status})")
            return False
        said = placeless_text(last_line(self._log(cell, "err")) or f"exit status {status}")
        times = self.study.failed(cell, said)
        say(f"{cell}: failed (status {status}, {times} of {ENOUGH} times): {said}")
        return times < ENOUGH

    def _log(self, cell: Cell, kind: str) -> Path:
        return ROOT / self.study.runs / "logs" / f"{cell.exp}-seed{cell.seed}.{kind}"

    def _kill(self) -> None:
        for child in self.running.values():
            child.kill()
            child.wait()


def say(text: str) -> None:
    print(text, flush=True)


def top1(summary: dict[str, Any]) -> str:
    return f"top-1 {summary['metrics']['top1_last']:.2f} %"


def last_line(path: Path) -> str:
    """The last line on stderr that is no progress bar."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", path.read_text(errors="replace"))]
    return next((line for line in reversed(lines) if line and not _BAR.search(line)), "")


def placeless_text(text: str) -> str:
    """A text without places on this machine and without its name."""
    for place, name in ((str(ROOT), "."), (str(Path.home()), "~"), (os.uname().nodename, "host")):
        if len(place) > 1:
            text = text.replace(place, name)
    return re.sub(r"(?<![\w.~])/(?:[\w.+-]+/)+", "", text)


def pack(study: Study, out: Path) -> None:
    """Write cells.tar.gz with what is kept of the runs done here; one file, however many runs there are."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / ".cells.tmp"
    with tarfile.open(temporary, "w:gz") as archive:
        for cell in study.cells:
            folder = study.folder(cell)
            if not (folder / "summary.json").exists():
                continue
            summary = record(json.loads((folder / "summary.json").read_text()))
            facts = placeless(json.loads((folder / "provenance.json").read_text()))
            contents = {
                "summary.json": json.dumps(summary, indent=1) + "\n",
                "provenance.json": json.dumps(facts, indent=1) + "\n",
                "metrics.jsonl": (folder / "metrics.jsonl").read_text(),
                "config.yaml": _PLACE.sub(r"\1 ''", (folder / "config.yaml").read_text()),
            }
            for name, text in contents.items():
                member = tarfile.TarInfo(f"{cell}/{name}")  # owner and time are left out
                member.size = len(content := text.encode())
                archive.addfile(member, io.BytesIO(content))
    os.replace(temporary, out / "cells.tar.gz")


def report(study: Study, before: int, seconds: float) -> None:
    """One line per run, then what is left and how long that takes at this slice's pace."""
    failures = study.failures()
    for cell in study.cells:
        summary, done = study.summary(cell), study.epochs_done(cell)
        said = failures.get(str(cell), [])
        if summary:
            state = f"done, {top1(summary)}"
        elif len(said) >= ENOUGH:
            state = f"failed {len(said)} times: {said[-1]}"
        else:
            state = f"epoch {done} of {study.epochs}" if done else "not started"
        say(f"{cell!s:<32}{state}")
    left = sum(study.epochs - study.epochs_done(cell) for cell in study.missing())
    gained = sum(map(study.epochs_done, study.cells)) - before
    done = sum(study.summary(cell) is not None for cell in study.cells)
    pace = f"about {_duration(left * seconds / gained)} left" if gained > 0 else "time left unknown"
    say(f"{done} of {len(study.cells)} runs done, {left} epochs left" + (f": {pace}" if left else ""))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes else f"{seconds:.0f} s"


def require_data() -> None:
    """CIFAR-100 is where the runs look for it."""
    data = Path(os.environ.get("HAM_DATA", "."))
    if (ROOT / data / "cifar-100-python").is_dir():
        return
    cure = f"python scripts/prepare_data.py cifar100 --to {data}"
    for shared in (ROOT / "shared", ROOT.parent / "shared"):
        maker = shared / "bin" / "make_cifar100.py"
        if (shared / "data" / "cifar100").is_dir() and maker.is_file():
            place = os.path.relpath(maker, ROOT)
            cure = f"python {place} {data} && {cure}"
            break
    else:
        cure += " [--from DIR_OR_TARGZ]"
    raise UsageError(
        f"CIFAR-100 is not at {data / 'cifar-100-python'}: run {cure}; $HAM_DATA names the folder"
    )


def require_gpu() -> None:
    """A GPU is there, and so is the commit that the records will name."""
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", ask], stderr=subprocess.DEVNULL).returncode:
        raise UsageError("torch sees no GPU here; `benchmarks/gpu.sh cells --tiny` tries it without one")


def require_commit() -> None:
    """The records will name the commit of this code."""
    git = ["git", "rev-parse", "HEAD"]
    try:
        known = subprocess.run(git, cwd=ROOT, capture_output=True).returncode == 0
    except OSError:
        known = False
    if not known and not os.environ.get("HAM_COMMIT"):
        raise UsageError(
            "git knows no commit here: set HAM_COMMIT to what git rev-parse HEAD says of this code"
        )


def tests(out: Path, seconds: float) -> int:
    """tests/gpu; what pytest says goes to tests.txt."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "--no-header"]
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        say(f"tests: not done within {seconds:.0f} s")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    said = placeless_text(done.stdout + done.stderr)
    (out / "tests.txt").write_text(said)
    say("tests: " + (said.strip().splitlines() or ["pytest said nothing"])[-1])
    return 0 if done.returncode == 0 and " passed" in said else 1


def bench(out: Path, seconds: float) -> int:
    """benchmarks/throughput.py; its numbers go to throughput.json."""
    if not (ROOT / "benchmarks" / "throughput.py").exists():
        say("bench: benchmarks/throughput.py is not here: left out")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "benchmarks/throughput.py", "--json", str(out / "throughput.json")]
    try:
        return 1 if subprocess.run(command, cwd=ROOT, timeout=seconds).returncode else 0
    except subprocess.TimeoutExpired:
        say(f"bench: not done within {seconds:.0f} s")
        return 1


def cells(study: Study, *, jobs: int, deadline: float, grace: float, out: Path) -> int:
    """One slice of training; returns the exit status.

    Raises:
        UsageError: another slice is under way here.
    """
    with _locked(ROOT / study.runs):
        began, before = time.monotonic(), sum(map(study.epochs_done, study.cells))
        piece = Slice(study, jobs=jobs, stop_at=deadline - grace, kill_at=deadline - grace / 4, out=out)
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        handlers = {number: signal.signal(number, piece.stop) for number in wanted}
        try:
            piece.work()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        pack(study, out)
        report(study, before, time.monotonic() - began)
    return STOPPED if study.missing() else int(bool(study.hopeless()))


def _locked(runs: Path) -> TextIO:
    runs.mkdir(parents=True, exist_ok=True)
    lock = open(runs / "lock", "w")  # noqa: SIM115 - held by the caller
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UsageError("another slice is under way here: wait for its end") from None
    return lock


def full(args: argparse.Namespace) -> Study:
    """Table 7 as it is in the paper."""
    base = (ROOT / "configs" / "base" / "cifar100_rn18.yaml").read_text()
    epochs = int(re.search(r"^epochs: (\d+)$", base, re.MULTILINE)[1])
    return Study(_order(args), args.runs or Path("runs/gpu"), epochs, records=RECORDS)


def tiny(args: argparse.Namespace) -> Study:
    """The same runs scaled down to a few epochs on the digits, to try the script on a CPU."""
    overrides = ("+demo=digits", f"epochs={args.epochs}")
    return Study(_order(args), args.runs or Path("runs/tiny"), args.epochs, overrides)


def _order(args: argparse.Namespace) -> tuple[Cell, ...]:
    """Seed by seed, so that the whole table is there early and then gains in certainty."""
    return tuple(Cell(exp, seed) for seed in args.seeds for exp in args.experiments)


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="tests|bench|cells", help="all, in this order, if none")
    parser.add_argument("--seconds", type=float, default=540, help="within which this ends (540)")
    parser.add_argument("--jobs", type=int, default=3, help="runs side by side (3)")
    parser.add_argument("--experiments", type=_list, default=EXPERIMENTS, help="a,b,... (Table 7's eight)")
    parser.add_argument("--seeds", type=_numbers, default=SEEDS, help="a,b,... (0,1,2)")
    parser.add_argument("--runs", type=Path, help="where run directories go (runs/gpu, or runs/tiny)")
    parser.add_argument("--tiny", action="store_true", help="scaled down to the digits, on a CPU")
    parser.add_argument("--epochs", type=int, default=4, help="of a run with --tiny (4)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Carry the stages out; returns the exit status."""
    began = time.monotonic()
    parser = _parser()
    args = parser.parse_args(argv)
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"no stage is called {min(unknown)}: choose from {', '.join(STAGES)}")
    if args.jobs < 1 or args.seconds <= 0:
        parser.error("--jobs and --seconds must be above 0")
    chosen = [stage for stage in STAGES if stage in args.stages or not args.stages]
    out, deadline = Path(os.environ.get("OUT", ROOT / "out")).absolute(), began + args.seconds
    try:
        if "cells" in chosen and not args.tiny:
            require_data()
            require_commit()
        if not args.tiny:
            require_gpu()
        statuses = []
        for stage in chosen:
            left = deadline - time.monotonic()
            if stage == "cells":
                grace = min(30.0, args.seconds / 4)
                study = tiny(args) if args.tiny else full(args)
                statuses.append(cells(study, jobs=args.jobs, deadline=deadline, grace=grace, out=out))
            else:
                statuses.append({"tests": tests, "bench": bench}[stage](out, left / 2))
    except UsageError as error:
        print(f"gpu.sh: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu.sh: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"gpu.sh: {error}; mend that and start the same command again to go on", file=sys.stderr)
        return 1
    return next((status for status in (2, STOPPED, 1) if status in statuses), 0)


if __name__ == "__main__":
    sys.exit(main())
