"""Image classification: cross entropy, top-1 and top-5 accuracy over every test image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ham import distributed
from ham.data import Batch, ImageData, Loaders
from ham.models import build_model
from pruning.scores import evaluation_mode

from .base import Metrics, Progress, RunConfig, Task, describe_sparsity, sparsity_of, task_for

SPARSITY_TOLERANCE = 0.005
"""A run that ends further from its target sparsity is reported as having missed it."""

_SAME_SPARSITY = 1e-3
"""Epochs within this of the last sparsity count as equally sparse: grown weights are zeros until a step."""


@task_for(ImageData)
@dataclass
class ImageClassification(Task):
    """The images of cfg.data, the network of cfg.model."""

    name = "images"
    reported = ("top1_last", "top1_best")
    demos = frozenset({"cifar16", "digits", "tiny"})
    smooths_labels = True

    cfg: RunConfig
    device: torch.device
    loaders: Loaders

    @classmethod
    def check(cls, cfg: RunConfig) -> None:
        """Raise ValueError where the network does not take these images."""
        cfg.model.check(cfg.data.image_size)

    @classmethod
    def load(cls, cfg: RunConfig, device: torch.device, seed: int, rank: int, world_size: int) -> Self:
        """Read the data set. Raises DataError."""
        ranks = dict(rank=rank, world_size=world_size)
        return cls(cfg, device, cfg.data.load(batch_size=cfg.batch_size, seed=seed, device=device, **ranks))

    def build_model(self, generator: torch.Generator) -> nn.Module:
        """The network of cfg.model on the device."""
        layout = torch.channels_last if self.cfg.compute.channels_last else torch.preserve_format
        sizes = dict(num_classes=self.cfg.data.num_classes, image_size=self.cfg.data.image_size)
        model = build_model(self.cfg.model, **sizes, generator=generator).to(
            self.device, memory_format=layout
        )
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if self.cfg.compute.sync_bn else model

    def data_content(self) -> Any:
        """The content of both loaders; None if a loader has no method `content`."""
        contents = [getattr(loader, "content", None) for loader in (self.loaders.train, self.loaders.test)]
        return None if None in contents else [content() for content in contents]

    @property
    def steps_per_epoch(self) -> int:
        """Number of training batches on this rank."""
        return len(self.loaders.train)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Training batches: images [N, 3, H, W] and labels [N]."""
        return self.loaders.train.batches(epoch, start=start)

    def microbatches(self, batch: Batch, parts: int) -> Iterator[tuple[Batch, float]]:
        """Chunks of images and labels, weighted by their number of images."""
        for images, labels in zip(*(tensor.chunk(parts) for tensor in batch), strict=True):
            yield (images, labels), len(labels) / len(batch[1])

    def forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> float32 logits [N, classes]."""
        if self.cfg.compute.channels_last:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.compute.amp):
            logits = network(images)
        return logits.float()

    def loss(self, network: nn.Module, part: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy with smoothed labels, logits and labels; `evaluate` does not smooth them.

        With s = optimizer.label_smoothing the target of each image is 1 - s on its label plus s / classes on
        every class.
        """
        images, labels = part
        logits = self.forward(network, images)
        smoothing = self.cfg.optimizer.label_smoothing
        return F.cross_entropy(logits, labels, label_smoothing=smoothing), logits, labels

    def initialization_batches(self) -> Iterable[Batch]:
        """The first epoch's training batches."""
        return self.loaders.train.batches(epoch=0)

    @torch.no_grad()
    def evaluate(self, run: Progress) -> Metrics:
        """Mean loss per image, top-1 and top-5 accuracy in percent; every test image counts once.

        Each rank evaluates its share with rank 0's running statistics; the sums are over all ranks.
        """
        distributed.broadcast_buffers(run.model)
        counts = torch.zeros(3, dtype=torch.int64, device=self.device)  # images, top-1 hits, top-5 hits
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        with evaluation_mode(run.model):
            for images, labels in self.loaders.test.batches(epoch=0):
                logits = self.forward(run.network, images)
                loss += F.cross_entropy(logits, labels, reduction="sum")
                ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
                hits = ranked == labels[:, None]
                number = torch.full((), len(labels), device=self.device)  # filled there: no host sync
                counts += torch.stack([number, hits[:, 0].sum(), hits.sum()])
        number, top1, top5 = distributed.all_reduce_sum(counts).tolist()
        mean_loss = float(distributed.all_reduce_sum(loss)) / number
        return {"test_loss": mean_loss, "top1": 100 * top1 / number, "top5": 100 * top5 / number}

    def summarize(self, run: Progress) -> Metrics:
        """Accuracy and sparsity. `top1_last` is what tables report.

        `top1_best` is the best epoch among those at least as sparse as the last, within 0.1 point.
        """
        last = run.history[-1]
        as_sparse = [
            line["top1"] for line in run.history if line["sparsity"] >= last["sparsity"] - _SAME_SPARSITY
        ]
        return {
            "metrics": {
                "train_loss": last["train_loss"],
                "test_loss": last["test_loss"],
                "top1_last": last["top1"],
                "top1_best": max(as_sparse),
                "top5_last": last["top5"],
            },
            "sparsity": sparsity_of(run.sparsifier) | {"masks_from": last.get("masks_from")},
        }

    @classmethod
    def describe(cls, summary: Metrics) -> list[str]:
        """Accuracy, sparsity, and warnings about them."""
        sparsity, metrics = summary["sparsity"], summary["metrics"]
        lines = [
            f"test top-1   {metrics['top1_last']:.2f} %   (best epoch {metrics['top1_best']:.2f} %)",
            describe_sparsity(sparsity),
        ]
        if sparsity["target"] and abs(sparsity["overall"] - sparsity["target"]) > SPARSITY_TOLERANCE:
            lines.append(
                "missed       its target sparsity: train longer, or for STR use sparsifier.calibrate=ramp"
            )
        if empty := [name for name, share in sparsity["layers"].items() if share == 1]:
            lines.append(
                f"fully pruned {', '.join(empty)}: lower the sparsity, exclude them, or prune layerwise"
            )
        return lines
