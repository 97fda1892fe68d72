"""The life cycle of a sparsifier: what a training loop calls, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import (
    check_attached,
    check_before_parametrizing,
    check_counts,
    check_globs,
    check_integer,
    check_model,
    check_options,
    check_separate,
    check_takes_masks,
    tied_places,
    unwrapped,
    warn_at_caller,
    warn_of_empty_layers,
    warn_of_low_coverage,
)
from .groups import split_by_weight_decay
from .hook import OptimizerHook, check_hook
from .inspection import Inspection
from .loop_checks import LoopChecks
from .masks import MaskSet
from .parameterization import Plain
from .prunable import as_list, prunable_weights
from .registry import register_in
from .saved_state import SavedState
from .undo import undone_on_error
from .unpruned import Unpruned
from .weights import NonzeroCounts, Weight

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
class Sparsifier(LoopChecks, Inspection, SavedState):
    """Decides which weights are on; this base class keeps all of them. Fields are hyperparameters only.

    A loop calls `attach` before it creates the optimizer, `initialize` before the first step,
    `on_epoch_start` at each epoch (not again after a resume inside one), `after_backward`, `add_decay` and
    `after_step` around each optimizer step, `on_epoch_end` after each epoch and `on_end` after the last.
    """

    def __post_init__(self) -> None:
        """Raise ValueError on values of another type than a field's."""
        check_options(self)

    _defers_masks = False  # until nothing in `attach` can fail any more; without annotation: no field

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        total_epochs: int,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        parameterization: Plain | None = None,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        masks: Mapping[str, Tensor] | None = None,
        sparsities: Mapping[str, float] | None = None,
    ) -> None:
        """Parametrize the model and find its prunable weights, before the optimizer is created.

        Args:
            model: the model, on its device; it is trained in place. Random masks are set by this call.
            optimizer: the optimizer of these weights, for methods that do not parametrize: the call then
                ends with `hook(optimizer)`.
            total_epochs: number of epochs of the entire training.
            steps_per_epoch: optimizer steps in an epoch; required by methods with a schedule in steps.
            seed: the seed of random masks; the same on every rank.
            parameterization: `Product` for m * w and Sign-In; None for plain weights.
            include: globs of further parameters to prune, such as "embed.weight"; see `prunable_weights`.
            exclude: globs of weights that the sparsifier does not touch; a method's own field `exclude` keeps
                weights dense that are still parametrized.
            masks: name -> bool, True where a weight is kept: used instead of the method's first masks, by
                methods that start with masks and by `Dense`, which then trains with fixed masks.
            sparsities: glob -> sparsity of the weights that it matches, each by itself; the method's own
                `sparsity` holds for the others. The first glob that matches counts.

        Raises:
            TypeError: the model is not a module, or the parameterization not an instance of `Plain`.
            ValueError: the model does not fit, `total_epochs` or `steps_per_epoch` is not a positive
                integer, or a parameterization is given to a method with its own. The model and the sparsifier
                are then unchanged.
        """
        check_attached(model, parameterization, Plain)
        replaces = self.reparametrizes or type(parameterization or Plain()) is not Plain
        if replaces and optimizer is not None:
            raise ValueError(
                f"{self._name_of(parameterization)} replaces parameters: call attach(model, ...), create the "
                "optimizer from sparsifier.param_groups(model.parameters()), then call hook(optimizer)"
            )
        check_counts(total_epochs, steps_per_epoch)
        former = self.__dict__.get("_hook")
        weights_before = self.masks.weights if former is not None else {}
        with undone_on_error(self, model):
            self.model, self.seed, self.step = model, check_integer("seed", seed), 0
            self.total_epochs, self.steps_per_epoch = total_epochs, steps_per_epoch
            self._include, self._exclude = check_globs("include", include), check_globs("exclude", exclude)
            self._expect_first_step()
            self.parameterization = self._parameterize(parameterization or Plain())
            weights = self._parametrize_and_find()
            self.masks, self._nonzero = MaskSet(weights, model), NonzeroCounts()
            self._ties = tied_places(model, weights)
            self._known_layers = set(self._not_covered())
            self._set_layer_sparsities(sparsities or {})
            self._check_layers()
            if optimizer is not None:
                check_hook(self, optimizer)  # before anything is pruned
            self._defers_masks = True
            self._on_attach()
            if masks is not None:
                self._set_given_masks(masks)
            if optimizer is not None:
                self.hook(optimizer)
            self._defers_masks = False
        if self.masks.active:
            self._unpruned = Unpruned(self.masks)
            self._apply_masks()
            self._unpruned.note_versions()
        if former is not None:
            former.remove()
            kept = {id(p) for weight in self.masks.weights.values() for p in weight.parameters}
            if not any(id(p) in kept for weight in weights_before.values() for p in weight.parameters):
                warn_at_caller(
                    f"{type(self).__name__} was detached from the model of an earlier attach, whose pruned "
                    "weights are trained from now on: create one sparsifier per model"
                )

    def _parametrize_and_find(self) -> dict[str, Weight]:
        """The prunable weights, after the parameterization was put on the model."""
        model, globs = self.model, {"include": self._include, "exclude": self._exclude}
        if type(self.parameterization) is not Plain:
            check_before_parametrizing(model, self._name_of(self.parameterization))
        given = {name: patterns for name, patterns in globs.items() if patterns}
        self.parameterization.attach(model, total_epochs=self.total_epochs, **given)
        own = as_list(getattr(self, "exclude", ()))
        weights = prunable_weights(model, [*self._exclude, *own], self._include)
        if not self.reparametrizes:
            check_takes_masks(weights)
        check_separate(weights)
        if not isinstance(self, Dense):
            warn_of_low_coverage(model, prunable_weights(model, **globs, computed=own))
        return weights

    def _set_given_masks(self, masks: Mapping[str, Tensor]) -> None:
        if not self.masks.active and not isinstance(self, Dense):
            raise ValueError(
                f"{type(self).__name__} computes its masks during training; masks= is not supported: pass "
                "masks to Dense, RandomPruning, RigL or another method that starts with masks"
            )
        if not isinstance(masks, Mapping):
            raise ValueError(f"masks is a dict, name -> bool tensor, got {type(masks).__name__}")
        self.set_masks(masks)

    def hook(self, optimizer: Optimizer) -> OptimizerHook:
        """Let `optimizer.step()` call `after_backward`, `add_decay` and `after_step`, see `OptimizerHook`.

        Call it after `attach`; the loop itself then makes only the calls for epochs. The sparsifier's hook
        on another optimizer is removed. The number of steps is part of `state_dict`. Returns the hook, which
        has `remove()`.

        Raises:
            TypeError: `optimizer` is not an optimizer.
            ValueError: the optimizer does not fit, or already has this sparsifier's hook.
        """
        former = self._hook
        if former is not None and former.optimizer is unwrapped(optimizer):
            raise ValueError("this sparsifier already has a hook: call remove() on the first one")
        if self.prunes_at_end and self.steps_per_epoch is None:
            warn_at_caller(
                f"{type(self).__name__} prunes at the end: attach with steps_per_epoch=..., or call "
                "sparsifier.on_end() after the last step"
            )
        self._hook = OptimizerHook(self, optimizer)
        if former is not None:
            former.remove()
        self._announced_to = None
        return self._hook

    def _set_layer_sparsities(self, sparsities: Mapping[str, float]) -> None:
        if sparsities:
            raise ValueError(f"{type(self).__name__} has no target sparsity: omit sparsities")

    def _parameterize(self, requested: Plain) -> Plain:
        if self.reparametrizes and type(requested) is not Plain:
            raise ValueError(f"{type(self).__name__} parametrizes weights itself: use parameterization=plain")
        return requested

    def _on_attach(self) -> None:
        """Called at the end of `attach`, when the weights are known; masks set here are applied after it."""

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
        """Add the gradient of the method's own penalty, after any score is taken and outside SAM's ascent."""
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

    def set_masks(self, masks: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> None:
        """Replace the masks and apply them to the weights and to the optimizer's state.

        Args:
            masks: name -> bool, True where a weight is kept, one for each prunable weight.
            optimizer: the optimizer whose state is zeroed where weights are pruned, so that momentum does not
                move them.

        Raises:
            ValueError: names or shapes differ from the weights'.
            RuntimeError: the ranks of torch.distributed have different masks, or a weight left the model.
        """
        check_model(self.model, self.masks.weights, self._ties)
        self.masks.set(masks)
        warn_of_empty_layers(self.masks.empty())
        if not self._defers_masks:
            self._apply_masks(optimizer)

    def _apply_masks(self, optimizer: Optimizer | None = None) -> None:
        self.masks.apply_to_weights_()
        if optimizer is not None:
            self.masks.apply_to_optimizer_(optimizer)
        self._nonzero.refresh(self.masks.weights.values())


@register("dense")
@dataclass
class Dense(Sparsifier):
    """No sparsity: every weight stays on."""

    def _warn_of_new_layers(self) -> None:
        """Only where masks are set."""
        if self.masks.active:
            super()._warn_of_new_layers()
