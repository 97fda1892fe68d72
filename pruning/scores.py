"""Scores of weights: magnitude, SNIP and SynFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from .batches import InputShape, arguments, check_pair, inputs_of_shape, losses_in_parts
from .ranks import mean_over_ranks
from .topk import NotFinite, global_topk, kept_count, kth_largest, layerwise_topk  # noqa: F401, as in 0.6
from .weights import Weight

Select = Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]

_MICROBATCH = 128  # images: float32 activations of a ResNet50 at 224 px then take 10 GB


def magnitude(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|theta|, one score per weight."""
    return {name: w.detach().abs() for name, w in weights.items()}


def snip(
    model: nn.Module,
    weights: Mapping[str, Weight],
    batches: Iterable[tuple[Any, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """|sum over batches of dL/dtheta * theta|, which is |dL/dmask| at mask 1 (Lee et al., 2019).

    The absolute value is taken after the sum, which is averaged over ranks. The model runs in eval mode,
    without autocast, on at most 128 samples at once, and does not change.

    Args:
        model: a model that maps inputs [N, ...] to outputs.
        weights: name -> prunable weight.
        batches: pairs (inputs, targets), used one after the other; inputs are a tensor, or several in
            a tuple, a list or a dict. Inputs and targets that are tensors of equal length are split along
            their first dimension, which must be the samples.
        loss_fn: the mean loss over a batch.

    Raises:
        ValueError: a batch is not a pair of inputs and targets, a weight is frozen, or the loss of a batch of
            more than 128 samples is not the mean over samples.
    """
    for name, weight in weights.items():
        if not all(p.requires_grad for p in weight.parameters):
            raise ValueError(f"{name} is frozen and has no gradient: freeze it before attach, or exclude it")
    parameters = [p for weight in weights.values() for p in weight.parameters]
    sums, device = [torch.zeros_like(p) for p in parameters], parameters[0].device
    with evaluation_mode(model):
        for batch in batches:
            for loss in losses_in_parts(*check_pair(batch), model, loss_fn, _MICROBATCH, device):
                with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                    # not loss.backward(), which would change p.grad and run DistributedDataParallel's hooks
                    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total += gradient
    parts = iter(sums)
    scores = {}
    for name, weight in weights.items():
        gradient = weight.gradient_from([mean_over_ranks(next(parts)) for _ in weight.parameters])
        scores[name] = (gradient.conj() * weight.value).real.abs()
    return scores


def synflow(
    model: nn.Module, weights: Mapping[str, Weight], masks: Mapping[str, Tensor], input_shape: InputShape
) -> dict[str, Tensor]:
    """dR/dtheta * theta of the network of absolute values, R the sum of its outputs on ones; float64.

    Of a model that returns several tensors, in tuples, lists or dicts, R is the sum of all of them.

    Args:
        model: the model, unchanged: a functional call computes with the absolute values, in eval mode.
        weights: name -> prunable weight.
        masks: name -> bool, True where a weight is on.
        input_shape: shape of one input with its batch dimension, such as (1, 3, 224, 224); of a model
            with several inputs a tuple of shapes, or a dict from name to shape.

    Returns:
        |dR/dtheta * theta| of each weight's shape, 0 where it is masked (Tanaka et al., 2020, Eq. 2).

    Raises:
        ValueError: the model does not compute in the dtype of its inputs, or returns no tensors.
    """
    flow = _FlowGradients(model)
    tensors = {
        name: tensor.detach().abs().double() if tensor.is_floating_point() else tensor
        for name, tensor in (*flow.named_parameters(), *flow.named_buffers())
    }
    names = {id(parameter): name for name, parameter in flow.named_parameters()}
    # of a product m * w only the second factor: dR/dw * w is dR/dtheta * theta
    scored = {name: names[id(weight.parameters[-1])] for name, weight in weights.items()}
    for name, key in scored.items():
        tensors[key] = tensors[key].masked_fill_(~masks[name], 0.0).requires_grad_()
    device = next(iter(weights.values())).parameters[0].device
    with evaluation_mode(model), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        options = {"dtype": torch.float64, "device": device}
        ones = inputs_of_shape(input_shape, lambda shape: torch.ones(shape, **options))
        leaves = [tensors[key] for key in scored.values()]
        try:
            gradients = functional_call(flow, tensors, (ones, leaves))
        except RuntimeError as error:
            if "double" not in str(error).lower():
                raise
            raise ValueError(
                "SynFlow computes in float64, and the model's forward makes tensors of another dtype "
                f"({' '.join(str(error).split())}): remove x.float(), dtype=torch.float32 and the like, or "
                "choose SNIP"
            ) from error
    return {
        name: (gradient * leaf.detach()).abs()  # LayerNorm and attention give either sign
        for name, gradient, leaf in zip(scored, gradients, leaves, strict=True)
    }


class _FlowGradients(nn.Module):
    """The gradients of the sum of a model's outputs.

    Their backward pass is part of the functional call: activation checkpointing computes the forward pass
    again in it, and has to find the weights of the call.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradients of `leaves`, 0 where the output does not depend on one."""
        args, kwargs = arguments(inputs)
        outputs = self.model(*args, **kwargs)
        parts = [x.sum() for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
        if not parts:
            raise ValueError(
                f"SynFlow sums the outputs of the model, which returns {type(outputs).__name__} without "
                "floating-point tensors: return tensors, alone or in tuples, lists and dicts, or choose SNIP"
            )
        return torch.autograd.grad(torch.stack(parts).sum(), leaves, materialize_grads=True)


def synflow_masks(
    model: nn.Module,
    weights: Mapping[str, Weight],
    input_shape: InputShape,
    schedule: Sequence[int],
    select: Select | None = None,
) -> dict[str, Tensor]:
    """Masks after pruning to each count of `schedule` in turn, by the flow of the weights still on.

    Args:
        model: the model, unchanged.
        weights: name -> prunable weight.
        input_shape: shape of one input with its batch dimension, as in `synflow`.
        schedule: number of weights to keep after each iteration.
        select: function (scores, kept) -> masks; None for the largest scores over all layers.
    """
    select = global_topk if select is None else select
    masks = {name: torch.ones_like(w.parameters[0], dtype=torch.bool) for name, w in weights.items()}
    for count in schedule:
        scores = synflow(model, weights, masks, input_shape)
        masks = select({n: score.masked_fill_(~masks[n], -1.0) for n, score in scores.items()}, count)
    return masks


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards every module has the mode that it had before.

    cuDNN has no backward pass of recurrent layers in this mode: with such layers, it is off for the entire
    model.
    """
    modes = {module: module.training for module in model.modules()}
    has_recurrent = any(isinstance(module, nn.RNNBase) for module in modes)
    model.eval()
    try:
        with torch.backends.cudnn.flags(enabled=False) if has_recurrent else nullcontext():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
