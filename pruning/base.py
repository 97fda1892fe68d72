"""The life cycle of a sparsifier: what a training loop calls, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from .attaching import Attaching
from .groups import split_by_weight_decay
from .inspection import Inspection
from .options import check_options
from .parameterization import Plain
from .registry import register_in
from .saved_state import SavedState

Method = TypeVar("Method", bound="type[Sparsifier]")

SPARSIFIERS: dict[str, type[Sparsifier]] = {}
"""Name -> class of every sparsifier whose module was imported."""


def register(name: str) -> Callable[[Method], Method]:
    """A class decorator that makes a sparsifier available to configurations as `name`.

    configs/sparsifier/<name>.yaml composes over <name>_schema, whose keys are the fields of the class.

    Raises:
        ValueError: another sparsifier has that name.
    """
    return register_in(SPARSIFIERS, name)


@dataclass
class Sparsifier(Attaching, Inspection, SavedState):
    """Decides which weights are on; this base class keeps all of them. Fields are hyperparameters only.

    A loop calls `attach` before it creates the optimizer, `initialize` before the first step,
    `on_epoch_start` at each epoch (not again after a resume inside one), `after_backward`, `add_decay` and
    `after_step` around each optimizer step, `on_epoch_end` after each epoch and `on_end` after the last.
    """

    def __post_init__(self) -> None:
        """Raise ValueError on values of another type than a field's."""
        check_options(self)

    @property
    def total_steps(self) -> int:
        """Calls of `after_backward` over the training. Raises ValueError without `steps_per_epoch`."""
        if self.steps_per_epoch is None:
            raise ValueError(
                f"{type(self).__name__} requires steps_per_epoch: pass "
                "attach(..., steps_per_epoch=len(loader))"
            )
        return self.total_epochs * self.steps_per_epoch

    def param_groups(self, params: Iterable[Any]) -> list[dict[str, Any]]:
        """Optimizer groups in which the method's own parameters have the weight decay that it sets.

        Args:
            params: parameters or groups, as an optimizer takes them; every other key of a group is kept.
        """
        return split_by_weight_decay(params, self.weight_decays())

    def initialize(self, batches: Iterable[Any] = (), loss_fn: Callable[..., Tensor] | None = None) -> None:
        """Prune at initialization; methods that do not prune from data do nothing.

        Call it after wrapping in DDP and before the first step; do not call it in a resumed run.

        Args:
            batches: pairs, inputs [N, ...] and targets. SynFlow reads only the shape of the first inputs.
            loss_fn: the mean loss over a batch, a function of outputs and targets; SNIP and GraSP require it.

        Raises:
            ValueError: the method requires a loss, more batches or other inputs, or `fully_shard` has split
                the weights.
        """

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Change phases at epoch `epoch`, counted from 0.

        A method that overrides this and acts before it calls this calls `_begin_epoch` first.

        Args:
            epoch: number of the epoch, counted from 0.
            optimizer: the optimizer used for training, the one with the hook or a wrapper of it.

        Raises:
            RuntimeError: a weight is no longer a parameter of the model.
            ValueError: the hook is on another optimizer.
        """
        optimizer = self._begin_epoch(optimizer)
        self._epoch_before, self._announced_epoch = self._announced_epoch, epoch
        self.parameterization.on_epoch_start(epoch, optimizer)
        self._nonzero.refresh(self.masks.weights.values())

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Use the dense gradients, then mask them.

        A method that overrides this calls it, or `_begin_step` where it needs the dense gradients first.

        Args:
            step: number of optimizer steps before this one.
            optimizer: the optimizer used for training.

        Returns:
            False if no optimizer step may follow in this iteration.

        Raises:
            ValueError: the optimizer does not train a weight.
            RuntimeError: a weight left the model, or `on_epoch_start` was not called for an epoch that the
                method acts on.
        """
        self._begin_step(step, optimizer)
        self.mask_gradients()
        return True

    def uses_gradients(self, step: int) -> bool:
        """Return True if `after_backward` chooses masks by the gradients at this step."""
        return False

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights; the loop also calls it after SAM's second backward pass."""
        self.masks.apply_to_gradients_()

    def add_decay(self) -> None:
        """Add the gradient of the method's own penalty, after any score is taken and outside SAM's ascent.

        Raises:
            RuntimeError: the hook on the optimizer makes this call already.
        """
        self._check_caller()
        self._decay_is_due = False
        if type(self.parameterization) is not Plain:  # plain weights have no penalty and masked gradients
            self.parameterization.add_decay()
            self.mask_gradients()

    def after_step(self) -> None:
        """Project the weights onto the mask.

        Raises:
            RuntimeError: `add_decay` was not called, or a step was taken although `after_backward` returned
                False.
        """
        self._check_step_was_due()
        self.masks.apply_to_weights_()
        self._nonzero.refresh(self.masks.weights.values())

    def on_epoch_end(self, *, train_accuracy: float) -> None:
        """Called after each epoch.

        Args:
            train_accuracy: fraction of the training images classified correctly, in [0, 1].
        """

    def on_end(self) -> None:
        """Called after the last step."""
        self._warn_of_new_layers()


@register("dense")
@dataclass
class Dense(Sparsifier):
    """No sparsity: every weight stays on."""

    prunes: ClassVar[bool] = False

    def _warn_of_new_layers(self) -> None:
        """Only where masks are set."""
        if self.masks.active:
            super()._warn_of_new_layers()
