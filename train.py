"""Train one experiment of the paper: python train.py +exp=acdc_ham_s90."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from signal import SIGPIPE

USAGE = """\
usage: python train.py +exp=NAME [+demo=digits] [seed=K] [key=value ...]

  +exp=NAME       an experiment of configs/exp; --list shows all with the paper's cell they reproduce
  +demo=digits    the same experiment scaled down to scikit-learn's embedded digits: a minute on a CPU
  seed=K          random seed, 0 if not given
  runs_dir=DIR    where run directories go, runs if not given
  resume=false    delete an earlier run and start again; without it a run resumes from its last checkpoint
  key=value       any other value of the configuration, such as ham.alpha=100 or optimizer.lr=0.1;
                  the run then gets its own directory and is not part of a table
  group=choice    model, data, optimizer, ham, sparsifier or parameterization, from its folder in configs

  --list          all experiments
  --help          this text
  -m ...          several runs: seed=0,1,2 or '+exp=glob(acdc_*)'; Hydra's --cfg and --info work too

exit status: 0 done, 1 failed or diverged, 2 wrong configuration or missing data,
             85 stopped by SIGTERM or SIGUSR1 with a checkpoint saved, 130 interrupted by Ctrl-C,
             141 the program that reads the output has ended (| head)
"""


def main(argv: list[str]) -> int:
    """Run the command line and return the exit status."""
    if {"--help", "-h"} & set(argv):
        print(USAGE, end="")
        return 0
    if "--list" in argv:
        if len(argv) > 1:
            return _fail("--list takes no other argument: omit the rest", 2)
        from ham.experiments import experiments

        for name, cell in experiments().items():
            print(f"{name:<34}{cell}")
        return 0
    if any(text.startswith("-") for text in argv):
        return _hydra(argv)
    return run_command(argv)


def run_command(overrides: list[str]) -> int:
    """One run; expected errors become one line and an exit status."""
    from ham.agreement import PeerLostError, RanksDisagreeError, StartError
    from ham.data import DataError
    from ham.errors import is_of_machine
    from ham.run.checkpoint import CheckpointError
    from ham.run.config import ConfigError
    from ham.run.loop import DivergedError, Interrupted

    try:
        _run(overrides)
    except PeerLostError as error:
        _fail(error, 1, always=True)
        sys.stderr.flush()
        os._exit(1)  # torch's own exit would wait for the lost rank
    except (ConfigError, DataError, StartError) as error:  # perhaps only on this rank
        return _fail(error, 2, always=not getattr(error, "shared", False))
    except (DivergedError, CheckpointError, RanksDisagreeError) as error:
        return _fail(error, 1, always=not getattr(error, "shared", True))
    except BrokenPipeError:
        ended = "the program that reads its output has ended"
        return _fail(f"{ended}; start the same command again to resume", 128 + SIGPIPE, always=True)
    except OSError as error:
        if not is_of_machine(error):
            raise
        always = not getattr(error, "shared", False)
        return _fail(f"{error}; fix that and start the same command again to resume", 1, always=always)
    except Interrupted as stop:
        return _fail(f"{stop}; start the same command again to resume", 85)
    except KeyboardInterrupt:
        cure = "start the same command again to resume from the last checkpoint"
        return _fail(f"interrupted; {cure}", 130, always=True)  # perhaps only this rank
    return 0


def _run(overrides: list[str]) -> None:
    from ham.distributed import world
    from ham.repository import unknown_commit
    from ham.run.config import demo_changes
    from ham.run.console import on_console
    from ham.run.main import run_experiment
    from ham.run.ranks import load_on_all_ranks

    cfg = load_on_all_ranks(overrides)
    if world().is_main_process and (reason := unknown_commit()):
        on_console(lambda: _fail(reason, 0))
    if cfg.demo and world().is_main_process:
        changes = demo_changes(overrides).items()
        lines = [f"  {key:<24}{before} -> {after}" for key, (before, after) in changes]
        on_console(lambda: print(f"demo={cfg.demo} scales {cfg.name}:", *lines, sep="\n"))
    run_experiment(cfg)


def _hydra(argv: list[str]) -> int:
    """Hydra's own flags: multirun, --cfg, --info. Each job runs like a single run."""
    from ham.run.config import ConfigError, parse_flags, run_hydra

    statuses = []

    def job(overrides: list[str]) -> None:
        statuses.append(run_command(overrides))
        if statuses[-1] in (85, 130):
            raise SystemExit(statuses[-1])

    try:
        flags = parse_flags(argv)
        if not (flags.multirun or flags.cfg or flags.info or flags.hydra_help):  # only --
            return run_command(flags.overrides)
        run_hydra(flags, job)
    except ConfigError as error:
        return _fail(error, 2)
    except SystemExit:
        if not statuses:
            raise
        return statuses[-1]  # `job` has raised it, through Hydra
    if flags.multirun and not statuses:
        return _fail("-m selects no run; see python train.py --list", 2)
    return max(statuses, default=0)


def _fail(error: object, status: int, *, always: bool = False) -> int:
    """Print one line: only on rank 0, or with `always` on every rank, whose errors may differ."""
    from ham.distributed import world

    if always or world().is_main_process:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    from ham.command_line import run_command_line

    try:
        status = run_command_line(main, sys.argv[1:])
    except Exception:
        traceback.print_exc()
        status = 1  # with other ranks, the interpreter's own end can wait forever
    if process_group := sys.modules.get("ham.process_group"):
        process_group.shutdown(status)
    sys.exit(status)
