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
def data_sets(quick: bool) -> Iterator[dict[str, tuple[Data, int]]]:
    """Name -> data set and batch size, of the data sets that exist on this machine."""
    data = Path(os.environ.get("HAM_DATA", ROOT.parent / "shared" / "data"))
    available: dict[str, tuple[Data, int]] = {"digits": (Digits(), 64)}
    with tempfile.TemporaryDirectory() as folder:
        if (data / "cifar-100-python").is_dir():
            available["CIFAR-100"] = (Cifar100(root=str(data / "cifar-100-python")), 512)
        photos = data / "photos"
        if photos.is_dir() and not quick:
            cores = os.cpu_count() or 1
            shape = dict(num_classes=5, workers=cores)
            available["image folder, 224 px"] = (ImageNetFolder(root=str(photos), **shape), 48)
            script = [sys.executable, str(ROOT / "scripts" / "write_beton.py"), "--from", str(photos)]
            done = subprocess.run([*script, "--to", folder], capture_output=True)
            if done.returncode == 0:
                available["FFCV, 224 px"] = (ImageNetFFCV(root=folder, **shape), 48)
        yield available


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
                taken = seconds(lambda t=train, e=epoch, i=images: _read(t.batches(e), i))
                rates.append(sum(images) / taken)
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
