"""Ranks that were started differently, cannot see the checkpoint or hold different states; three ranks resume.

Run as a script, this file is a rank of train.py whose weights are changed after a number of steps.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train.py"
RUN = [
    "+exp=acdc_ham_s90",
    "+demo=digits",
    "model.width=4",
    "batch_size=402",
    "epochs=6",
    "compute.timeout=20",
]


def drifting_rank(step: int, *argv: str) -> int:
    """train.py, which adds 1e-3 to a weight of rank 1 after `step` steps."""
    import train
    from ham.distributed import world
    from ham.run import loop

    after = loop.train_step

    def train_step(run: loop.Run, batch: object) -> torch.Tensor:
        loss = after(run, batch)
        if run.step + 1 == step and world().rank == 1:
            with torch.no_grad():
                run.params[0].view(-1)[0] += 1e-3
        return loss

    loop.train_step = train_step
    return train.main(list(argv))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from ham.process_group import shutdown

    shutdown(drifting_rank(int(sys.argv[1]), *sys.argv[2:]))


def complaints(said: list[str]) -> list[str]:
    return [line for text in said for line in re.split(r"[\r\n]", text) if re.match(r"\w+\.py: ", line)]


def end(runs: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Model and metrics of the run in a folder."""
    (folder,) = runs.glob("*/seed0")
    return torch.load(folder / "last.pt", weights_only=True)["model"], (folder / "metrics.jsonl").read_text()


def same(one: Path, other: Path) -> bool:
    (model, metrics), (expected, lines) = end(one), end(other)
    return metrics == lines and all(torch.equal(model[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("seed=1", "rank 1 differs from rank 0: seed is 1 there and 0 on rank 0"),
        ("optimizer.lr=0.5", "optimizer.lr is 0.5 there and 0.03 on rank 0"),
        ("sparsifier.sparsity=0.8", "sparsifier.sparsity is 0.8 there and 0.9 on rank 0"),
        ("resume=false", "resume is false there and true on rank 0"),
        ("epochs=7", "epochs is 7 there and 6 on rank 0"),
        ("optimizer.lrr=1", "rank 1 of 2: unknown key optimizer.lrr"),
    ],
)
def test_ranks_that_were_started_differently_end_in_one_line(
    own: str, words: str, launch: Callable, tmp_path: Path
) -> None:
    pair = launch(TRAIN, *RUN, f"runs_dir={tmp_path}", own={1: [own]})
    assert pair.wait() == [2, 2], "\n".join(pair.said())
    (line,) = complaints(pair.said())
    assert words in line, line
    assert not any("Traceback" in said for said in pair.said()) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["swapped classes", "another image", "a test image less"])
