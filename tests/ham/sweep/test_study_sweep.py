"""scripts/sweep.py --study: tuning first, then what it determines; divergences are results, not failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from study_files import PLAN
from sweep_files import summary

from ham.files import ROOT
from ham.report.records import diverged_path, path_of
from ham.report.spec import RunSpec
from ham.report.study import rate_of
from ham.sweep import local, status
from ham.sweep.status import Status, Sweeps

Sweep = Callable[..., tuple[int, str, str]]
BEST = {"cifar100": 0.05, "cifar100_ham": 0.0125, "cifar100_matched_decay": 0.2}  # 0.1 for the others
STAND_IN = f"""
import json, math, sys
from pathlib import Path

sys.path[:0] = [{str(ROOT / "tests")!r}]
from sweep_files import metrics, summary
from ham.report.spec import RunSpec

BEST = {BEST!r}


def main(argv):
    values = dict(text.lstrip("+").split("=", 1) for text in argv)
    altered = tuple(text for text in argv if text.startswith(("optimizer.", "ham.", "data.")))
    run = RunSpec(values["exp"], int(values["seed"]), altered, values["demo"])
    runs = Path(values["runs_dir"])
    with open(runs / "calls", "a") as file:
        file.write(json.dumps(argv) + "\\n")
    folder = run.folder(runs)
    folder.mkdir(parents=True)
    rate = float(values["optimizer.lr"])
    if run.exp == "cifar100_ham" and rate == 0.2:
        content = summary(run, status="diverged", reason="the loss is not finite at step 7", epochs=0)
        (folder / "diverged.json").write_text(json.dumps(content))
        print("train.py: diverged: the loss is not finite at step 7", file=sys.stderr)
        return 1
    accuracy = 50 - abs(math.log(rate / BEST.get(run.exp, 0.1)))
    done = summary(run, metrics={{"top1_last": accuracy, "top1_best": accuracy}})
    lines = metrics(run).splitlines()[:-1] + [json.dumps({{"epoch": run.info.epochs - 1, "top1": accuracy}})]
    (folder / "metrics.jsonl").write_text("\\n".join(lines) + "\\n")
    (folder / "provenance.json").write_text("{{}}")
    (folder / "summary.json").write_text(json.dumps(done))
    return 0
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """The command lines of the runs so far; train.py is a stand-in."""
    (tmp_path / "train.py").write_text(STAND_IN)
    monkeypatch.setattr(local, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(local, "is_short", lambda run: True)  # runs share a process

    def read() -> list[list[str]]:
        return [json.loads(line) for line in (tmp_path / "runs" / "calls").read_text().splitlines()]

    return read


def test_one_command_tunes_and_then_runs_the_study(
    sweep: Sweep, calls: Callable[[], list[list[str]]], sweeps: Sweeps
) -> None:
    status, out, err = sweep("--study cifar16 --local")
    assert status == 1, "a tuning run diverged"
    runs = [dict(text.lstrip("+").split("=", 1) for text in argv) for argv in calls()]
    seeds = [int(run["seed"]) for run in runs]
    assert seeds == [1000] * 20 + [s for s in range(10) for _ in range(5)] + [
        s for s in range(5) for _ in range(11)
    ]
    assert all(("data.validation_per_class" in run) == (run["seed"] == "1000") for run in runs)
    primary = runs[20:25]
    assert [run["exp"] for run in primary] == [PLAN.arms[arm].exp for arm in PLAN.parts["primary"].arms]
    # the best of 0.0125, 0.05, 0.2 and a fourth rate; 0.2 diverges for HAM
    assert [run["optimizer.lr"] for run in primary] == ["0.05", "0.0125", "0.2", "0.1", "0.1"]
    assert primary[1]["ham.beta"] == "0.7959"
    assert {run["optimizer.lr"] for run in runs[70:]} == {"0.05", "0.0125"}
    assert "diverged: the loss is not finite at step 7" in err
    before = len(calls())
    status, out, _ = sweep("--study cifar16 --local")
    assert (status, len(calls())) == (0, before), "a run that diverged is not tried again"
    assert "124 done, 1 diverged" in out
    _, out, _ = sweep("--study cifar16 --status")
    assert "seed 1000  diverged  the loss is not finite at step 7: delete" in out
    run = PLAN.trial("HAM", 0.2)
    assert sweeps.state(run).kind is Status.DIVERGED
    assert rate_of(run) == 0.2


def test_before_tuning_ends_only_tuning_is_listed(sweep: Sweep) -> None:
    _, out, _ = sweep("--study cifar16")
    assert "tuning                15 cells x 1 seed: 15 not launched" in out
    altered = (
        "optimizer.lr=0.0125 optimizer.weight_decay=0.004974 ham.beta=0.7959 data.validation_per_class=50"
    )
    assert f"cifar100_ham {altered}" in out


def test_a_part_of_a_study_keeps_the_tuning_that_it_needs(sweep: Sweep) -> None:
    for selection in ("--seeds 0", "--only acdc", "--only cifar100_ham --seeds 3"):
        code, out, _ = sweep(f"--study cifar16 {selection}")
        assert code == 0 and "tuning                15 cells x 1 seed: 15 not launched" in out


def test_a_study_is_selected_alone(sweep: Sweep) -> None:
    for more in ("--table 7", "--demo digits", "--exp dense", "--all"):
        code, _, err = sweep(f"--study cifar16 {more}")
        assert code == 2 and len(err.splitlines()) == 1 and "--study selects its runs and their scale" in err
    code, _, err = sweep("--study imagenet")
    assert code == 2 and "invalid choice: 'imagenet'" in err


def test_the_time_limit_holds_for_all_stages_together(
    sweep: Sweep, calls: Callable[[], list[list[str]]], tmp_path: Path
) -> None:
    text = STAND_IN.replace("    rate = float", "    import time; time.sleep(0.25)\n    rate = float")
    (tmp_path / "train.py").write_text(text)
    code, _, err = sweep("--study cifar16 --local --seconds 6")
    assert code == 85 and "start the same command again" in err
    assert len(calls()) < 30


def test_a_committed_record_of_a_divergence_counts(sweeps: Sweeps, tmp_path: Path) -> None:
    run = PLAN.trial("HAM", 0.2)
    path = diverged_path(path_of(run, status.RESULTS))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(summary(run, status="diverged", reason="nan", epochs=1)))
    assert sweeps.state(run).kind is Status.DIVERGED
    other = RunSpec("cifar100", 0, demo="cifar16")
    assert sweeps.state(other).kind is Status.NOT_LAUNCHED
    dirty = {"commit": "c0ffee0", "dirty": True, "argv": []}
    content = summary(run, status="diverged", reason="nan", epochs=1, provenance=dirty)
    path.write_text(json.dumps(content))
    assert sweeps.state(run).kind is Status.NOT_LAUNCHED, "of uncommitted code"
    path.write_text(json.dumps(summary(run, status="diverged", reason="nan", config_hash="0" * 64)))
    assert sweeps.state(run).kind is Status.NOT_LAUNCHED, "it is of another configuration"
