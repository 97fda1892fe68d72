"""Training loops and data loaders of other packages, for comparison."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.nn import functional as F

from ham.data import Batch, ImageNetFFCV
from ham.data.beton import import_ffcv
from ham.run.state import Run

SIZE = 224
PEERS = {"FFCV": "ffcv.Loader", "image folder": "timm's loader"}


def timm_epoch(run: Run, folder: Path) -> float:
    """One epoch of timm's parts: each step reads the loss; returns when the steps ended, see `our_epoch`.

    The optimizer is the one that timm's `train.py` makes by default, with the options of the run's.
    """
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter, CheckpointSaver, accuracy

    model, options = run.model, run.optimizer.defaults
    name, momentum = ("adamw", {}) if "betas" in options else ("momentum", {"momentum": options["momentum"]})
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in run.optimizer.param_groups]
    optimizer = create_optimizer_v2(groups, name, options["lr"], **momentum)
    scheduler = CosineLRScheduler(optimizer, t_initial=100 * len(run.task.loaders.train), t_in_epochs=False)
    (folder / "timm").mkdir()
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(folder / "timm"), decreasing=False)
    losses = AverageMeter()
    model.train()
    for update, (images, labels) in enumerate(run.task.loaders.train.batches(0)):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.update(loss.item(), len(images))
        scheduler.step_update(update)
    end = time.perf_counter()
    model.eval()
    meters = {name: AverageMeter() for name in ("loss", "top1", "top5")}
    with torch.inference_mode():
        for images, labels in run.task.loaders.test.batches(0):
            logits = model(images)
            top1, top5 = accuracy(logits, labels, topk=(1, 5))
            values = (F.cross_entropy(logits, labels), top1, top5)
            for meter, value in zip(meters.values(), values, strict=True):
                meter.update(value.item(), len(images))
    saver.save_checkpoint(0, meters["top1"].avg)
    return end


def bare_epoch(run: Run, folder: Path) -> float:
    """A minimal loop: steps, correctly classified images, a checkpoint; returns when the steps ended."""
    model, optimizer = run.model, run.optimizer
    model.train()
    for images, labels in run.task.loaders.train.batches(0):
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    end = time.perf_counter()
    model.eval()
    with torch.inference_mode():
        batches = run.task.loaders.test.batches(0)
        sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "bare.pt")
    return end


def timm_loader(files: Path, batch_size: int, workers: int) -> Iterable[Batch]:
    """The loader of timm for an image folder: random crops and flips, normalized, shuffled."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(files), split="train")
    options: dict[str, Any] = dict(is_training=True, num_workers=workers, device=torch.device("cpu"))
    options |= dict(no_aug=False, hflip=0.5, color_jitter=None, interpolation="bilinear")
    options |= dict(persistent_workers=True, pin_memory=False)
    return create_loader(dataset, input_size=(3, SIZE, SIZE), batch_size=batch_size, **options)


def ffcv_loader(files: Path, batch_size: int, workers: int) -> Iterable[Batch]:
    """FFCV's loader: random crops and flips, normalized to float32 on the CPU, in channels_last layout."""
    import_ffcv()  # before FFCV starts numba's threads, which else do not end on one core
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    mean, std = (255 * np.asarray(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    images = [RandomResizedCropRGBImageDecoder((SIZE, SIZE)), RandomHorizontalFlip()]
    images += [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
    return Loader(
        str(files / ImageNetFFCV.train),
        batch_size=batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": images, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
