"""What a run leaves behind, against its checkpoint and the losses of its steps."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy
import pytest
import torch
import yaml

from ham.repository import CODE, GitError
from ham.run.config import config_hash, load
from ham.run.logger import RunLogger, finite_or_none
from ham.run.main import run_experiment
from ham.run.metrics import EpochMetrics
from ham.run.provenance import provenance
from ham.run.state import Run
from ham.tasks.images import ImageClassification
from pruning.acdc import phases
from pruning.prunable import prunable_weights
from pruning.topk import kept_count

ROOT = Path(__file__).resolve().parents[3]
EPOCHS, STEPS = 5, 3
TINY = ["+exp=acdc_ham_s90", "+demo=digits", "model.width=4", "batch_size=400", f"epochs={EPOCHS}"]


@dataclass
class Kept:
    """A finished run, what it returned, its files and the losses of its steps."""

    folder: Path
    returned: dict[str, Any]
    summary: dict[str, Any]
    lines: list[dict[str, Any]]
    losses: list[torch.Tensor]


def run_tiny(folder: Path, *overrides: str) -> Kept:
    """Run TINY in this process and record the losses of its steps."""
    losses: list[torch.Tensor] = []
    update_loss = EpochMetrics.update_loss

    def record(metrics: EpochMetrics, number: int, loss: torch.Tensor) -> None:
        losses.append(loss.detach().clone())
        update_loss(metrics, number, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochMetrics, "update_loss", record)
        # a run without the mirror must not need the package
        patch.setitem(sys.modules, "wandb", None)
        returned = run_experiment(load([*TINY, f"runs_dir={folder}", *overrides]))
    (place,) = folder.glob("*/seed*")
    summary = json.loads((place / "summary.json").read_text())
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return Kept(place, returned, summary, lines, losses)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return run_tiny(tmp_path_factory.mktemp("runs"), "seed=3")


def test_one_line_an_epoch(kept: Kept) -> None:
    assert [line["epoch"] for line in kept.lines] == list(range(EPOCHS))
    assert [line["step"] for line in kept.lines] == [STEPS * (epoch + 1) for epoch in range(EPOCHS)]
    assert [line["phase"] for line in kept.lines] == phases(EPOCHS)
    total = kept.summary["sparsity"]["total"]
    for line in kept.lines:
        count = kept_count(total, 0.9) if line["phase"] == "sparse" else total
        assert line["kept"] == count and line["sparsity"] == 1 - count / total
        assert 0 <= line["top1"] <= line["top5"] <= 100 and line["test_loss"] > 0
    total_steps, peak = STEPS * EPOCHS, load(TINY).optimizer.lr
    for line in kept.lines:  # the rate of the epoch's last step
        factor = numpy.interp(line["step"] - 1, [0, int(0.2 * total_steps), total_steps], [0.2, 1, 0])
        assert line["lr"] == pytest.approx(peak * factor)


def test_what_is_no_number_is_null_in_strict_json(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run", load(TINY))
    metrics = {"train_loss": float("inf"), "test_loss": float("nan"), "top1": 10.0, "layers": {"fc": 0.5}}
    logger.log_epoch(finite_or_none({"epoch": 0, "step": 3, **metrics}))
    logger.flush()
    logger.close()
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(line, parse_constant=refuse)
    assert read["train_loss"] is read["test_loss"] is None and read["top1"] == 10.0


def test_train_loss_is_the_mean_over_the_steps(kept: Kept) -> None:
    assert len(kept.losses) == EPOCHS * STEPS
    for line in kept.lines:
        steps = kept.losses[line["epoch"] * STEPS : (line["epoch"] + 1) * STEPS]
        assert math.isclose(line["train_loss"], math.fsum(map(float, steps)) / STEPS, rel_tol=1e-14)


def test_metrics_hold_no_clock(kept: Kept, tmp_path: Path) -> None:
    again = run_tiny(tmp_path, "seed=3")
    assert (again.folder / "metrics.jsonl").read_bytes() == (kept.folder / "metrics.jsonl").read_bytes()
    other = run_tiny(tmp_path / "other", "seed=4")
    assert (other.folder / "metrics.jsonl").read_bytes() != (kept.folder / "metrics.jsonl").read_bytes()


def test_the_summary_is_complete_and_agrees_with_the_checkpoint(kept: Kept) -> None:
    summary, cfg = kept.summary, load([*TINY, "seed=3"])
    assert kept.returned == summary
    identity = {key: summary[key] for key in ("exp", "demo", "seed", "config_hash", "status", "epochs")}
    assert identity == {
        "exp": "acdc_ham_s90",
        "demo": "digits",
        "seed": 3,
        "config_hash": config_hash(cfg),
        "status": "done",
        "epochs": EPOCHS,
    }
    last = kept.lines[-1]
    assert summary["metrics"]["train_loss"] == last["train_loss"]
    assert summary["metrics"]["top1_last"] == last["top1"]

    weights = torch.load(kept.folder / "last.pt", weights_only=True)["model"]
    model = cfg.model.build(num_classes=10, image_size=8)
    zeros = {name: int((weights[name] == 0).sum()) for name in prunable_weights(model)}
    sizes = {name: weights[name].numel() for name in zeros}
    sparsity = summary["sparsity"]
    assert sparsity["target"] == 0.9
    assert sparsity["total"] == sum(sizes.values())
    assert sparsity["kept"] == sum(sizes.values()) - sum(zeros.values())
    assert math.isclose(sparsity["overall"], sum(zeros.values()) / sum(sizes.values()), rel_tol=1e-12)
    assert sparsity["layers"] == pytest.approx({name: zeros[name] / sizes[name] for name in zeros}, rel=1e-12)

    assert summary["timing"]["steps"] == EPOCHS * STEPS
    assert summary["timing"]["seconds"] > 0 and summary["timing"]["steps_per_second"] > 0
    assert summary["provenance"] == json.loads((kept.folder / "provenance.json").read_text())
    assert summary["provenance"]["config_hash"] == summary["config_hash"]


def test_the_best_epoch_is_among_those_as_sparse_as_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert phases(EPOCHS) == ["dense", "dense", "sparse", "sparse", "sparse"]
    accuracies = [99.0, 98.0, 70.0, 75.0, 60.0]

    def evaluate(task: ImageClassification, run: Run) -> dict[str, float]:
        return {"test_loss": 1.0, "top1": accuracies[run.epoch], "top5": 99.5}

    monkeypatch.setattr(ImageClassification, "evaluate", evaluate)
    metrics = run_tiny(tmp_path).summary["metrics"]
    assert (metrics["top1_last"], metrics["top1_best"]) == (60.0, 75.0)


def test_the_configuration_stands_beside_the_results(kept: Kept) -> None:
    written = yaml.safe_load((kept.folder / "config.yaml").read_text())
    assert written["epochs"] == EPOCHS and written["seed"] == 3 and written["batch_size"] == 400
    assert written["model"]["width"] == 4 and written["ham"]["alpha"] == 200
    assert written["sparsifier"]["sparsity"] == 0.9 and written["sparsifier"]["scope"] == "global"


def test_provenance_says_what_ran_and_not_where(kept: Kept) -> None:
    facts = kept.summary["provenance"]
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert facts["python"] == "{}.{}.{}".format(*sys.version_info)
    assert facts["threads"] == 1 and facts["argv"] == sys.argv[1:]
    assert facts["hardware"]["cores"] >= 1 and facts["hardware"]["cpu"]
    assert len(facts["hardware"]["gpus"]) == torch.cuda.device_count()
    host = re.compile(rf"(?<![\w.-]){re.escape(socket.gethostname())}(?![\w.-])")
    for path in kept.folder.iterdir():
        if path.suffix != ".pt":
            assert not host.search(path.read_text()), path.name


def test_provenance_has_the_commit_and_whether_it_is_all() -> None:
    def git(*argv: str) -> str:
        return subprocess.run(["git", *argv], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    if not git("rev-parse", "HEAD"):
        pytest.skip("this is not a git checkout")
    facts = provenance("hash")
    assert facts["commit"] == git("rev-parse", "HEAD")
    assert facts["dirty"] == bool(git("status", "--porcelain", "--", *CODE))


def test_wandb_mirrors_offline_under_the_run_directory(process: Callable, tmp_path: Path) -> None:
    outcome = process(*TINY, f"runs_dir={tmp_path / 'runs'}", "epochs=1", "wandb.mode=offline")
    if "ServiceStart" in outcome.err or "WandbServiceConnectionError" in outcome.err:
        pytest.skip("wandb's own service does not start here")
    assert outcome.status == 0, outcome.err
    (folder,) = (tmp_path / "runs").glob("*/seed0")
    (mirrored,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert b"train_loss" in mirrored.read_bytes()
    assert list((tmp_path / "cwd").iterdir()) == []


def test_code_without_its_history_gets_its_commit_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HAM_COMMIT", "c0ffee1")
    monkeypatch.setattr("ham.repository.git", lambda *_: "git knows better")
    assert provenance("hash")["commit"] == "git knows better"
    monkeypatch.setattr("ham.repository.git", Mock(side_effect=GitError))
    facts = provenance("hash")
    assert facts["commit"] == "c0ffee1" and facts["dirty"] is None
