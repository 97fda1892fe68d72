"""Batches of inputs and targets: what they are, and their losses in parts that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

_OneShape: TypeAlias = Sequence[int] | Tensor
InputShape: TypeAlias = _OneShape | Sequence[_OneShape] | Mapping[str, _OneShape]
"""A shape, or an example tensor; of several inputs a tuple, a list or a dict of these."""

_LOSS_TOLERANCE = 1e-3  # of the derivatives


def losses_in_parts(
    inputs: Any,
    targets: Any,
    forward: Callable[..., Any],
    loss_fn: Callable[[Any, Any], Tensor],
    size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Losses of at most `size` samples each, without autocast; their sum is the loss of the batch.

    Raises:
        ValueError: the loss is not a tensor with one entry and a gradient, or, after the second part, is
            not a mean over samples, as with class weights.
    """
    tensors = [x for x in (*each_input(inputs), targets) if isinstance(x, Tensor) and x.ndim]
    is_split = len(tensors) == len(each_input(inputs)) + 1 and len({len(x) for x in tensors}) == 1
    batches = _parts(inputs, targets, size) if is_split else [(inputs, targets)]
    first = None
    for number, (part, labels) in enumerate(batches):
        args, kwargs = arguments(part)
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            outputs = forward(*args, **kwargs)
            loss = _check_loss(loss_fn(outputs, labels)) * (len(labels) / len(targets) if is_split else 1.0)
        yield loss
        if is_split and number < 2 and isinstance(outputs, Tensor) and len(outputs) == len(labels):
            second, first = first, (outputs.detach(), labels)
            if second is not None:
                _check_is_mean([second, first], loss_fn, size)


def _check_loss(loss: Any) -> Tensor:
    """The loss. Raises ValueError where no gradient can be computed from it."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    kind = type(loss).__name__
    if isinstance(loss, Tensor):
        kind = "one without a gradient" if loss.numel() == 1 else f"one of shape {tuple(loss.shape)}"
    raise ValueError(
        f"the loss must be a tensor with a single entry and a gradient, got {kind}: let loss_fn return the "
        "mean over the samples, computed from the outputs without item() and detach()"
    )


def _parts(inputs: Any, targets: Tensor, size: int) -> Iterator[tuple[Any, Tensor]]:
    for start in range(0, len(targets) or 1, size):
        part = slice(start, start + size)
        yield map_inputs(itemgetter(part), inputs), targets[part]


@torch.enable_grad()
def _check_is_mean(
    parts: Sequence[tuple[Tensor, Tensor]], loss_fn: Callable[[Any, Any], Tensor], size: int
) -> None:
    """Raise ValueError unless the loss of two parts together is the mean over their samples.

    Its derivatives by the outputs are compared: early in a training the losses of all parts are nearly equal.
    """

    def gradient(outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32), copy=True).requires_grad_()
        with torch.autocast(outputs.device.type, enabled=False):
            return torch.autograd.grad(loss_fn(outputs, labels), outputs)[0]

    outputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    joint = gradient(outputs, targets)
    mean = torch.cat([gradient(output, labels) * (len(labels) / len(targets)) for output, labels in parts])
    joint_norm = float(torch.linalg.vector_norm(joint))
    if float(torch.linalg.vector_norm(joint - mean)) > _LOSS_TOLERANCE * joint_norm:
        raise ValueError(
            f"the loss of a batch is not the mean over its parts of {size} samples (for example, because of "
            f"class weights): use batches of at most {size}, or a loss that is the mean over samples"
        )


def check_pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch. Raises ValueError if it is not such a pair.

    Inputs are a tensor, tensors in a tuple, a list or a dict (see `arguments`), or one object of any other
    kind that a model takes, such as a batch of graphs.
    """
    is_pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not is_pair or not _are_inputs(batch[0]):
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


def _are_inputs(inputs: Any) -> bool:
    if _are_several(inputs):
        return bool(inputs) and all(isinstance(x, Tensor) for x in each_input(inputs))
    is_record = isinstance(inputs, tuple)  # a named tuple, such as a PackedSequence
    return is_record or not isinstance(inputs, int | float | Sequence)


def _are_several(inputs: Any) -> bool:
    return isinstance(inputs, Mapping) or type(inputs) in (tuple, list)


def arguments(inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """The arguments by which a model takes inputs: model(inputs), model(*inputs) or model(**inputs)."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if _are_several(inputs) else (inputs,)), {}


def each_input(inputs: Any) -> list[Any]:
    """The inputs one by one."""
    args, kwargs = arguments(inputs)
    return [*args, *kwargs.values()]


def map_inputs(function: Callable[[Any], Any], inputs: Any) -> Any:
    """The same inputs, or as many, with `function` of each."""
    if isinstance(inputs, Mapping):
        return {name: function(x) for name, x in inputs.items()}
    return tuple(map(function, inputs)) if _are_several(inputs) else function(inputs)


def inputs_of_shape(shape: InputShape, make: Callable[[Any], Tensor]) -> Any:
    """`make(shape)`; of several shapes, in a tuple, a list or a dict, as many inputs."""
    is_one = not _are_several(shape) or all(isinstance(length, Integral) for length in shape)
    return make(shape) if is_one else map_inputs(make, shape)
