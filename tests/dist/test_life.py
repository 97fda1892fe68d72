"""Two ranks from the command line: how they stop, die, hang, resume, and refuse what cannot run."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
EPOCHS = 30
RUN = [
    "+exp=acdc_ham_s90",
    "+demo=digits",
    "model.width=4",
    "batch_size=400",
    f"epochs={EPOCHS}",
    "optimizer.sam_rho=0.05",
]
TOLD = ("metrics", "sparsity", "epochs", "status")


def folder_of(runs: Path) -> Path:
    (folder,) = runs.glob("*/seed0")
    return folder


def lines(runs: Path) -> list[str]:
    """metrics.jsonl so far."""
    found = list(runs.glob("*/seed0/metrics.jsonl"))
    return found[0].read_text().splitlines() if found else []


def end(runs: Path) -> tuple[dict, dict[str, torch.Tensor], list[str]]:
    """Summary, model and metrics of a run that is done."""
    folder = folder_of(runs)
    summary = json.loads((folder / "summary.json").read_text())
    model = torch.load(folder / "last.pt", weights_only=True)["model"]
    return {key: summary[key] for key in TOLD}, model, lines(runs)


def complaints(said: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]", said) if line.startswith("train.py: ")]


@pytest.fixture(scope="module")
def undisturbed(launch: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have run to the end in peace."""
    runs = tmp_path_factory.mktemp("undisturbed")
    pair = launch(TRAIN, *RUN, f"runs_dir={runs}")
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    assert "sparsity     90.00 %" in pair.said()[0] and not pair.said()[1]
    provenance = json.loads((folder_of(runs) / "provenance.json").read_text())
    assert provenance["ranks"] == 2
    return runs


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_goes_on_to_the_same_end(
    victim: int, launch: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    argv = [*RUN, f"runs_dir={tmp_path}", "checkpoint.minutes=0"]
    pair = launch(TRAIN, *argv)
    pair.until(lambda: len(lines(tmp_path)) >= 7)
    pair.processes[victim].kill()
    since = time.monotonic()
    statuses = pair.wait(30)
    print(f"all had ended {time.monotonic() - since:.1f} s after the kill")
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 1
    (said,) = complaints(pair.said()[1 - victim])
    assert re.search(rf"rank {1 - victim} of 2 lost another rank in epoch \d+, step \d+ \(", said), said
    assert "Traceback" not in pair.said()[1 - victim]
    pair = launch(TRAIN, *argv, slurm=victim == 1)
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    assert "resumed at epoch" in pair.said()[0]
    (summary, model, told), (expected, wanted, before) = end(tmp_path), end(undisturbed)
    assert summary == expected and told == before
    assert model.keys() == wanted.keys() and all(torch.equal(model[name], wanted[name]) for name in model)


def test_a_rank_that_hangs_ends_the_others_after_the_timeout(launch: Callable, tmp_path: Path) -> None:
    pair = launch(TRAIN, *RUN, f"runs_dir={tmp_path}", "compute.timeout=4")
    pair.until(lambda: len(lines(tmp_path)) >= 2)
    os.kill(pair.processes[1].pid, signal.SIGSTOP)
    status = pair.processes[0].wait(30)
    (said,) = complaints(pair.said()[0])
    assert status == 1 and re.search(
        r"rank 0 of 2 lost another rank in epoch \d+, step \d+ \(Timed out", said
    )
    assert "Traceback" not in pair.said()[0]


def test_a_signal_to_one_rank_stops_all_and_other_numbers_of_ranks_go_on(
    launch: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    argv = [*RUN, f"runs_dir={tmp_path}"]
    pair = launch(TRAIN, *argv)
    pair.until(lambda: len(lines(tmp_path)) >= 5)
    pair.processes[1].send_signal(signal.SIGUSR1)
    assert pair.wait(60) == [85, 85], "\n".join(pair.said())
    stopped = len(lines(tmp_path))
    assert "stopped by a signal to another rank" in pair.said()[0]
    assert lines(tmp_path) == lines(undisturbed)[:stopped]
    single = launch(TRAIN, *argv, ranks=1)
    single.until(lambda: len(lines(tmp_path)) >= stopped + 3)
    single.processes[0].send_signal(signal.SIGTERM)
    assert single.wait(60) == [85], single.said()[0]
    pair = launch(TRAIN, *argv)
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    summary, _, told = end(tmp_path)
    assert [json.loads(line)["epoch"] for line in told] == list(range(EPOCHS))
    assert told[:stopped] == lines(undisturbed)[:stopped] and told != lines(undisturbed)
    assert summary["sparsity"]["kept"] == end(undisturbed)[0]["sparsity"]["kept"]
    assert summary["metrics"]["top1_last"] > json.loads(told[0])["top1"] + 20  # it went on learning
    history = json.loads((folder_of(tmp_path) / "provenance.json").read_text())["resumed_from"]
    assert [process["ranks"] for process in history] == [2, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("batch_size=401", ["batch_size=401 does not divide into 2 processes", "batch_size=400"]),
        ("batch_size=2", ["BatchNorm needs 2 samples"]),
        ("optimizer.lr=1e12", ["diverged: ", "at step"]),
        ("runs_dir=/proc/nowhere", ["cannot write runs to /proc/nowhere"]),
    ],
    ids=["batch", "BatchNorm", "divergence", "folder"],
)
def test_what_cannot_run_is_one_line_for_all_ranks(
    change: str, words: list[str], launch: Callable, tmp_path: Path
) -> None:
    pair = launch(TRAIN, *RUN, f"runs_dir={tmp_path}", change)
    status = 1 if "diverged" in words[0] else 2
    assert pair.wait(60) == [status, status], "\n".join(pair.said())
    told = [line for said in pair.said() for line in complaints(said)]
    assert len(told) == 1 and all(word in told[0] for word in words), told
    assert not any("Traceback" in said for said in pair.said())


def test_an_image_that_one_rank_cannot_read_is_named(launch: Callable, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / "tree" / split / name).mkdir(parents=True)
            for number in range(4):
                image = Image.fromarray(noise.integers(0, 256, (80, 80, 3), dtype=np.uint8))
                image.save(tmp_path / "tree" / split / name / f"{number}.jpg")
    damaged = tmp_path / "tree" / "train" / "a" / "2.jpg"
    damaged.write_bytes(damaged.read_bytes()[:900])
    argv = ["+exp=dense", "model=resnet18", "model.width=8", "data=imagenet_folder", "data.num_classes=2"]
    argv += [f"data.root={tmp_path / 'tree'}", "data.image_size=64", "data.workers=0", "compute.amp=false"]
    pair = launch(
        TRAIN, *argv, "batch_size=8", "epochs=2", f"runs_dir={tmp_path / 'runs'}", "compute.timeout=20"
    )
    assert sorted(pair.wait(60)) == [1, 2], "\n".join(pair.said())
    told = [line for said in pair.said() for line in complaints(said)]
    assert sum(f"{damaged} cannot be decoded" in line for line in told) == 1 and len(told) == 2, told
