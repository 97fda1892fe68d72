"""Batches of inputs and targets: what they are, and their losses in parts that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LOSS_TOLERANCE = 1e-3  # of the derivatives


def losses_in_parts(
    inputs: Any,
    targets: Any,
    forward: Callable[[Any], Any],
    loss_fn: Callable[[Any, Any], Tensor],
    size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Losses of at most `size` samples each, without autocast; their sum is the loss of the batch.

    Raises:
        ValueError: after the second part, if the loss is not a mean over samples, as with class weights.
    """
    is_split = all(isinstance(x, Tensor) and x.ndim for x in (inputs, targets)) and len(inputs) == len(
        targets
    )
    batches = zip(inputs.split(size), targets.split(size), strict=True) if is_split else [(inputs, targets)]
    first = None
    for number, (part, labels) in enumerate(batches):
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            outputs = forward(part)
            loss = loss_fn(outputs, labels) * (len(part) / len(inputs) if is_split else 1.0)
        yield loss
        if is_split and number < 2 and isinstance(outputs, Tensor) and len(outputs) == len(labels):
            second, first = first, (outputs.detach(), labels)
            if second is not None:
                _check_is_mean([second, first], loss_fn, size)


@torch.enable_grad()
def _check_is_mean(
    parts: Sequence[tuple[Tensor, Tensor]], loss_fn: Callable[[Any, Any], Tensor], size: int
) -> None:
    """Raise ValueError unless the loss of two parts together is the mean over their samples.

    Its derivatives by the outputs are compared: early in a training the losses of all parts are nearly equal.
    """

    def slope(outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32), copy=True).requires_grad_()
        with torch.autocast(outputs.device.type, enabled=False):
            return torch.autograd.grad(loss_fn(outputs, labels), outputs)[0]

    outputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    whole = slope(outputs, targets)
    mean = torch.cat([slope(output, labels) * (len(labels) / len(targets)) for output, labels in parts])
    if float(torch.linalg.vector_norm(whole - mean)) > _LOSS_TOLERANCE * float(
        torch.linalg.vector_norm(whole)
    ):
        raise ValueError(
            f"the loss of a batch is not the mean over its parts of {size} samples (for example, because of "
            f"class weights): use batches of at most {size}, or a loss that is the mean over samples"
        )


def check_pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch. Raises ValueError if it is not such a pair."""
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not is_pair or isinstance(batch[0], str | bytes | int | float | Mapping | Sequence):
        kind = (
            f"{type(batch).__name__} of {len(batch)}"
            if isinstance(batch, tuple | list)
            else type(batch).__name__
        )
        raise ValueError(
            f"batches must be pairs (inputs, targets), got {kind}: pass a generator such as "
            "((batch['x'], batch['y']) for batch in loader)"
        )
    return batch[0], batch[1]
