"""A narrow ResNet18 learns five kinds of flowers from 240 photos, through either way of reading them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ham.data import DataError
from ham.data.beton import import_ffcv

ROOT = Path(__file__).resolve().parents[3]
RUN = [
    *("+exp=dense", "model=resnet18", "model.width=16", "model.init=torchvision"),
    *("optimizer=adamw", "optimizer.lr=1e-3", "optimizer.weight_decay=0.01"),
    *("data.num_classes=5", "data.image_size=64", "data.workers=1", "batch_size=8", "epochs=6"),
    "data.min_crop=0.8",  # 240 photos: small pieces of them are learned too slowly
    *("compute.amp=false", "compute.channels_last=false", "compute.threads=1"),
]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["imagenet", "imagenet_folder"])
def test_resnet18_learns_the_flowers(data: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if data == "imagenet":
        try:
            import_ffcv()
        except DataError as error:
            pytest.skip(str(error))
    root = request.getfixturevalue("betons" if data == "imagenet" else "photos")
    if not (request.getfixturevalue("photos") / "train" / "tulips").is_dir():
        pytest.skip("the flower photos are not there: HAM_DATA names the parent folder of photos/")
    argv = [*RUN, f"data={data}", f"data.root={root}", f"runs_dir={tmp_path}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/seed0/metrics.jsonl")
    epochs = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [epoch["train_loss"] for epoch in epochs]
    print(f"{data}: training loss {losses[0]:.2f} -> {losses[-1]:.2f}, validation {epochs[-1]['top1']:.0f} %")
    assert losses[-1] < 0.6 * losses[0]
    assert epochs[-1]["top1"] > 30  # chance is 20