def test_ranks_that_read_other_data_end_in_one_line(change: str, launch: Callable, tmp_path: Path) -> None:
    for rank, label in itertools.product(range(2), "ab"):
        for split, number in itertools.product(("train", "val"), range(4)):
            path = tmp_path / f"{rank}/{split}/{label}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(path)
    other = tmp_path / "1"
    if change == "swapped classes":
        for split in ("train", "val"):
            (other / split / "a").rename(other / split / "c")
    elif change == "another image":
        (other / "train/a/1.png").rename(other / "train/a/7.png")
    else:
        (other / "val/b/3.png").unlink()
    sizes = ("data.num_classes=2", "data.image_size=16", "data.workers=0", "batch_size=4", "epochs=1")
    argv = ("+exp=cifar100_ham", "+demo=tiny", "data=imagenet_folder", *sizes, f"runs_dir={tmp_path}/runs")
    roots = {rank: [f"data.root={tmp_path}/{rank}"] for rank in range(2)}
    pair = launch(TRAIN, *argv, own=roots)
    statuses = pair.wait()
    assert statuses[0] == statuses[1] != 0, "\n".join(pair.said())
    (line,) = complaints(pair.said())
    assert "rank 1 differs from rank 0: data is " in line and "give all ranks the same data set" in line
    assert not any((tmp_path / "runs").rglob("*.pt"))


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        ({"WORLD_SIZE": "3"}, 1, "rank 2 of 3 did not arrive at 127.0.0.1"),
        ({"MASTER_PORT": "no"}, 2, "MASTER_PORT=no is not a port"),
        ({"RANK": "4"}, 2, "RANK=4 WORLD_SIZE=2"),
        ({"RANK": "one"}, 2, "RANK=one WORLD_SIZE=2"),
        ({"RANK": "-1"}, 2, "RANK=-1 WORLD_SIZE=2"),
    ],
    ids=lambda value: str(value),
)
def test_variables_that_name_no_rank_end_in_one_line(
    environment: dict[str, str], status: int, words: str, launch: Callable, tmp_path: Path
) -> None:
    argv = [*RUN, f"runs_dir={tmp_path}", "compute.timeout=6"]
    pair = launch(TRAIN, *argv, environment=environment)
    assert pair.wait() == [status, status], "\n".join(pair.said())
    lines = complaints(pair.said())
    assert lines and all(words in line for line in lines), lines
    assert not any("Traceback" in said for said in pair.said())


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [("epochs=2", 0, "sparsity     90.00 %"), ("optimizer.lrr=1", 1, "train.py: unknown key optimizer.lrr")],
)
def test_torchrun_connects_its_ranks(more: str, status: int, words: str, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    argv = [str(TRAIN), "+exp=acdc_ham_s90", "+demo=tiny", f"runs_dir={tmp_path}", more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *argv], capture_output=True, text=True, env=environment)
    said = done.stdout + done.stderr
    assert done.returncode == status and said.count(words) == 1, said


def test_torchrun_resumes_ranks_that_it_starts_again(tmp_path: Path) -> None:
    """Although their command line says resume=false, which is meant for an earlier run."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    argv = [str(TRAIN), *RUN, f"runs_dir={tmp_path}", "epochs=12", "optimizer.lr=0.003", "resume=false"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen([*torchrun, "--max-restarts=1", *argv], env=environment, **pipes) as running:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("*/seed0/last.pt")):
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.02)
        ranks = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        said = running.communicate()[0]
    assert running.returncode == 0 and said.count("resumed at epoch") == 1, said


def test_a_port_that_is_held_ends_all_in_one_line_within_the_timeout(
    launch: Callable, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        argv = [*RUN, f"runs_dir={tmp_path}", "compute.timeout=4"]
        pair = launch(TRAIN, *argv, environment={"MASTER_PORT": port})
        assert pair.wait() == [1, 1], "\n".join(pair.said())
    first, second = complaints(pair.said())
    assert f"rank 0 cannot listen on port {port}" in first and "set another MASTER_PORT" in first
    assert "rank 1 of 2 did not find rank 0" in second
    assert not any("Traceback" in said for said in pair.said())


@pytest.fixture(scope="module")
def undisturbed(launch: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three ranks have run to the end."""
    runs = tmp_path_factory.mktemp("undisturbed")
    three = launch(TRAIN, *RUN, f"runs_dir={runs}", ranks=3)
    assert three.wait() == [0, 0, 0], "\n".join(three.said())
    (folder,) = runs.glob("*/seed0")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ranks"] == {"world_size": 3, "agreed": True}
    return runs


