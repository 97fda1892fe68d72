"""Epochs beside those of others: every loop trains the same, and ratios are those of the measured seconds."""

from __future__ import annotations

import json
from pathlib import Path

import loops
import peers
import pytest
import torch

from ham.data import Loaders


def test_a_quick_run_has_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    loops.main(["--quick", "--json", "loops.json"])
    results = json.loads(Path("loops.json").read_text())
    assert [row["model"] for row in results["epochs"]] == ["resnet18", "deit_tiny"]
    assert results["pipelines"] == [] and str(tmp_path) not in Path("loops.json").read_text()
    for row in results["epochs"]:
        seconds = row["seconds"]
        assert {*seconds} == {"ours", "timm", "bare"} and min(seconds.values()) > 0
        assert row["over"] == {name: seconds[name] / seconds["ours"] for name in ("timm", "bare")}
        assert 0 < row["after_steps"] < seconds["ours"]
    out = capsys.readouterr().out
    assert "| resnet18 |" in out and "| deit_tiny |" in out


def test_all_loops_take_the_same_steps(tmp_path: Path) -> None:
    """With one rate for all steps, the weights after an epoch are equal."""
    generator = torch.Generator().manual_seed(0)
    loaders = Loaders(*(loops.random_batches(count, 4, generator) for count in (2, 1)))
    weights = []
    for name, loop in (("a", loops.our_epoch), ("b", peers.timm_epoch), ("c", peers.bare_epoch)):
        run = loops.make_run("resnet18", loaders, 4, tmp_path / name, tiny=True)
        rate = run.optimizer.param_groups[0]["lr"]
        run.optimizer.register_step_pre_hook(lambda optimizer, *_, rate=rate: _set_rate(optimizer, rate))
        loop(run, tmp_path)
        run.logger.close()
        weights.append(torch.cat([p.detach().flatten() for p in run.params]))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    torch.testing.assert_close(weights[2], weights[0], rtol=0, atol=0)


def test_an_epoch_with_another_number_of_images_is_an_error() -> None:
    batches = loops.random_batches(2, 4, torch.Generator()).contents
    loops.read(batches, 8)
    with pytest.raises(RuntimeError, match="an epoch has 8 images, not 7"):
        loops.read(batches, 7)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
