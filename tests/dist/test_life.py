"""Two ranks from the command line: how they stop, die, hang, resume, and refuse what cannot run.

Run as a script, this file is a rank: train.py that sends itself a signal before a given step, or one that
runs several command lines.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TRAIN, RANK = ROOT / "train.py", Path(__file__)
EPOCHS, STEPS = 5, 3
RUN = [
    "+exp=acdc_ham_s90",
    "+demo=digits",
    "model.width=4",
    "batch_size=400",
    f"epochs={EPOCHS}",
    "optimizer.sam_rho=0.05",
]
pytestmark = pytest.mark.timeout(1800)
COMPARED = ("metrics", "sparsity", "epochs", "status")
REFUSED = {
    "batch_size=401": (2, ["batch_size=401 does not divide into 2 processes", "batch_size=400"]),
    "batch_size=2": (2, ["BatchNorm needs 2 samples"]),
    "optimizer.lr=1e12": (1, ["diverged: ", "at step"]),
    "runs_dir=/proc/nowhere": (2, ["cannot write runs to /proc/nowhere"]),
}


def main(task: str, *argv: str) -> int:
    """`SIGKILL rank step ARGS...`: train.py, interrupted; `refused FOLDER`: the command lines of REFUSED."""
    from interrupt import interrupt

    import train
    from ham.process_group import shutdown

    sys.argv[0] = "train.py"
    if task != "refused":
        interrupt(task, *map(int, argv[:2]))
        status = train.main(list(argv[2:]))
        shutdown(status)
        return status
    for change in REFUSED:
        print(f"== {change}: {train.main([*RUN, f'runs_dir={argv[0]}', change])}", flush=True)
    shutdown()
    return 0


def folder_of(runs: Path) -> Path:
    (folder,) = runs.glob("*/seed0")
    return folder


def lines(runs: Path) -> list[str]:
    """metrics.jsonl so far."""
    return (folder_of(runs) / "metrics.jsonl").read_text().splitlines()


def end(runs: Path) -> tuple[dict, dict[str, torch.Tensor], list[str]]:
    """Summary, model and metrics of a run that is done."""
    folder = folder_of(runs)
    summary = json.loads((folder / "summary.json").read_text())
    model = torch.load(folder / "last.pt", weights_only=True)["model"]
    return {key: summary[key] for key in COMPARED}, model, lines(runs)


def complaints(said: str) -> list[str]:
    return [line for line in re.split(r"[\r\n]", said) if line.startswith("train.py: ")]


def assert_lost(said: str, rank: int, epoch: int, step: int) -> None:
    """The rank has said in one line where it lost the other one."""
    (line,) = complaints(said)
    assert f"rank {rank} of 2 lost another rank in epoch {epoch}, step {step} (" in line
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def undisturbed(launch: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have run to the end."""
    runs = tmp_path_factory.mktemp("undisturbed")
    pair = launch(TRAIN, *RUN, f"runs_dir={runs}")
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    assert "sparsity     90.00 %" in pair.said()[0] and not pair.said()[1]
    provenance = json.loads((folder_of(runs) / "provenance.json").read_text())
    assert provenance["ranks"] == 2
    return runs


@pytest.fixture(scope="module")
def disturbed(launch: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose ranks were killed, then hung, then stopped; and the run as the stop left it."""
    runs, stopped = tmp_path_factory.mktemp("disturbed"), tmp_path_factory.mktemp("stopped")
    argv = [*RUN, f"runs_dir={runs}", "checkpoint.minutes=0"]
    for victim, step in ((0, 4), (1, 7)):
        pair = launch(RANK, "SIGKILL", str(victim), str(step), *argv, slurm=victim == 1)
        statuses = pair.wait()
        assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 1, "\n".join(pair.said())
        assert_lost(pair.said()[1 - victim], 1 - victim, step // STEPS + 1, step)
        assert victim == 0 or "resumed at epoch 2, step 4" in pair.said()[0]
    pair = launch(RANK, "SIGSTOP", "1", "9", *argv, "compute.timeout=20")
    assert pair.processes[0].wait() == 1, "\n".join(pair.said())
    assert_lost(pair.said()[0], 0, 4, 9)
    assert "Timed out" in pair.said()[0]
    pair.processes[1].kill()
    pair = launch(RANK, "SIGUSR1", "1", "10", *argv)
    assert pair.wait() == [85, 85], "\n".join(pair.said())
    assert "stopped by a signal to another rank in epoch 4, step 11;" in pair.said()[0]
    shutil.copytree(runs, stopped, dirs_exist_ok=True)
    pair = launch(TRAIN, *argv)
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    return runs, stopped


def test_killed_hanging_and_stopped_ranks_end_as_undisturbed_ones(
    undisturbed: Path, disturbed: tuple[Path, Path]
) -> None:
    (summary, model, metrics), (expected, weights, before) = end(disturbed[0]), end(undisturbed)
    assert summary == expected and metrics == before
    assert model.keys() == weights.keys() and all(torch.equal(model[name], weights[name]) for name in model)


def test_other_numbers_of_ranks_resume(launch: Callable, undisturbed: Path, disturbed: tuple) -> None:
    runs = disturbed[1]
    argv = [*RUN, f"runs_dir={runs}", "checkpoint.minutes=0"]
    single = launch(RANK, "SIGTERM", "0", "12", *argv, ranks=1)
    assert single.wait() == [85], single.said()[0]
    assert "resumed at epoch 4, step 11" in single.said()[0]
    pair = launch(TRAIN, *argv)
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    assert "resumed at epoch 5, step 13" in pair.said()[0]
    summary, _, metrics = end(runs)
    expected, _, before = end(undisturbed)
    assert metrics[:3] == before[:3] and len(metrics) == EPOCHS
    for line, usual in zip(map(json.loads, metrics[3:]), map(json.loads, before[3:]), strict=True):
        assert line["train_loss"] != usual["train_loss"]  # each rank normalizes its own images
        for key in ("epoch", "step", "lr", "phase", "kept"):
            assert line[key] == usual[key], key
    assert summary["sparsity"]["kept"] == expected["sparsity"]["kept"]
    history = json.loads((folder_of(runs) / "provenance.json").read_text())["resumed_from"]
    assert [process["ranks"] for process in history][-2:] == [2, 1]


@pytest.fixture(scope="module")
def refusals(launch: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[str, str]]]:
    """For each rank, command line of REFUSED -> what it said and its exit status."""
    pair = launch(RANK, "refused", str(tmp_path_factory.mktemp("refused")))
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    found = [re.findall(r"(.*?)== (\S+): (\d)\n", said, re.DOTALL) for said in pair.said()]
    return [{change: (text, status) for text, change, status in parts} for parts in found]


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_run_is_one_line_for_all_ranks(change: str, refusals: list[dict]) -> None:
    status, words = REFUSED[change]
    texts, statuses = zip(*(rank[change] for rank in refusals), strict=True)
    assert statuses == (str(status), str(status)), texts
    (line,) = [line for text in texts for line in complaints(text)]
    assert all(word in line for word in words), line
    assert not any("Traceback" in text for text in texts)


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
    assert sorted(pair.wait()) == [1, 2], "\n".join(pair.said())
    messages = [line for said in pair.said() for line in complaints(said)]
    assert sum(f"{damaged} cannot be decoded" in line for line in messages) == 1 and len(messages) == 2, messages


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
