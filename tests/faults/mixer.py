"""Random trainings under random faults: each ends equal to its undisturbed twin, or in one line.

    python tests/faults/mixer.py 300            # seeds 0 to 299; prints the seeds that failed
    python tests/faults/mixer.py 1 --seed 17    # one of them again

A case is a tiny experiment on one to three ranks. In each of some starts, a rank is killed, stopped or
signalled at a step, killed in the middle of a checkpoint, or finds the disk full; between starts files are
deleted or damaged. The last start is undisturbed.

With --rank, this file is a rank: train.py with a fault in it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 20.0
EXPERIMENTS = ("dense_ham", "acdc_ham_s90", "rigl_ham_s90", "str_s90", "dense_sam_ham")
SCALE = ["+demo=tiny", "model.width=2", "batch_size=360", "epochs=3", "checkpoint.minutes=0"]
STEPS = 12  # of a case: 1,437 digits in batches of 360, three times
SIGNALS = {"term": signal.SIGTERM, "usr1": signal.SIGUSR1, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}
FILES = ("last.pt", "previous.pt", "metrics.jsonl", "provenance.json", "config.yaml", "train.log")
LINE = re.compile(r"^\w+\.py: .*", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """What happens to one rank: a signal after a step, or a fault at the n-th fsync of a file."""

    kind: str
    rank: int
    at: int


@dataclass(frozen=True)
class Case:
    """An experiment, the faults of its starts but the last, and what happens to files after each of them."""

    experiment: str
    ranks: int
    faults: tuple[Fault, ...]
    files: tuple[tuple[str, str], ...]  # (name, "delete" or "damage"); "" for none


def draw(seed: int) -> Case:
    """The case of a seed."""
    choose = random.Random(seed)
    ranks = choose.choice((1, 1, 2, 2, 3))
    kinds = ["kill", "term", "usr1", "kill in fsync", "full disk", *(["stop"] if ranks > 1 else [])]
    faults, files = [], []
    for _ in range(choose.choice((1, 1, 2))):
        kind = choose.choice(kinds)
        of_rank_0 = kind in ("kill in fsync", "full disk")
        at = choose.randint(1, 40 if of_rank_0 else STEPS - 1)
        faults.append(Fault(kind, 0 if of_rank_0 else choose.randrange(ranks), at))
        files.append((choose.choice(("", "", "", *FILES)), choose.choice(("delete", "damage"))))
    return Case(choose.choice(EXPERIMENTS), ranks, tuple(faults), tuple(files))


def run_rank(fault: Fault | None, argv: list[str]) -> int:
    """train.py in a rank with a fault."""
    sys.path.insert(0, str(ROOT))
    import train
    from ham.distributed import world

    if fault is not None and world().rank == fault.rank:
        _install(fault)
    return train.main(argv)


def _install(fault: Fault) -> None:
    from ham.run import loop

    calls = {"steps": 0, "fsync": 0}
    after, sync = loop.train_step, os.fsync

    def train_step(*args: Any) -> Any:
        loss = after(*args)
        calls["steps"] += 1
        if calls["steps"] == fault.at and fault.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[fault.kind])
        return loss

    def fsync(descriptor: int) -> None:
        calls["fsync"] += 1
        if calls["fsync"] == fault.at and fault.kind == "kill in fsync":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls["fsync"] >= fault.at and fault.kind == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    loop.train_step, os.fsync = train_step, fsync


@dataclass
class Mixer:
    """Runs cases in a folder.

    Args:
        launch: of launched_ranks.
        folder: for run directories.
    """

    launch: Callable[..., Any]
    folder: Path
    twins: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def run(self, case: Case, name: str) -> list[str]:
        """What is wrong with the end of a case; empty if nothing is."""
        runs, wrong, is_changed = self.folder / name, [], False
        for fault, (file, how) in zip(case.faults, case.files, strict=True):
            statuses, text = self._start(case, runs, fault)
            is_refused = is_changed and not self._check_refusal(statuses, text)  # before the fault
            wrong += [] if is_refused else self._check_end(statuses, text, fault)
            self._change(runs, file, how)
            is_changed = is_changed or bool(file)
        statuses, text = self._start(case, runs, None)
        if statuses != [0] * case.ranks:
            wrong += self._check_refusal(statuses, text)
            statuses, text = self._start(case, runs, None, "resume=false")  # the cure
        if statuses != [0] * case.ranks:
            wrong.append(f"the last start ended with {statuses}: {text[-300:]}")
        elif (end := result(runs)) != (twin := self._twin(case)):
            wrong += [f"{key} differs from the undisturbed run" for key in twin if end[key] != twin[key]]
        shutil.rmtree(runs, ignore_errors=True)
        return wrong

    def _twin(self, case: Case) -> dict[str, Any]:
        key = (case.experiment, case.ranks)
        if key not in self.twins:
            runs = self.folder / f"twin-{case.experiment}-{case.ranks}"
            statuses, text = self._start(case, runs, None)
            assert statuses == [0] * case.ranks, text
            self.twins[key] = result(runs)
        return self.twins[key]

    def _start(self, case: Case, runs: Path, fault: Fault | None, *more: str) -> tuple[list[int], str]:
        """Exit statuses and output of one start. A rank that SIGSTOP has stopped is killed in the end."""
        argv = [f"+exp={case.experiment}", *SCALE, f"runs_dir={runs}", f"compute.timeout={TIMEOUT}", *more]
        role = json.dumps(asdict(fault) if fault else None)
        ranks = self.launch(Path(__file__), "--rank", role, *argv, ranks=case.ranks)
        stopped = fault.rank if fault and fault.kind == "stop" else None
        deadline = None
        while any(p.exitcode is None for rank, p in enumerate(ranks.processes) if rank != stopped):
            time.sleep(0.02)
            if deadline is None and any(p.exitcode is not None for p in ranks.processes):
                deadline = time.monotonic() + TIMEOUT + 10  # all others end within this time
            if deadline is not None and time.monotonic() > deadline:
                break
        if stopped is not None:
            ranks.processes[stopped].kill()
            ranks.processes[stopped].join()
        statuses = [999 if process.exitcode is None else process.exitcode for process in ranks.processes]
        for process in ranks.processes:
            process.kill()
        return statuses, "\n".join(ranks.said())

    def _check_end(self, statuses: list[int], text: str, fault: Fault) -> list[str]:
        """A start with a fault ends in time, without a traceback and with statuses that fit."""
        wrong = ["a traceback"] if "Traceback" in text else []
        if 999 in statuses:
            wrong.append(f"{fault.kind} of rank {fault.rank}: a rank did not end: {statuses}")
        allowed = {"term": {85}, "usr1": {85}, "full disk": {1, 2}}.get(fault.kind, {1, -9})
        if not set(statuses) <= {0, *allowed}:
            wrong.append(
                f"{fault.kind} of rank {fault.rank} at {fault.at} ended with {statuses}: {text[-300:]}"
            )
        if {1, 2, 85} & set(statuses) and not LINE.search(text):
            wrong.append(f"{statuses} without a line")
        return wrong

    def _check_refusal(self, statuses: list[int], text: str) -> list[str]:
        """A start that refuses the files says so in one line with the cure."""
        lines = set(LINE.findall(text))
        if "Traceback" in text or len(lines) != 1 or not set(statuses) <= {1, 2}:
            return [f"a start ended with {statuses} and {lines or text[-300:]}"]
        return [] if "resume=false" in lines.pop() else [f"a refusal without the cure: {text[-300:]}"]

    def _change(self, runs: Path, file: str, how: str) -> None:
        """Delete or damage a file of a run that is not finished."""
        if list(runs.glob("*/seed0/summary.json")):
            return
        for path in runs.glob(f"*/seed0/{file}") if file else ():
            if path.is_file() and how == "delete":
                path.unlink()
            elif path.is_file():
                content = bytearray(path.read_bytes())
                path.write_bytes(content[: len(content) // 2] + b"\0?\n")


def result(runs: Path) -> dict[str, Any]:
    """What must be equal at the end: metrics of all epochs, model, masks, metrics and sparsity."""
    import torch

    (folder,) = runs.glob("*/seed0")
    state = torch.load(folder / "last.pt", weights_only=True)
    model = {name: tensor.numpy().tobytes() for name, tensor in state["model"].items()}
    summary = json.loads((folder / "summary.json").read_text())
    lines = (folder / "metrics.jsonl").read_text()
    return {"model": model, "lines": lines, "metrics": summary["metrics"], "sparsity": summary["sparsity"]}


def main() -> int:
    """Run the cases of the command line."""
    import contextlib

    from launched_ranks import launcher
    from tqdm import trange

    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = 0
    with contextlib.contextmanager(launcher)() as launch, tempfile.TemporaryDirectory() as folder:
        mixer = Mixer(launch, Path(folder))
        for seed in trange(arguments.seed, arguments.seed + arguments.runs, unit="case"):
            case = draw(seed)
            if wrong := mixer.run(case, str(seed)):
                failed += 1
                print(f"seed {seed}: {case}", *wrong, sep="\n    ", flush=True)
    print(f"{arguments.runs - failed} of {arguments.runs} cases ended as they should")
    return int(failed > 0)


if __name__ == "__main__":
    if sys.argv[1] == "--rank":
        role = json.loads(sys.argv[2])
        status = run_rank(Fault(**role) if role else None, sys.argv[3:])
        from ham.process_group import shutdown

        shutdown(status)
        sys.exit(status)
    sys.path.insert(0, str(ROOT / "tests"))
    sys.exit(main())
