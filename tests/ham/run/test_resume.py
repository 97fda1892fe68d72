"""Killed anywhere and started again, a run ends as one that nobody touched: bit for bit.

Run as a script, this file is the starter: it imports everything once and forks a process for each command
line that it reads, so that a start takes a second and not five. Kills are SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from ham.run.build import run_directory
from ham.run.config import config_hash, load
from ham.run.metrics import EpochMetrics
from pruning import ACDC
from pruning.acdc import phases

ROOT = Path(__file__).resolve().parents[3]
EPOCHS, STEPS = 12, 3  # 1437 training images in batches of 400
SGD = [
    "+exp=acdc_ham_s90",
    "+demo=digits",
    "model.width=4",
    "batch_size=400",
    f"epochs={EPOCHS}",
    "optimizer.sam_rho=0.05",
]
ADAMW = [
    "+exp=deit_acdc_ham_s50",
    "+demo=digits",
    "model.depth=2",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.drop_path=0.1",  # draws from the global random stream
    "batch_size=400",
    f"epochs={EPOCHS}",
]
EVERY_STEP, EVERY_EPOCH = "checkpoint.minutes=0", "checkpoint.minutes=1000"

# the places where a process can be struck, at the entry of a function
PLACES = {
    "step": (
        "ham.run.metrics",
        "EpochMetrics.update_loss",
    ),  # the weights have moved, the step is not counted
    "save": ("ham.run.checkpoint", "save"),  # at the end of an epoch: its line is written, no checkpoint yet
    "write": ("torch", "save"),  # the temporary file is open
    "rename": ("os", "replace"),
    "summary": ("ham.run.logger", "RunLogger.write_summary"),
}


@dataclass(frozen=True)
class End:
    """How a process ended: its exit status, -9 after a SIGKILL, and what it said."""

    status: int
    said: str


Start = Callable[..., End]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start(argv, place, number)`: train.py in a new process, struck when it passes a place."""
    log = tmp_path_factory.mktemp("starter") / "log"
    starter = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(
        argv: list[str],
        place: str = "",
        number: int = 0,
        *,
        by: signal.Signals = signal.SIGKILL,
        after: float | None = None,
    ) -> End:
        order = {"argv": argv, "place": place, "number": number, "by": by, "after": after, "log": str(log)}
        starter.stdin.write(json.dumps(order) + "\n")
        starter.stdin.flush()
        return End(int(starter.stdout.readline()), log.read_text())

    yield run
    starter.stdin.close()
    starter.wait(timeout=60)


