"""A process that executes runs one after the other: importing torch takes longer than some of them.

    python -m ham.sweep.worker TRAIN_PY PARENT_PID

reads requests {"argv": [...], "log": path} from stdin, one JSON object a line, runs train.py's `main` with
these arguments, and answers {"status": k} with its exit status. What the run prints goes to the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ham.files import ROOT, open_binary

_PR_SET_PDEATHSIG = 1  # prctl(2)
_WORLD_SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # see ham.distributed.world


class Worker:
    """The parent's side: starts the process and hands it one run at a time.

    Args:
        train: the train.py that it loads.
        environment: variables that are added to this process's environment.
        many: True if it may take more than one run.
    """

    def __init__(self, train: Path, environment: dict[str, str], many: bool) -> None:
        self._many = many
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(  # nice would have no effect in a session of its own
            [sys.executable, "-m", "ham.sweep.worker", str(train), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_without_ranks(os.environ) | environment | {"PYTHONPATH": os.pathsep.join(paths)},
            process_group=0,  # Ctrl-C reaches only the parent
        )

    def run(self, argv: list[str], log: Path) -> int:
        """Run train.py; returns its exit status, negative for a signal that killed the process."""
        request = json.dumps({"argv": argv, "log": str(log)})
        try:
            self._process.stdin.write(f"{request}\n".encode())
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        return json.loads(answer)["status"] if answer else (self._process.wait() or 1)

    @property
    def is_reusable(self) -> bool:
        """True if the worker can take another run."""
        return self._many and self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Wait until the process ends, which it does after its run."""
        with contextlib.suppress(BrokenPipeError):  # it was killed before it had read its request
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a single-process training, even where this process is a rank of torchrun or srun."""
    return {name: text for name, text in environment.items() if name not in _WORLD_SIZES}


def load_main(train: Path) -> Callable[[list[str]], int]:
    """The `main` of train.py."""
    spec = importlib.util.spec_from_file_location("train", train)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train"] = module
    spec.loader.exec_module(module)
    return module.main


def run_logged(main: Callable[[list[str]], int], request: dict[str, Any]) -> int:
    """Run `main` with stdout and stderr appended to the log; returns its exit status."""
    with open_binary(request["log"], "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["train.py", *request["argv"]]  # provenance records it
    try:
        return main(request["argv"])
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def stop_with_parent(parent: int) -> None:
    """Have this process receive SIGTERM when its parent dies, however it dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the call
            sys.exit(1)


def serve(train: Path, parent: int) -> None:
    """Answer requests until stdin ends."""
    stop_with_parent(parent)
    answers = os.fdopen(os.dup(1), "w")
    main = load_main(train)
    for line in sys.stdin:
        status = run_logged(main, json.loads(line))
        with contextlib.suppress(BrokenPipeError):  # the parent was killed
            print(json.dumps({"status": status}), file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
