"""Small pieces of work on any device: what the trainings do not reach, and mistakes that have to be seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ham import HAM
from ham.data.base import RankSampler
from ham.data.cifar import Augmentation, CifarLoader, Flip
from ham.models import receptive
from ham.tasks.nodes import roc_auc
from pruning import Dense
from pruning.topk import global_topk, kth_largest, layerwise_topk

LONG = 1 << 21
"""Entries above which `kth_largest` takes a sample."""


def mixed_devices(device: torch.device) -> Tensor:
    """An error on any accelerator."""
    return torch.ones(3, device=device) + torch.ones(3)


def fused_step_of_ham(device: torch.device) -> None:
    """HAM's fused step, which is for the CPU."""
    weight = nn.Parameter(torch.ones(3, 2, device=device))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    HAM(optimizer, alpha=20, implementation="fused")
    weight.sum().backward()
    optimizer.step()


def top_k(device: torch.device) -> list[Tensor]:
    """Masks of the largest scores, over all layers and of each, and the threshold of a long tensor."""
    scores = {"a": torch.rand(3, 4, device=device), "b": torch.rand(5, device=device)}
    masks = [*global_topk(scores, 6).values(), *layerwise_topk(scores, {"a": 2, "b": 1}).values()]
    return [*masks, kth_largest(torch.rand(LONG, device=device), LONG // 5)]


def masks_of_a_dense_model(device: torch.device) -> list[Tensor]:
    """All weights are on: no mask is set."""
    model, sparsifier = nn.Linear(3, 2).to(device), Dense()
    sparsifier.attach(model, total_epochs=1)
    return list(sparsifier.kept().values())


def graph(device: torch.device) -> list[Tensor]:
    """The nodes that some nodes depend on; the AUC."""
    edges, outputs = torch.zeros(2, 40, dtype=torch.long, device=device), torch.arange(5, device=device)
    nodes = [receptive._closure(edges, outputs, 2, 20, full_graph=full)[0] for full in (True, False)]
    labels = torch.arange(20, device=device) % 2
    assert isinstance(roc_auc(torch.rand(20, device=device), labels), float)
    return nodes


def cifar(device: torch.device) -> list[Tensor]:
    """Two augmented batches."""
    pixels = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device=device)
    labels = torch.zeros(8, dtype=torch.long, device=device)
    loader = CifarLoader(pixels, labels, RankSampler(8, 4, seed=0), Augmentation(Flip.alternating, 2))
    return [tensor for batch in loader.batches(epoch=0) for tensor in batch]


PROBES: dict[str, Callable[[torch.device], object]] = {
    probe.__name__: probe
    for probe in (mixed_devices, fused_step_of_ham, top_k, masks_of_a_dense_model, graph, cifar)
}

# Host syncs as CUDA has them: operations on `x` [3, 2] -> do they wait?


def _indexed(x: Tensor) -> None:
    x[torch.zeros(3, dtype=torch.long)]


def _assigned(x: Tensor) -> None:
    x[x > 0] = 1.0


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x[0].tolist(),
    "equal": lambda x: torch.equal(x, x + 1),  # of a tensor and itself it does not wait
    "to_cpu": lambda x: x.cpu(),
    "from_cpu": lambda x: torch.zeros(3).to(x.device),
    "copy_": lambda x: x.copy_(torch.zeros(3, 2)),
    "torch.tensor": lambda x: torch.tensor(1.0, device=x.device),
    "new_tensor": lambda x: x.new_tensor(1.0),
    "boolean_index": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: torch.bincount(x[:, 0].long(), minlength=4),
    "repeat_interleave": lambda x: torch.arange(3, device=x.device).repeat_interleave(x[:, 0].long()),
    "index_on_cpu": _indexed,
    "where_with_a_cpu_scalar": lambda x: torch.where(x > 0, torch.tensor(1.0), x),
}
DOES_NOT_WAIT: dict[str, Callable[[Tensor], object]] = {
    "full": lambda x: torch.full((), 1.0, device=x.device),
    "where_with_a_number": lambda x: torch.where(x > 0, x, 0.0),
    "scalar_product": lambda x: x * torch.tensor(2.0),
    "masked_fill_": lambda x: x.masked_fill_(x > 0, 0.0),
    "boolean_assignment_of_a_number": _assigned,
    "non_blocking_from_cpu": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "dtype": lambda x: x.double(),
    "index_on_the_device": lambda x: x[torch.zeros(3, dtype=torch.long, device=x.device)],
    "topk": lambda x: x.flatten().topk(2).values,
}
