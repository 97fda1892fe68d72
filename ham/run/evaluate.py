"""Test metrics, exact over the whole set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from . import distributed

if TYPE_CHECKING:
    from .build import Run


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Mean loss per image and top-1 and top-5 accuracy in percent, every test image counted once.

    Each rank tests its share with the first rank's running statistics; the sums are over all of them.
    """
    distributed.share_buffers(run.model)
    run.model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=run.device)  # images, right, right among five
    loss = torch.zeros((), dtype=torch.float64, device=run.device)
    for images, classes in run.loaders.test.batches(epoch=0):
        logits = run.forward(images)
        loss += F.cross_entropy(logits, classes, reduction="sum")
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = ranked == classes[:, None]
        counts += torch.stack([torch.tensor(len(classes), device=run.device), hits[:, 0].sum(), hits.sum()])
    run.model.train()
    images, top1, top5 = distributed.total(counts).tolist()
    mean_loss = float(distributed.total(loss)) / images
    return {"test_loss": mean_loss, "top1": 100 * top1 / images, "top5": 100 * top5 / images}
