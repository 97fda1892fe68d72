"""Checks that a sparsifier makes, at every step, of the loop that calls it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import Ties, check_model, check_not_sharded, check_separate, warn_of_new_layers
from .hook import OptimizerHook
from .masks import MaskSet
from .optimizer_state import share_state
from .optimizers import check_optimizer, warn_of_decay_in_ham
from .parameterization import Plain
from .prunable import as_list, not_covered
from .traits import Traits
from .unpruned import Unpruned


class LoopChecks(Traits):
    """The part of a sparsifier that raises errors if the loop misses or repeats a call.

    Attributes:
        model: the model that the sparsifier is attached to.
        masks: masks of the prunable weights.
        total_epochs: number of epochs of the entire training.
        steps_per_epoch: optimizer steps in an epoch; None if the user has not passed them.
    """

    model: nn.Module
    masks: MaskSet
    total_epochs: int
    steps_per_epoch: int | None
    _hook: OptimizerHook | None
    _include: list[str]
    _exclude: list[str]
    _announced_to: Optimizer | None = None
    _ties: Ties | None = None  # None: unknown, of a pickle of an earlier version
    _known_layers: set[str] | None = None
    _warned_of: tuple[float, int] | None = None
    _unpruned: Unpruned | None = None
    _has_warned = False  # of momentum under an unknown name
    _epoch_before = -1  # the last one that was announced before the present one
    _last_step = -1  # that `_check_step` got; -1: none since `attach` or a loaded state

    def _expect_first_step(self) -> None:
        """Reset what is known of the loop; `attach` calls it."""
        self._hook = None
        self._announced_epoch = self._epoch_before = self._last_step = -1
        self._checked_tensors: tuple[Any, ...] = ()
        self._announced_to: Optimizer | None = None
        self._decay_is_due = self._skips_step = self._was_stepped = False
        self._warned_of, self._has_warned, self._unpruned = None, False, None

    def weight_decays(self) -> dict[Tensor, float]:
        """Parameter -> weight decay, for those whose decay the method sets."""
        return self.parameterization.weight_decays()

    def _name_of(self, parameterization: Plain | None) -> str:
        """The method if it parametrizes weights itself, else the given parameterization; for an error."""
        given = f"parameterization={type(parameterization).__name__}"
        return type(self).__name__ if self.reparametrizes else given

    def _check_layers(self) -> None:
        """Raise ValueError where a prunable weight does not fit the method."""

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Raise unless the sparsifier's weights are the model's and the optimizer trains them.

        It runs automatically at the first `after_backward`, whenever the weights' tensors have changed, and
        after `on_epoch_start`. It warns of layers that were added since `attach`.

        Raises:
            NotAttachedError: `attach` was not called.
            RuntimeError: a weight is no longer a parameter of the model, or other layers share it than
                at `attach`.
            ValueError: the optimizer does not train a weight, or `fully_shard` has split weights that the
                method parametrizes.
        """
        weights = self.masks.weights
        check_model(self.model, weights, self._ties)
        check_separate(weights)
        self._warn_of_new_layers()
        if type(self.parameterization) is not Plain:
            check_not_sharded(self.model, self._name_of(self.parameterization))
        self._check_layers()
        if optimizer is not None:
            check_optimizer(optimizer, self._trained_tensors())
            self.parameterization.check_optimizer(optimizer)

    def _warn_of_new_layers(self) -> None:
        """Warn, once, about weights that have become prunable since `attach`."""
        if self._known_layers is not None and (new := self._not_covered() - self._known_layers):
            self._known_layers |= new
            warn_of_new_layers(sorted(new))

    def _not_covered(self) -> set[str]:
        """The names of weights that would be prunable, but are not among the sparsifier's."""
        exclude = [*self._exclude, *as_list(getattr(self, "exclude", ()))]
        return not_covered(self.model, self.masks.weights, exclude, self._include)

    def _trained_tensors(self) -> list[tuple[str, Tensor]]:
        own = [(name, p) for name, weight in self.masks.weights.items() for p in weight.parameters]
        return [*own, *((f"{type(self).__name__}'s own parameters", p) for p in self.weight_decays())]

    def _begin_step(self, step: int, optimizer: Optimizer) -> None:
        """The first part of every `after_backward`: check what may have changed since the last one."""
        self._check_caller()
        tensors = tuple(id(p) for weight in self.masks.weights.values() for p in weight.parameters)
        if self._ties:  # of the same parameters in other layers
            tensors += tuple([id(module._parameters.get(attribute)) for module, attribute, _ in self._ties])
        if self._checked_tensors != (id(optimizer), tensors):
            self.check(optimizer)
            if self.acts_on_epochs:
                self._check_announced(optimizer)
            self._announced_to = None
            if self._hook is None and self.has_penalty:
                warn_of_decay_in_ham(optimizer, self.parameterization.decoupled_decay)
            self.masks.apply_to_optimizer_(optimizer)  # it may have trained before
            self._checked_tensors = (id(optimizer), tensors)
            self._unpruned = None
        self._check_epoch(step)
        self._decay_is_due, self._skips_step, self._was_stepped = self.has_penalty, False, True

    def _begin_epoch(self, optimizer: Optimizer) -> Optimizer:
        """The first part of every `on_epoch_start`: check the model and the optimizer.

        Returns:
            The optimizer with the hook, which `optimizer` may wrap; without a hook `optimizer` itself.
        """
        check_model(self.model, self.masks.weights, self._ties)
        self._warn_of_new_layers()
        self._announced_to, self._checked_tensors = optimizer, ()  # the next step checks it
        if self._hook is not None:
            self._check_announced(self._hook.optimizer)
        return optimizer if self._hook is None else self._hook.optimizer

    def _check_announced(self, optimizer: Optimizer) -> None:
        """Raise ValueError if `on_epoch_start` got, and changed the state of, another optimizer."""
        announced = self._announced_to
        if announced is not None and not share_state(announced, optimizer):
            change = ", or call sparsifier.hook(optimizer) to change it" if self._hook is not None else ""
            raise ValueError(
                f"on_epoch_start got the optimizer {type(announced).__name__}, but the optimizer "
                f"{type(optimizer).__name__} trains the pruned weights: pass that one{change}"
            )

    def _check_caller(self) -> None:
        """Raise RuntimeError where the loop makes the calls of the hook a second time."""
        if self._hook is not None and not self._hook.is_active:
            raise RuntimeError(
                "the hook on the optimizer calls after_backward, add_decay and after_step: remove these calls"
            )

    def _check_step(self, step: int) -> None:
        """Raise RuntimeError where steps go back; a method that acts at certain steps calls it."""
        if step < self._last_step:
            raise RuntimeError(
                f"after_backward got step {step} after step {self._last_step}: count optimizer steps over "
                "all epochs, or attach again to start another training"
            )
        self._last_step = step

    def _check_epoch(self, step: int) -> None:
        """Raise RuntimeError if `on_epoch_start` was not called for an epoch that the method acts on."""
        if not self.acts_on_epochs:
            return
        expected = step // self.steps_per_epoch if self.steps_per_epoch else 0
        if self._is_ahead(step):
            raise RuntimeError(
                f"epoch {self._announced_epoch} was announced before step {step}: count epochs from 0, and "
                "call sparsifier.on_epoch_start(epoch, optimizer) at the start of each"
            )
        if self._announced_epoch < min(expected, self.total_epochs - 1):
            name = type(self).__name__ if self.changes_at_epochs else self._name_of(self.parameterization)
            small = f", or steps_per_epoch={self.steps_per_epoch} is too small" if expected else ""
            raise RuntimeError(
                f"{name} requires sparsifier.on_epoch_start(epoch, optimizer) at the start of each epoch; "
                f"it was not called for epoch {expected}{small}"
            )

    def _is_ahead(self, step: int) -> bool:
        """Return True if the announced epoch is later than that of the step, as far as that is known.

        The sparsifier may have been attached in a later epoch. Steps that GradScaler skips are not counted.
        """
        if self.steps_per_epoch is None:
            return step == 0 and (self._epoch_before, self._announced_epoch) == (-1, 1)
        return self._announced_epoch > max(step // self.steps_per_epoch, self._epoch_before + 1)

    def _check_step_was_due(self) -> None:
        """Raise RuntimeError on a step after `after_backward` returned False, or without `add_decay`."""
        if self._skips_step:
            raise RuntimeError(
                "after_backward returned False: take no optimizer step in this iteration, and no after_step"
            )
        if self._decay_is_due:
            raise RuntimeError(
                f"{self._name_of(self.parameterization)} adds a penalty: call sparsifier.add_decay() between "
                "after_backward and optimizer.step()"
            )
