"""How a sparsifier gets its model, its weights, its masks and its hook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import (
    check_attached,
    check_before_parametrizing,
    check_model,
    check_separate,
    check_takes_masks,
    tied_places,
    warn_at_caller,
    warn_of_empty_layers,
    warn_of_low_coverage,
)
from .hook import OptimizerHook, check_hook
from .loop_checks import LoopChecks
from .masks import MaskSet
from .optimizers import unwrapped
from .options import check_counts, check_globs, check_integer
from .parameterization import Plain
from .prunable import as_list, prunable_weights
from .undo import undone_on_error
from .unpruned import Unpruned
from .weights import NonzeroCounts, Weight

if TYPE_CHECKING:
    from .base import Sparsifier


class Attaching(LoopChecks):
    """The part of a sparsifier that attaches it to a model and to an optimizer, and sets its masks.

    Attributes:
        seed: the seed of random masks.
        step: optimizer steps so far, which the hook counts.
    """

    seed: int
    step: int
    _nonzero: NonzeroCounts

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
                check_hook(cast("Sparsifier", self), optimizer)  # before anything is pruned
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
        if self.prunes:
            warn_of_low_coverage(model, prunable_weights(model, **globs, computed=own))
        return weights

    def _set_given_masks(self, masks: Mapping[str, Tensor]) -> None:
        if not self.masks.active and self.prunes:
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
        self._hook = OptimizerHook(cast("Sparsifier", self), optimizer)
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
