"""train.py from outside: wrong input is one line and exit status 2, help is quick, -m runs them all."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

TRAIN = Path(__file__).resolve().parents[3] / "train.py"
LEAF = "+exp=acdc_ham_s90"
SMALL = ["+demo=digits", "batch_size=479", "epochs=1"]
DEMO, DEIT = [LEAF, *SMALL], ["+exp=deit_ham", *SMALL]

# command line, words of the one line on stderr
WRONG = [
    (["+exp=acdc_ham"], ["unknown experiment 'acdc_ham'", "acdc_ham_s90"]),
    (["+exp="], ["+exp= names nothing", "--list"]),
    (["exp=acdc_ham_s90"], ["+exp=acdc_ham_s90", "plus"]),
    ([], ["+exp="]),
    (["+demo=digits"], ["+exp="]),
    ([LEAF, "+demo=mnist"], ["unknown demo 'mnist'", "digits"]),
    ([LEAF, "+exp=dense"], [LEAF, "+exp=dense", "-m +exp=acdc_ham_s90,dense"]),
    ([*DEMO, "banana"], ["banana", "key=value"]),
    ([*DEMO, "lrr=1"], ["unknown key lrr", "optimizer.lr"]),
    ([*DEMO, "alpha=banana"], ["unknown key alpha", "ham.alpha"]),
    ([*DEMO, "optimizer.lrr=1"], ["unknown key optimizer.lrr", "optimizer.lr"]),
    ([*DEMO, "model=resnet5"], ["unknown model 'resnet5'", "resnet50"]),
    ([*DEMO, "+foo=1"], ["foo"]),
    ([*DEMO, "~ham"], ["ham=none"]),
    ([*DEMO, "seed=0,1"], ["seed=0,1", "-m"]),
    ([*DEMO, "seed=-1"], ["seed", "-1"]),
    ([*DEMO, "ham.alpha=banana"], ["ham.alpha", "banana"]),
    ([*DEMO, "ham.alpha=nan"], ["ham.alpha", "finite"]),
    ([*DEMO, "ham.beta=-1"], ["ham.beta", "negative", "-1"]),
    ([*DEMO, "sparsifier.sparsity=90"], ["sparsity", "[0, 1)", "90", "did you mean 0.9"]),
    ([*DEMO, "sparsifier.sparsity=-0.1"], ["sparsity", "[0, 1)", "-0.1"]),
    ([*DEMO, "sparsifier=dense"], ["sparsifier=dense", "sparsity"]),
    ([*DEMO, "sparsifier.exclude=[nope*]"], ["exclude", "nope*", "matches no"]),
    ([*DEMO, "optimizer.lr=-1"], ["optimizer.lr", "positive", "-1"]),
    ([*DEMO, "optimizer.momentum=1.5"], ["optimizer.momentum", "[0, 1)", "1.5"]),
    ([*DEMO, "optimizer.schedule.warmup=2"], ["optimizer.schedule", "[0, 1]", "2"]),
    ([*DEMO, "optimizer.schedule.kind=linearly"], ["schedule.kind", "triangular", "cosine"]),
    ([*DEMO, "optimizer.accumulate=3"], ["optimizer.accumulate=3", "batch_size"]),
    ([*DEIT, "optimizer.betas=[0.9]"], ["betas"]),
    ([*DEIT, "optimizer.betas=[0.9,1]"], ["betas", "[0, 1)"]),
    ([*DEMO, "epochs=0"], ["epochs", "0"]),
    ([*DEMO, "batch_size=0"], ["batch_size", "0"]),
    ([*DEMO, "batch_size=2000"], ["batch_size=2000", "1437"]),
    ([*DEMO, "compute.device=tpu"], ["compute.device", "tpu", "cpu"]),
    ([*DEMO, "compute.threads=-1"], ["compute.threads", "-1"]),
    ([*DEMO, "checkpoint.minutes=-1"], ["checkpoint.minutes", "-1"]),
    ([*DEMO, "runs_dir=FILE/runs"], ["FILE/runs", "runs_dir"]),
    ([LEAF, "data=digits"], ["8 px", "model.stem=cifar", "+demo=digits"]),
    ([*DEMO, "optimizer.accumulate=32", "batch_size=32"], ["BatchNorm", "2 samples", "batch_size"]),
    ([*DEMO, "compute.threads=100000"], ["compute.threads=100000", "cores"]),
    ([*DEMO, "runs_dir="], ["runs_dir"]),
    (["--no-such-flag"], ["--no-such-flag", "--help"]),
    ([*DEMO, "data.image_size=16"], ["digits", "8 px", "data.image_size"]),
    ([*DEIT, "model.patch_size=3"], ["patch", "3", "model.patch_size"]),
    ([LEAF, "data.root=/nonexistent"], ["/nonexistent/train", "data.root", "+demo=digits"]),
]


@pytest.mark.parametrize(("argv", "words"), WRONG, ids=[argv[-1] if argv else "nothing" for argv, _ in WRONG])
def test_wrong_input_is_one_line_and_status_2(
    argv: list[str], words: list[str], command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a file"
    file.write_text("no folder")
    outcome = command(*(text.replace("FILE", str(file)) for text in argv))
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert [word for word in words if word.replace("FILE", str(file)) not in outcome.err] == [], outcome.err


def test_an_unknown_experiment_brings_the_three_nearest(command: Callable) -> None:
    message = command("+exp=acdc_hamm_s90").err
    names = message.partition("nearest: ")[2].strip().split(", ")
    assert len(names) == 3 and names[0] == "acdc_ham_s90"
    assert {f"{name}.yaml" for name in names} <= {p.name for p in (TRAIN.parent / "configs/exp").iterdir()}


def test_a_gpu_that_is_not_there_is_refused(command: Callable, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    outcome = command(*DEMO, f"runs_dir={tmp_path}", "compute.device=cuda")
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1
    assert "compute.device=cuda" in outcome.err


def test_a_leaf_without_imagenet_names_the_cure(
    command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAM_DATA", str(tmp_path / "data"))
    outcome = command(LEAF, f"runs_dir={tmp_path / 'runs'}")
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1
    for word in (f"{tmp_path}/data/imagenet/train", "data.root", "+demo=digits"):
        assert word in outcome.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "argv", [["+exp=nope"], [*DEMO, "sparsifier.sparsity=90"], [LEAF, "data.root=/nonexistent"]]
)
def test_no_traceback_from_a_real_process(argv: list[str], process: Callable, tmp_path: Path) -> None:
    outcome = process(*argv)
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.out == ""
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_second_process_in_a_run_directory_is_refused(process: Callable, tmp_path: Path) -> None:
    argv = [LEAF, "+demo=digits", f"runs_dir={tmp_path}"]
    folder = tmp_path / "acdc_ham_s90-digits" / "seed0"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"of the first process")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = process(*argv, "resume=false")
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1 and str(folder) in outcome.err, outcome.err
    assert {path.name for path in folder.iterdir()} == {"lock", "last.pt"}


def test_list_has_every_leaf_with_its_cell(command: Callable) -> None:
    outcome = command("--list")
    assert outcome.status == 0 and outcome.err == ""
    listed = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    place = TRAIN.parent / "configs/exp"
    leaves = {
        str(path.relative_to(place).with_suffix("")): path.read_text() for path in place.rglob("*.yaml")
    }
    assert listed.keys() == leaves.keys()
    assert all(f'cell: "{cell}"' in leaves[name] for name, cell in listed.items())


def test_help_is_quick() -> None:
    def seconds(*argv: str) -> float:
        start = time.monotonic()
        done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=True)
        assert argv[0] == "-c" or "usage: python train.py +exp=NAME" in done.stdout
        return time.monotonic() - start

    helped = min(seconds(str(TRAIN), "--help") for _ in range(3))
    imported = min(seconds("-c", "import torch, hydra") for _ in range(3))
    assert helped <= imported + 1


def test_multirun_runs_every_seed_and_leaves_no_folders_of_hydra(process: Callable, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    outcome = process("-m", *DEMO, "model.width=4", "seed=0,1", f"runs_dir={runs}")
    assert outcome.status == 0, outcome.err
    done = {path.parent.name for path in runs.glob("acdc_ham_s90-digits-*/*/summary.json")}
    assert done == {"seed0", "seed1"}
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_wrong_job_of_a_multirun_shows_in_the_status_and_the_others_run(
    process: Callable, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    outcome = process("-m", *DEMO, "model.width=4", "ham.beta=-1,0", f"runs_dir={runs}")
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    assert len(outcome.complaints) == 1 and "ham.beta" in outcome.complaints[0]
    assert len(list(runs.glob("acdc_ham_s90-digits-*/seed0/summary.json"))) == 1


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["seed=x,y"], "seed: Value 'x' of type 'str' could not be converted to Integer"),
        (["seed=0,x"], "seed: Value 'x' of type 'str' could not be converted to Integer"),
        (["seed=0,1", "epochs=many"], "epochs: Value 'many' of type 'str' could not be converted to Integer"),
        (["ham.alfa=1,2"], "unknown key ham.alfa; nearest: ham.alpha"),
        (["seed=0,1", "ham.alfa=1"], "unknown key ham.alfa; nearest: ham.alpha"),
        (["+demo=tinny", "seed=0,1"], "unknown demo 'tinny'; nearest: tiny, digits, cifar16"),
        (["+exp=dense_ham,dens"], "unknown experiment 'dens'; nearest: dense, dense_sam, dense_ham"),
        (["+exp=glob(dense*)", "model=resnet19"], "unknown model 'resnet19'; nearest: "),
        (
            ["seed=interval(0,3)"],
            "'seed=interval(0,3)' is not a list of values: write key=value1,value2, range()",
        ),
        (
            ["seed=range(0,"],
            "'seed=range(0,' is not an override: write key=value or key=value1,value2, or see",
        ),
    ],
)
def test_a_job_of_a_multirun_that_cannot_be_composed_is_one_line_before_any_starts(
    command: Callable, tmp_path: Path, argv: list[str], line: str
) -> None:
    needed = [] if any("exp=" in word for word in argv) else ["+exp=dense"]
    outcome = command("-m", *needed, *argv, f"runs_dir={tmp_path / 'runs'}")
    assert outcome.status == 2
    (complaint,) = outcome.err.splitlines()  # it begins with the program's name, which is pytest's here
    assert complaint.partition(": ")[2].startswith(line)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("status", [85, 130])
def test_a_stopped_job_of_a_multirun_is_its_status_in_main(
    status: int, train: Any, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ranks, train.py then ends the process group."""
    jobs: list[list[str]] = []

    def stop(overrides: list[str]) -> int:
        jobs.append(overrides)
        return status

    monkeypatch.setattr(train, "run_command", stop)
    assert command("-m", *DEMO, "seed=0,1").status == status
    assert len(jobs) == 1


def test_a_signal_stops_a_multirun_whole(tmp_path: Path) -> None:
    argv = [*DEMO, "model.width=4", "epochs=40", "checkpoint.minutes=0", f"runs_dir={tmp_path / 'runs'}"]
    command = [sys.executable, str(TRAIN), "-m", *argv, "seed=0,1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        while not list(tmp_path.glob("runs/*/seed0/last.pt")) and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 85 and "Traceback" not in error, error
    assert [path.name for path in tmp_path.glob("runs/*/seed*")] == ["seed0"]
