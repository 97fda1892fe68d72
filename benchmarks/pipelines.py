"""Images per second of the data pipelines alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timing import seconds
from torch import Tensor
from tqdm import tqdm

from ham.data import Cifar100, Data, DataError, Digits, ImageNetFFCV, ImageNetFolder
from ham.files import ROOT


@contextmanager
def photo_files(quick: bool) -> Iterator[dict[str, Path]]:
    """Name of a pipeline -> the files that it reads: the photos' folder, and the same images as beton files.

    Empty with `quick` and where the photos are missing; without the beton files where FFCV is missing.
    """
    photos = _data_folder() / "photos"
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        if photos.is_dir() and not quick:
            files["image folder"] = photos
            script = [sys.executable, str(ROOT / "scripts" / "write_beton.py"), "--from", str(photos)]
            result = subprocess.run([*script, "--to", folder], capture_output=True, text=True)
            if result.returncode == 0:
                files["FFCV"] = Path(folder)
            else:
                print(f"FFCV is skipped: {(result.stderr.splitlines() or ['?'])[-1]}", file=sys.stderr)
        elif not quick:
            print(f"image folder and FFCV are skipped: {photos} does not exist", file=sys.stderr)
        yield files


@contextmanager
def data_sets(quick: bool) -> Iterator[dict[str, tuple[Data, int]]]:
    """Name -> data set and batch size, of the data sets that exist on this machine."""
    available: dict[str, tuple[Data, int]] = {"digits": (Digits(), 64)}
    cifar = _data_folder() / "cifar-100-python"
    if cifar.is_dir():
        available["CIFAR-100"] = (Cifar100(root=str(cifar)), 512)
    with photo_files(quick) as files:
        for name, root in files.items():
            kind = ImageNetFFCV if name == "FFCV" else ImageNetFolder
            data = kind(root=str(root), num_classes=5, workers=os.cpu_count() or 1)
            available[f"{name}, 224 px"] = (data, 48)
        yield available


def _data_folder() -> Path:
    return Path(os.environ.get("HAM_DATA", ROOT.parent / "shared" / "data"))


def pipeline_rows(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Images per second of each data set's training batches, the maximum of a few epochs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with data_sets(quick) as available:
        for name, (data, batch_size) in tqdm(available.items(), desc="pipelines", leave=False):
            try:
                train = data.load(batch_size=batch_size, seed=0, device=device).train
            except DataError as error:
                print(f"{name} is skipped: {error}", file=sys.stderr)
                continue
            rates = []
            for epoch in range(max(2, min(rounds, 4))):
                images: list[int] = []
                elapsed = seconds(lambda t=train, e=epoch, i=images: _read(t.batches(e), i))
                rates.append(sum(images) / elapsed)
            rows.append(
                {
                    "pipeline": name,
                    "batch_size": batch_size,
                    "images_per_second": max(rates),
                    "spread": [min(rates), max(rates)],
                }
            )
    return rows


def _read(batches: Iterator[tuple[Tensor, Tensor]], images: list[int]) -> None:
    images.extend(len(labels) for _, labels in batches)
