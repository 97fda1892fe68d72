"""GraSP: masks that preserve the gradient flow of the initial network (Wang et al., 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from .at_initialization import AtInitialization
from .base import register
from .batches import check_pair, each_input, losses_in_parts
from .checks import check_not_sharded_yet, check_real
from .options import check_positive_integer
from .ranks import mean_over_ranks
from .scores import evaluation_mode
from .weights import Weight

_MICROBATCH = 64  # the graph of the second backward pass takes about twice the memory of SNIP's


def grasp(
    model: nn.Module,
    weights: Mapping[str, Weight],
    batches: Sequence[tuple[Any, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    temperature: float = 200.0,
) -> dict[str, Tensor]:
    """Theta * (H g): what each weight adds to the gradient flow g^T g, to first order (Wang et al., 2020).

    Removing a weight changes the flow by the paper's S(-theta) = -theta * (H g), Eq. 8; it removes the
    largest of these, so that the largest values returned here are to be kept. g is the gradient of the mean
    loss of the outputs divided by `temperature`, H its Hessian, both with respect to theta of the given
    weights only, over the same data and averaged over ranks (ganguli-lab/Synaptic-Flow, pruners.py). The
    model runs in eval mode, without autocast, on at most 64 inputs at once, and does not change.

    Args:
        model: a twice differentiable model that maps inputs [N, ...] to outputs.
        weights: name -> prunable weight, plain or a product.
        batches: pairs (inputs, targets), as in `pruning.scores.snip`; their means have equal weight. They
            are iterated over twice.
        loss_fn: the mean loss over a batch.
        temperature: divisor of the outputs, of each tensor if there are several; 200 in the paper's code.

    Raises:
        ValueError: the model returns no tensors, or `losses_in_parts` rejects the loss.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    leaves = {name: weight.value.clone().requires_grad_() for name, weight in weights.items()}
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        first, *others = weight.parameters
        tensors[names[id(first)]] = leaves[name]  # of a product m * w: theta * 1
        tensors.update({names[id(other)]: torch.ones_like(other) for other in others})

    device = next(iter(leaves.values())).device

    def forward(*args: Tensor, **kwargs: Tensor) -> Any:
        outputs = functional_call(model, tensors, args, kwargs)
        if not any(map(_is_divided, tree_leaves(outputs))):
            raise ValueError(
                f"GraSP divides the outputs of the model, which returns {type(outputs).__name__} without "
                "floating-point tensors: return tensors, alone or in tuples, lists and dicts, or choose SNIP"
            )
        return tree_map(lambda x: x / temperature if _is_divided(x) else x, outputs)

    def losses() -> Iterator[Tensor]:
        for inputs, targets in batches:
            for loss in losses_in_parts(inputs, targets, forward, loss_fn, _MICROBATCH, device):
                yield loss / len(batches)

    def sum_gradients(gradients: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        sums = [torch.zeros_like(leaf) for leaf in leaves.values()]
        for loss in losses():
            for total, gradient in zip(sums, gradients(loss), strict=True):
                total += gradient
        return [mean_over_ranks(total) for total in sums]

    thetas = list(leaves.values())
    # the other kernels of scaled_dot_product_attention have no second derivative
    with evaluation_mode(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        flow = sum_gradients(lambda loss: torch.autograd.grad(loss, thetas, materialize_grads=True))
        product = sum_gradients(lambda loss: _hessian_product(loss, thetas, flow))
    return {name: leaf.detach() * hg for (name, leaf), hg in zip(leaves.items(), product, strict=True)}


def _is_divided(output: Any) -> bool:
    return isinstance(output, Tensor) and (output.is_floating_point() or output.is_complex())


def _hessian_product(loss: Tensor, leaves: Sequence[Tensor], vector: Sequence[Tensor]) -> Sequence[Tensor]:
    """The Hessian of the loss times a vector, by a second backward pass."""
    gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    inner = torch.stack([(gradient * v).sum() for gradient, v in zip(gradients, vector, strict=True)]).sum()
    if not inner.requires_grad:  # the loss is linear in all leaves
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(inner, leaves, materialize_grads=True)


@register("grasp")
@dataclass
class GraSP(AtInitialization):
    """Keep the weights whose removal would reduce the gradient flow most (Wang et al., 2020).

    Args:
        sparsity: fraction of all prunable weights to prune, by one threshold for all layers.
        exclude: globs of weights to keep dense.
        granularity: "element", N:M or blocks; a block's score, the sum over its weights, is that of removing
            it.
        batches: number of batches to average over; 10 of 1024 images are the ten per class of the authors
            and of ganguli-lab/Synaptic-Flow. They are held in memory together, for two passes.
        temperature: divisor of the outputs; 200 in the authors' code.
    """

    batches: int = 10
    temperature: float = 200.0

    def __post_init__(self) -> None:
        """Raise ValueError on values out of range."""
        super().__post_init__()
        check_positive_integer("batches", self.batches)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature:g}")

    def initialize(self, batches: Iterable[Any] = (), loss_fn: Callable[..., Tensor] | None = None) -> None:
        """Prune by the gradient flow of `loss_fn(model(inputs) / temperature, targets)`.

        The first dimension of inputs and targets must be the samples: where all are tensors of one length, a
        batch is computed in parts of 64 along it. Targets in a tuple keep a batch in one piece.

        Raises:
            ValueError: no loss function, fewer batches than `self.batches`, inputs that are not tensors, a
                complex weight, or `fully_shard` has split the weights.
        """
        check_not_sharded_yet(self.masks.weights, "GraSP")
        check_real(self.masks.weights, "GraSP")
        if loss_fn is None:
            raise ValueError("GraSP needs a loss: initialize(batches, torch.nn.functional.cross_entropy)")
        data = [check_pair(batch) for batch in islice(batches, self.batches)]
        unfit = [x for inputs, _ in data for x in each_input(inputs) if not isinstance(x, Tensor)]
        if unfit:
            raise ValueError(f"GraSP needs tensors as inputs, got {type(unfit[0]).__name__}: choose SNIP")
        if len(data) < self.batches:
            raise ValueError(f"GraSP needs {self.batches} batches, got {len(data)}: lower its batches")
        self.set_masks(self.select(grasp(self.model, self.masks.weights, data, loss_fn, self.temperature)))
        self._has_pruned = True