@pytest.mark.parametrize("victim", [0, 2])
def test_three_ranks_resume_bit_equal(
    victim: int, launch: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    argv = [*RUN, f"runs_dir={tmp_path}", "checkpoint.minutes=0"]
    three = launch(TRAIN, *argv, ranks=3)
    three.until(
        lambda: any(len(path.read_text().splitlines()) > 1 for path in tmp_path.glob("*/*/metrics.jsonl"))
    )
    three.processes[victim].kill()
    assert sorted(three.wait()) == [-signal.SIGKILL, 1, 1], "\n".join(three.said())
    three = launch(TRAIN, *argv, ranks=3)
    assert three.wait() == [0, 0, 0], "\n".join(three.said())
    assert "resumed at epoch" in three.said()[0] and same(tmp_path, undisturbed)


def test_ranks_that_do_not_see_the_checkpoint_get_that_of_rank_0(
    launch: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    """Each rank has a runs_dir of its own, as with a folder that only its node has."""
    own = {rank: [f"runs_dir={tmp_path}/{rank}"] for rank in range(3)}
    three = launch(TRAIN, *RUN, "checkpoint.minutes=0", ranks=3, own=own)
    three.until(lambda: len(list(tmp_path.glob("0/*/*/last.pt"))) > 0)
    three.processes[1].send_signal(signal.SIGTERM)
    assert three.wait() == [85, 85, 85], "\n".join(three.said())
    three = launch(TRAIN, *RUN, ranks=3, own=own)
    assert three.wait() == [0, 0, 0], "\n".join(three.said())
    assert "resumed at epoch" in three.said()[0] and same(tmp_path / "0", undisturbed)
    assert not (tmp_path / "1").exists() and not (tmp_path / "2").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("metrics.jsonl", "is empty or missing"), ("provenance.json", "is damaged")],
)
def test_a_file_that_rank_0_alone_reads_ends_all_in_one_line(
    name: str, words: str, launch: Callable, undisturbed: Path, tmp_path: Path
) -> None:
    runs = Path(shutil.copytree(undisturbed, tmp_path / "runs"))
    (folder,) = runs.glob("*/seed0")
    (folder / "summary.json").unlink()
    (folder / name).write_text("")
    three = launch(TRAIN, *RUN, f"runs_dir={runs}", ranks=3)
    assert three.wait() == [1, 1, 1], "\n".join(three.said())
    (line,) = complaints(three.said())
    assert name in line and words in line and "resume=false" in line, line


def test_masks_that_rank_0_alone_sees_reach_all_ranks(launch: Callable, tmp_path: Path) -> None:
    """Each rank has a runs_dir of its own, and the run whose masks are taken is in that of rank 0."""
    own = {rank: [f"runs_dir={tmp_path}/{rank}"] for rank in range(2)}
    source = launch(TRAIN, "+exp=acdc_s90", "+demo=tiny", f"runs_dir={tmp_path}/0", ranks=1)
    assert source.wait() == [0], source.said()[0]
    pair = launch(TRAIN, "+exp=mask_acdc_s90", "+demo=tiny", "compute.timeout=60", own=own)
    assert pair.wait() == [0, 0], "\n".join(pair.said())
    assert "sparsity     90.00 %" in pair.said()[0] and not (tmp_path / "1").exists()


def test_ranks_whose_weights_differ_write_no_checkpoint_and_no_summary(
    launch: Callable, tmp_path: Path
) -> None:
    argv = [*RUN, f"runs_dir={tmp_path}", "checkpoint.minutes=0"]
    pair = launch(Path(__file__), "5", *argv)
    assert pair.wait() == [1, 1], "\n".join(pair.said())
    (line,) = complaints(pair.said())
    assert re.search(r"rank 1 differs from rank 0: model\.\S+ is \w{8} there and \w{8} on rank 0", line), line
    assert "step 5" in line and "start the same command again to resume" in line
    (folder,) = tmp_path.glob("*/seed0")
    assert torch.load(folder / "last.pt", weights_only=True)["progress"]["step"] == 4
    assert not (folder / "summary.json").exists()
    pair = launch(TRAIN, *argv)  # the cure
    assert pair.wait() == [0, 0], "\n".join(pair.said())


def test_a_rank_that_stops_before_it_arrives_ends_the_others_in_time(
    launch: Callable, tmp_path: Path
) -> None:
    argv = [*RUN, f"runs_dir={tmp_path}", "compute.timeout=3"]
    pair = launch(TRAIN, *argv)
    pair.processes[1].send_signal(signal.SIGSTOP)
    since = time.monotonic()
    assert pair.processes[0].wait() == 1
    assert time.monotonic() - since < 20
    (line,) = complaints(pair.said()[:1])
    assert "rank 1 of 2 did not arrive" in line or "lost another rank" in line
