"""Training steps of the paper's image experiments on a synthetic batch, to be timed or counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from ham.data import Batch, Loaders
from ham.run.build import build, setup_device
from ham.run.config import config_hash, load
from ham.run.logger import NullLogger
from ham.run.loop import train_step
from ham.run.state import Run
from ham.tasks.images import ImageClassification
from pruning.acdc import phases

EPOCHS = 10
STEPS_PER_EPOCH = 1000
MODELS = {  # experiment, HAM's values, pixels, batch size on a CPU and on a GPU
    "resnet18": ("cifar100", "cifar100", 32, 128, 512),
    "resnet50": ("dense", "imagenet", 224, 8, 256),
    "deit": ("deit", "imagenet", 224, 8, 256),
}
METHODS = {
    "dense": [],
    "AC/DC": ["sparsifier=acdc", "sparsifier.sparsity=0.9"],
    "RigL": ["sparsifier=rigl", "sparsifier.sparsity=0.9"],
    "GMP": ["sparsifier=gmp", "sparsifier.sparsity=0.9"],
    "STR": ["sparsifier=str", "sparsifier.sparsity=0.9"],
    "m * w": ["parameterization=sign_in"],  # HAM on factors is not in the paper
    "SAM": ["optimizer.sam_rho=0.05"],
}


@dataclass
class Synthetic:
    """Yields the same batch every time, so that only the step is timed."""

    batch: Batch

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batch, until the epoch ends."""
        for _ in range(start, len(self)):
            yield self.batch


def make(
    model: str,
    method: str,
    ham: bool,
    batch_size: int,
    *,
    tiny: bool = False,
    device: torch.device | None = None,
) -> Run:
    """Build a run before its first step, AC/DC in a sparse phase; it writes no files.

    Args:
        model: a key of MODELS.
        method: a key of METHODS.
        ham: True to attach HAM, with the paper's values.
        batch_size: on this device.
        tiny: narrow layers, for a smoke test of ResNet18.
        device: None: the GPU if there is one. A CPU computes without mixed precision and channels_last.
    """
    exp, values, side, _, _ = MODELS[model]
    overrides = [f"+exp={exp}", *METHODS[method], f"epochs={EPOCHS}", f"batch_size={batch_size}"]
    overrides += [f"ham={values}"] if ham else []
    if device is None and not torch.cuda.is_available():
        overrides += ["compute.amp=false", "compute.channels_last=false"]
    overrides += ["model.width=8", "model.layers=[1,1,1,1]"] if tiny else []
    cfg = load(overrides)
    device = device or setup_device(cfg)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, side, side, generator=generator)
    labels = torch.randint(cfg.data.num_classes, (batch_size,), generator=generator)
    data = Synthetic((images.to(device), labels.to(device)))
    task = ImageClassification(cfg, device, Loaders(data, data))
    run = build(cfg, config_hash(cfg), task, NullLogger(Path(), cfg), device)
    first = phases(EPOCHS).index("sparse") if method == "AC/DC" else 0
    for epoch in range(first + 1):
        run.sparsifier.on_epoch_start(epoch, run.optimizer)
    return run


def bare(run: Run) -> Callable[[], None]:
    """A step of a plain loop with this run's model, batch, optimizer and precision, without HAM."""
    if run.ham:
        run.ham.remove()
    images, labels = run.task.loaders.train.batch
    cfg = run.cfg.compute
    if cfg.channels_last:
        images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=cfg.amp):
            logits = run.model(images)
        F.cross_entropy(logits.float(), labels).backward()
        run.optimizer.step()
        run.optimizer.zero_grad()

    return step


def full_step(run: Run) -> Callable[[], None]:
    """A step of this repository's loop, with its metrics."""

    def step() -> None:
        run.metrics.update_loss(run.step, train_step(run, run.task.loaders.train.batch))
        run.step += 1

    return step