def serve() -> None:
    """The starter: an order a line on stdin, an exit status a line on stdout."""
    sys.path.insert(0, str(ROOT))
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    import ham.repository
    import ham.run.config
    import ham.run.loop
    import ham.run.main
    import ham.run.provenance
    import ham.run.ranks
    import train

    ham.run.loop._SHORT_EPOCH = 0.0  # a checkpoint after every epoch
    # Hydra composes for half a second: once per command line
    ham.run.config.load = ham.run.ranks.load = remember(ham.run.config.load)
    ham.run.config.demo_changes = remember(ham.run.config.demo_changes)
    ham.repository.unknown_commit = cache(ham.repository.unknown_commit)
    for name in ("commit", "has_changes", "hardware", "_version"):  # git, and the packages' metadata
        setattr(ham.run.provenance, name, cache(getattr(ham.run.provenance, name)))
    ham.run.provenance.provenance("")

    for line in sys.stdin:
        order = json.loads(line)
        ham.run.config.load(order["argv"])
        ham.run.config.demo_changes(order["argv"])
        child = os.fork()
        if child == 0:
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            status = 70
            try:
                if order["place"]:
                    strike(order["place"], order["number"], order["by"])
                sys.argv[1:] = order["argv"]
                status = train.main(order["argv"])
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        if order["after"] is not None:
            time.sleep(order["after"])
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def remember(compose: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    """`compose`, which children of this process do not repeat."""
    known = cache(lambda words: compose(list(words)))
    return lambda words: known(tuple(words))


def strike(place: str, number: int, by: int) -> None:
    """Send this process a signal when it passes a place for the `number`th time, counted from 0."""
    module, name = PLACES[place]
    outer, _, attribute = name.rpartition(".")
    owner = getattr(sys.modules[module], outer) if outer else sys.modules[module]
    original, passages = getattr(owner, attribute), count()

    def struck(*args: Any, **kwargs: Any) -> Any:
        if next(passages) == number:
            os.kill(os.getpid(), by)
        return original(*args, **kwargs)

    setattr(owner, attribute, struck)


def in_folder(argv: list[str], folder: Path) -> tuple[list[str], Path]:
    """The command line with `folder` for its runs, and the run's own directory in it."""
    argv = [*argv, f"runs_dir={folder}"]
    cfg = load(argv)
    return argv, run_directory(cfg, config_hash(cfg))


@pytest.fixture(scope="module")
def untouched(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    """The directory of a run of `argv` in a single process."""
    done: dict[str, Path] = {}

    def run(argv: list[str]) -> Path:
        key = " ".join(argv)
        if key not in done:
            full, done[key] = in_folder(argv, tmp_path_factory.mktemp("untouched"))
            end = start(full)
            assert end.status == 0, end.said
        return done[key]

    return run


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested dicts and sequences."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from leaves(value, f"{path}/{number}")
    else:
        yield path, tree


def assert_same_end(folder: Path, reference: Path) -> None:
    """Weights, optimizer, schedule, masks, random streams and records are the same to the bit."""
    found, expected = (
        dict(leaves(torch.load(place / "last.pt", weights_only=True))) for place in (folder, reference)
    )
    assert found.keys() == expected.keys()
    assert {path.split("/")[1] for path in found} >= {"model", "optimizer", "scheduler", "sparsifier", "rng"}
    for path, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[path], value), path
        elif path != "/logger/elapsed":
            assert found[path] == value, path
    assert (folder / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    one, other = (json.loads((place / "summary.json").read_text()) for place in (folder, reference))
    for summary in (one, other):
        del summary["timing"], summary["provenance"]
    assert one == other


def first_steps(change: list[str]) -> list[int]:
    """Steps that begin an epoch whose phase differs from the one before, in this direction."""
    return [
        STEPS * (epoch + 1) for epoch, pair in enumerate(pairwise(phases(EPOCHS))) if list(pair) == change
    ]


def test_ten_kills_change_nothing(start: Start, untouched: Callable, tmp_path: Path) -> None:
    compressed, revived = first_steps(["dense", "sparse"]), first_steps(["sparse", "dense"])
    kills = [1, 4, *compressed[:2], compressed[0] + 1, *(step + 2 for step in revived[:2])]
    kills += [revived[-1] + 1, compressed[-1] + 2, EPOCHS * STEPS - 1]
    assert len(set(kills)) == 10 and kills[1] < 0.2 * EPOCHS * STEPS
    argv, folder = in_folder([*SGD, EVERY_STEP], tmp_path)
    reached = 0
    for kill in sorted(kills):
        end = start(argv, "step", kill - reached)
        assert end.status == -signal.SIGKILL, end.said
        if reached:
            log = (folder / "train.log").read_text()
            assert re.search(rf"resumed at epoch \d+, step {reached}$", log, re.MULTILINE)
        reached = kill
    end = start(argv)
    assert end.status == 0, end.said
    assert_same_end(folder, untouched(SGD))
    assert len(json.loads((folder / "summary.json").read_text())["provenance"]["resumed_from"]) == 10


def test_kills_at_the_worst_moments_change_nothing(start: Start, untouched: Callable, tmp_path: Path) -> None:
    argv, folder = in_folder([*SGD, EVERY_EPOCH], tmp_path)
    names = ("metrics.jsonl", "last.pt", "previous.pt", ".last.pt.*.tmp")

    def struck(place: str, number: int) -> set[str]:
        end = start(argv, place, number)
        assert end.status == -signal.SIGKILL, end.said
        return {name for name in names if list(folder.glob(name))}

    assert struck("save", 0) == {"metrics.jsonl"}
    assert struck("write", 2) == {"metrics.jsonl", "last.pt", "previous.pt", ".last.pt.*.tmp"}
    assert struck("step", STEPS + 1) == {"metrics.jsonl", "last.pt", "previous.pt"}
    assert struck("rename", 3) == {"metrics.jsonl", "previous.pt", ".last.pt.*.tmp"}  # 0, 1: the metadata
    assert struck("save", 1) == {"metrics.jsonl", "last.pt", "previous.pt"}
    assert struck("summary", 0) == {"metrics.jsonl", "last.pt", "previous.pt"}
    assert not (folder / "summary.json").exists()
    end = start(argv)
    assert end.status == 0, end.said
    assert_same_end(folder, untouched(SGD))


def test_kills_at_random_moments_change_nothing(start: Start, untouched: Callable, tmp_path: Path) -> None:
    argv, folder = in_folder([*SGD, EVERY_STEP], tmp_path)
    moments = random.Random(0)
    ends = [start(argv, after=moments.uniform(0.1, 1.5)) for _ in range(5)]
    assert {end.status for end in ends} <= {-signal.SIGKILL, 0}
    end = start(argv)
    assert end.status == 0, end.said
    assert_same_end(folder, untouched(SGD))


def test_random_streams_and_adamws_state_go_on(start: Start, untouched: Callable, tmp_path: Path) -> None:
    argv, folder = in_folder([*ADAMW, EVERY_STEP], tmp_path)
    (revived, *_), reached = first_steps(["sparse", "dense"]), 0
    for kill in (4, revived, revived + 2):
        assert start(argv, "step", kill - reached).status == -signal.SIGKILL
        reached = kill
    end = start(argv)
    assert end.status == 0, end.said
    assert_same_end(folder, untouched(ADAMW))


@pytest.mark.parametrize(
    ("by", "step", "status"),
    [
        (signal.SIGUSR1, 7, 85),
        (signal.SIGTERM, 7, 85),
        (signal.SIGTERM, 2 * STEPS - 1, 85),  # the last step of an epoch
        (signal.SIGTERM, EPOCHS * STEPS - 1, 85),  # the very last
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_signal_stops_with_a_checkpoint(
    start: Start, untouched: Callable, tmp_path: Path, by: signal.Signals, step: int, status: int
) -> None:
    argv, folder = in_folder([*SGD, EVERY_EPOCH], tmp_path)
    end = start(argv, "step", step, by=by)
    assert end.status == status, end.said
    if status == 85:
        assert by.name in end.said and "Traceback" not in end.said
        assert torch.load(folder / "last.pt", weights_only=True)["progress"]["step"] == step + 1
        assert not (folder / "summary.json").exists()
        end = start(argv)
        assert end.status == 0 and f", step {step + 1}\n" in end.said, end.said
    assert_same_end(folder, untouched(SGD))


def test_a_signal_from_outside_stops_the_command_line(
    start: Start, untouched: Callable, tmp_path: Path
) -> None:
    argv, folder = in_folder([*SGD, EVERY_STEP], tmp_path)
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (folder / "last.pt").exists() and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 85, error
    assert "stopped by SIGTERM" in error.splitlines()[-1] and "Traceback" not in error
    end = start(argv)
    assert end.status == 0, end.said
    assert_same_end(folder, untouched(SGD))


def test_a_resumed_run_keeps_its_number_of_threads(start: Start, untouched: Callable, tmp_path: Path) -> None:
    argv, folder = in_folder(SGD, tmp_path)
    assert start([*argv, EVERY_STEP], "step", 4).status == -signal.SIGKILL
    end = start([*argv, "compute.threads=2"])
    assert end.status == 0, end.said
    assert_same_end(folder, untouched(SGD))
    assert json.loads((folder / "summary.json").read_text())["provenance"]["threads"] == 1


def test_an_epoch_starts_once_for_the_sparsifier(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv, _ = in_folder([*SGD, "epochs=4", EVERY_EPOCH], tmp_path)
    started: list[int] = []
    stops = [STEPS + 1, 2 * STEPS - 1]  # inside the second epoch, and at its end
    update_loss, on_epoch_start = EpochMetrics.update_loss, ACDC.on_epoch_start

    def stop(metrics: EpochMetrics, number: int, loss: torch.Tensor) -> None:
        update_loss(metrics, number, loss)
        if number in stops:
            os.kill(os.getpid(), signal.SIGTERM)

    def count_start(sparsifier: ACDC, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        started.append(epoch)
        on_epoch_start(sparsifier, epoch, optimizer)

    monkeypatch.setattr(EpochMetrics, "update_loss", stop)
    monkeypatch.setattr(ACDC, "on_epoch_start", count_start)
    assert [command(*argv).status for _ in range(3)] == [85, 85, 0]
    assert started == [0, 1, 2, 3]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "train.log"}


def test_a_done_run_is_not_run_again(start: Start, untouched: Callable, tmp_path: Path) -> None:
    argv, folder = in_folder(SGD, tmp_path)
    shutil.copytree(untouched(SGD), folder)
    before = contents(folder)
    end = start(argv, "step", 0)  # a single step would kill it
    assert end.status == 0 and "already finished" in end.said, end.said
    assert contents(folder) == before
    end = start([*argv, "resume=false"], "step", 0)
    assert end.status == -signal.SIGKILL and not {"summary.json", "last.pt"} & set(contents(folder))


@pytest.mark.parametrize("left", ["summary.json", "last.pt"])
def test_the_directory_of_another_configuration_is_refused(
    left: str, command: Callable, untouched: Callable, tmp_path: Path
) -> None:
    argv, folder = in_folder([*SGD, "optimizer.momentum=0.8"], tmp_path)
    shutil.copytree(untouched(SGD), folder)
    if left == "last.pt":
        (folder / "summary.json").unlink()
    before = contents(folder)
    outcome = command(*argv)
    assert outcome.status == 2
    assert len(outcome.complaints) == 1 and "resume=false" in outcome.complaints[0], outcome.err
    assert contents(folder) == before


if __name__ == "__main__":
    serve()
