"""Epochs beside those of others: every loop trains the same, and ratios are those of the measured seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import loops
import peers
import pytest
import timm
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ham.data import Batch, DataError, ImageNetFFCV, ImageNetFolder, Loaders
from ham.data.beton import import_ffcv


def test_a_quick_run_has_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    loops.main(["--quick", "--json", "loops.json"])
    results = json.loads(Path("loops.json").read_text())
    assert [row["model"] for row in results["epochs"]] == ["resnet18", "deit_tiny"]
    assert results["versions"]["timm"] == timm.__version__
    assert results["pipelines"] == [] and str(tmp_path) not in Path("loops.json").read_text()
    for row in results["epochs"]:
        seconds = row["seconds"]
        assert {*seconds} == {"ours", "timm", "bare"} and min(seconds.values()) > 0
        assert row["over"] == {name: seconds[name] / seconds["ours"] for name in ("timm", "bare")}
        assert row["over_spread"] == {name: [row["over"][name]] * 2 for name in ("timm", "bare")}  # one round
        assert row["steps_over_spread"] == {name: [over] * 2 for name, over in row["steps_over"].items()}
        assert 0 < row["after_steps"] < seconds["ours"]
    out = capsys.readouterr().out
    assert "| resnet18 |" in out and "| deit_tiny |" in out


@pytest.mark.parametrize("model", ["resnet18", "deit_tiny"])
def test_all_loops_take_the_same_steps(model: str, tmp_path: Path) -> None:
    """With one rate for all steps, the weights after an epoch are equal.

    timm's AdamW is not fused and rounds otherwise. The biases of keys have a zero gradient, of which Adam
    normalizes the rounding: they are left out.
    """
    generator = torch.Generator().manual_seed(0)
    loaders = Loaders(*(loops.random_batches(count, 4, generator) for count in (2, 1)))
    weights = []
    for name, loop in (("a", loops.our_epoch), ("b", peers.timm_epoch), ("c", peers.bare_epoch)):
        run = loops.make_run(model, loaders, 4, tmp_path / name, tiny=True)
        rate = run.optimizer.param_groups[0]["lr"]
        hook = register_optimizer_step_pre_hook(lambda optimizer, *_, rate=rate: _set_rate(optimizer, rate))
        loop(run, tmp_path)
        hook.remove()
        run.logger.close()
        weights.append(run.model.state_dict())
    rounding = 0.0
    if model == "deit_tiny":
        rounding = 1e-5  # a step moves a weight by 2.5e-3
        for state in weights:
            state["blocks.0.attn.qkv.bias"] = state["blocks.0.attn.qkv.bias"].reshape(3, -1)[[0, 2]]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=rounding)
    torch.testing.assert_close(weights[2], weights[0], rtol=0, atol=0)


COLORS = {"apple": (250, 10, 60), "sky": (20, 120, 255)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of one color each, six images to train."""
    for split in ("train", "val"):
        for name, color in COLORS.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(6):
                image = Image.new("RGB", (240, 250 + number), color)
                image.save(tmp_path / split / name / f"{number}.jpg", quality=95)
    return tmp_path


def assert_reads(batches: Iterable[Batch]) -> None:
    """Three full batches of normalized images, each class's in its color."""
    sizes = []
    for images, labels in batches:
        sizes.append(len(labels))
        assert images.dtype == torch.float32 and images.shape[1:] == (3, peers.SIZE, peers.SIZE)
        for image, label in zip(images, labels.tolist(), strict=True):
            color = torch.tensor(list(COLORS.values())[label]) / 255
            expected = (color - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(IMAGENET_DEFAULT_STD)
            torch.testing.assert_close(
                image, expected[:, None, None].expand_as(image), atol=0.04, rtol=0
            )  # JPEG twice
    assert sizes == [4, 4, 4]


def test_timms_loader_yields_what_ours_does(tree: Path) -> None:
    assert_reads(peers.timm_loader(tree, 4, 1))
    ours = ImageNetFolder(root=str(tree), num_classes=2, workers=1)
    assert_reads(ours.load(batch_size=4, seed=0, device=loops.CPU).train.batches(0))


@pytest.mark.slow
def test_ffcvs_loader_yields_what_ours_does(tree: Path, write_beton: ModuleType) -> None:
    try:
        import_ffcv()
    except DataError as error:
        pytest.skip(str(error))
    assert write_beton.main(["--from", str(tree), "--to", str(tree)]) == 0
    assert_reads(peers.ffcv_loader(tree, 4, 1))
    ours = ImageNetFFCV(root=str(tree), num_classes=2, workers=1)
    assert_reads(ours.load(batch_size=4, seed=0, device=loops.CPU).train.batches(0))


def test_an_epoch_with_another_number_of_images_is_an_error() -> None:
    batches = loops.random_batches(2, 4, torch.Generator()).contents
    loops.read(batches, 8)
    with pytest.raises(RuntimeError, match="an epoch has 8 images, not 7"):
        loops.read(batches, 7)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
