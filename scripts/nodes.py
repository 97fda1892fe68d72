"""Carry out many node classification runs in one process: importing torch costs more than some of them.

    python scripts/nodes.py --sets cora citeseer --archs gcn sage --methods base ham nham --jobs 2
    python scripts/nodes.py --sets cora --archs gcn --grid      # the search of Tables 16 and 19

The runs are those of `python train.py +exp=node/...`, in the same directories, with as many seeds as the
paper has runs. What is done or has a committed record is skipped (--again: only what is done here), what was
stopped goes on: start the same command again, or on several machines with one --runs folder. Runs of one seed
share split, initial weights and dropout.

Exit status: 0 all are done, or another process is at them; 1 some failed, 2 wrong use or missing data,
85 stopped by a signal, 130 by Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ham.report.node_runs import ARCHS, GRID, METHODS, Job, every, published, seeds
from ham.report.records import record_path
from ham.report.spec import PlanError

_SIGNAL_OF_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


def jobs(args: argparse.Namespace) -> list[Job]:
    """All runs that are asked for."""
    known = seeds()
    points = {method: GRID[method] if args.grid else [None] for method in args.methods}
    return [
        job
        for name in args.sets
        for arch in args.archs
        for job in every(name, arch, known[name] if args.seeds is None else range(args.seeds), points)
    ]


class Worker:
    """Does jobs one after the other and tells how far all are.

    Args:
        work: all jobs.
        runs: where run directories go.
        workers: how many processes share the work.
        again: committed records do not count as done.
    """

    def __init__(self, work: list[Job], runs: Path, workers: int, again: bool = False) -> None:
        from ham.run.config import config_hash, load
        from ham.run.main import run_directory

        self.workers, self.again, self.cfgs, self.folders = workers, again, {}, {}
        for job in work:
            key = replace(job, seed=0)
            if key not in self.cfgs:
                cfg = load([f"+exp={job.exp}", *job.overrides, f"runs_dir={runs}", "compute.threads=1"])
                if job.point is not None and (cfg.ham.alpha, cfg.ham.beta) == published(job.exp):
                    cfg.overridden = False  # the leaf's own values: that very run
                self.cfgs[key] = cfg, config_hash(cfg)
            cfg, identity = self.cfgs[key]
            self.folders[job] = run_directory(replace_seed(cfg, job.seed), identity)

    def summary(self, job: Job) -> dict[str, Any] | None:
        """Of a job that is done here, or its committed record."""
        return self.done(job) or self.recorded(job)

    def done(self, job: Job) -> dict[str, Any] | None:
        """The summary in its run directory, if it is of this configuration."""
        from ham.run.record import read_summary

        return self._same(job, read_summary(self.folders[job]))

    def recorded(self, job: Job) -> dict[str, Any] | None:
        """The committed record, unless it is to be done again."""
        if self.again or (job.point is not None and job.point != published(job.exp)):
            return None
        try:
            return self._same(job, json.loads(record_path(job.exp, job.seed).read_text()))
        except (FileNotFoundError, ValueError):  # none, or it is not whole
            return None

    def _same(self, job: Job, summary: dict[str, Any] | None) -> dict[str, Any] | None:
        _, identity = self.cfgs[replace(job, seed=0)]
        return summary if summary and summary.get("config_hash") == identity else None

    def do(self, job: Job) -> None:
        """One run, in silence; what it would print is in its train.log."""
        from ham.run.main import main

        cfg, _ = self.cfgs[replace(job, seed=0)]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(replace_seed(cfg, job.seed))

    def stand(self) -> str:
        """How many jobs are done before it begins, and where."""
        total = len(self.folders)
        here = sum(self.done(job) is not None for job in self.folders)
        recorded = sum(self.summary(job) is not None for job in self.folders) - here
        told = f"{total} runs: {here} done, "
        if recorded:
            told += f"{recorded} with a committed record (--again does these here too), "
        return f"{told}{total - here - recorded} to do"

    def left(self) -> str:
        """How many jobs are done, and a guess at the time that the others take."""
        seconds: dict[tuple[str, str], list[float]] = {}
        waiting = []
        for job in self.folders:
            if summary := self.summary(job):
                seconds.setdefault((job.name, job.arch), []).append(summary["timing"]["seconds"])
            else:
                waiting.append(job)
        means = {key: sum(times) / len(times) for key, times in seconds.items()}
        usual = sum(means.values()) / max(len(means), 1)
        rest = sum(means.get((job.name, job.arch), usual) for job in waiting) / self.workers
        total = len(self.folders)
        return f"[{total - len(waiting)}/{total}, about {rest / 60:.0f} min left]"


def replace_seed(cfg: Any, seed: int) -> Any:
    """A copy of a configuration for another seed."""
    cfg = copy.deepcopy(cfg)
    cfg.seed = seed
    return cfg


def work_through(work: list[Job], args: argparse.Namespace) -> int:
    """Do every job that nobody has done or is doing; returns the exit status."""
    from ham.data import DataError
    from ham.run.checkpoint import CheckpointError
    from ham.run.loop import Diverged, Stopped
    from ham.run.record import Taken
    from ham.run.schema import ConfigError

    try:
        worker = Worker(work, args.runs, args.jobs, args.again)
    except ConfigError as error:
        print(f"nodes.py: {error}", file=sys.stderr)
        return 2
    status, taken, missing = 0, 0, set()
    if not args.worker:  # the first of several tells for all
        print(worker.stand(), flush=True)
    for job in work:
        if job.name in missing or worker.summary(job):
            continue
        try:
            worker.do(job)
        except (Stopped, KeyboardInterrupt) as stop:
            print(f"nodes.py: stopped in {job}: start the same command again to go on", file=sys.stderr)
            return 85 if isinstance(stop, Stopped) else 130
        except Taken:
            taken += 1
            continue
        except DataError as error:
            print(f"nodes.py: {error}", file=sys.stderr, flush=True)
            missing.add(job.name)
            status = 2
            continue
        except (ConfigError, Diverged, CheckpointError) as error:
            print(f"nodes.py: {job}: {error}", file=sys.stderr, flush=True)
            status = max(status, 2 if isinstance(error, ConfigError) else 1)
            continue
        summary = worker.summary(job)
        metrics, seconds = summary["metrics"], summary["timing"]["seconds"]
        print(
            f"{job}: valid {metrics['valid_best']:.2f}, test {metrics['test_at_best']:.2f}, {seconds:.0f} s  "
            f"{worker.left()}",
            flush=True,
        )
    if taken and args.worker is None:
        print(f"{taken} are under way in other processes: start this again to see them done", flush=True)
    return status


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Between two runs the signals that stop a run end the process as inside one."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: sys.exit(85)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent() -> None:
    """Should whoever shared the work out be killed, this process gets SIGTERM. On Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_OF_PARENTS_DEATH, signal.SIGTERM)


def share(argv: list[str], workers: int) -> int:
    """Start `workers` processes with the same work, pass signals on, and wait for all."""
    command = [sys.executable, __file__, *argv, "--worker"]
    children = [subprocess.Popen([*command, str(number)]) for number in range(workers)]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda n, _: [c.send_signal(n) for c in children if c.poll() is None])
    return max(_status(child.wait()) for child in children)


def _status(code: int) -> int:
    """A child's exit status; signals reach it between two runs too, and SIGKILL is no request to stop."""
    by_signal = {-signal.SIGTERM: 85, -signal.SIGUSR1: 85, -signal.SIGINT: 130}
    return code if code >= 0 else by_signal.get(code, 1)


def main(argv: list[str] | None = None) -> int:
    """Carry out the runs; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        known = list(seeds())
    except PlanError as error:
        print(f"nodes.py: {error}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sets", nargs="+", choices=known, required=True, metavar="SET", help=", ".join(known)
    )
    parser.add_argument("--archs", nargs="+", choices=ARCHS, default=ARCHS, metavar="ARCH")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="seeds 0 to N - 1; default: the paper's number"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, of one thread each")
    parser.add_argument(
        "--grid",
        action="store_true",
        help="all 12 (alpha, beta) of HAM, 12 of nHAM, beta alone: 27 runs a seed",
    )
    parser.add_argument("--again", action="store_true", help="also what has a committed record")
    parser.add_argument("--list", action="store_true", help="only name the runs")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.jobs < 1 or (args.seeds is not None and args.seeds < 1):
        parser.error("--jobs and --seeds must be at least 1")
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts
    work = jobs(args)
    if args.list:
        print("\n".join(map(str, work)))
        return 0
    if args.jobs > 1 and args.worker is None:
        return share(argv, args.jobs)
    try:
        with stoppable():
            if args.worker is not None:
                stop_with_parent()
            return work_through(work, args)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
