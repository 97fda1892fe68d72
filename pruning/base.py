"""The life cycle of a sparsifier: what a training loop calls, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .checks import (
    NotAttachedError,
    check_before_parametrizing,
    check_model,
    check_not_sharded,
    check_optimizer,
    check_takes_masks,
    warn_at_caller,
    warn_of_empty_layers,
    warn_of_low_coverage,
)
from .groups import split_by_weight_decay
from .hook import OptimizerHook
from .masks import MaskSet
from .parameterization import Plain
from .project import project_
from .prunable import prunable_weights
from .registry import register_in
from .report import is_terminal, report
from .traits import Traits
from .weights import NonzeroCounts

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
class Sparsifier(Traits):
    """Decides which weights are on; this base class keeps all of them. Fields are hyperparameters only.

    A loop calls `attach` before it creates the optimizer, `initialize` before the first step,
    `on_epoch_start` at each epoch (not again after a resume inside one), `after_backward`, `add_decay` and
    `after_step` around each optimizer step, `on_epoch_end` after each epoch and `on_end` after the last.
    """

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
            model: on its device; it is trained in place. Random masks are set by this call.
            optimizer: of these weights, for methods that do not parametrize: the call then ends with
                `hook(optimizer)`.
            total_epochs: of the entire training.
            steps_per_epoch: optimizer steps in an epoch; methods that plan by steps need it.
            seed: of the masks drawn at random; the same on every rank.
            parameterization: `Product` for m * w and Sign-In; None for plain weights.
            include: globs of further parameters to prune, such as "embed.weight"; see `prunable_weights`.
            exclude: globs of weights that the sparsifier leaves alone; a method's own field `exclude` keeps
                weights dense that are still parametrized.
            masks: name -> bool, True where a weight is kept: these instead of the method's first masks, for
                methods that start with masks and for `Dense`, which then trains fixed masks.
            sparsities: glob -> sparsity of the weights that it matches, each by itself; the method's own
                `sparsity` holds for the others. The first glob that matches counts.

        Raises:
            ValueError: the model does not fit, or a parameterization is given to a method with its own.
        """
        replaces = self.reparametrizes or type(parameterization or Plain()) is not Plain
        if replaces and optimizer is not None:
            raise ValueError(
                f"{self._name_of(parameterization)} replaces parameters: call attach(model, ...), create the "
                "optimizer from sparsifier.param_groups(model.parameters()), then call hook(optimizer)"
            )
        if (hook := self.__dict__.get("_hook")) is not None:
            hook.remove()
        self.model, self.seed, self.step = model, seed, 0
        self.total_epochs, self.steps_per_epoch = total_epochs, steps_per_epoch
        self._include, self._exclude = ([g] if isinstance(g, str) else list(g) for g in (include, exclude))
        self._announced_epoch, self._decay_is_due = -1, False
        self._skips_step = self._was_stepped = False
        self._hook: OptimizerHook | None = None
        self._checked_tensors: tuple[Any, ...] = ()
        self.parameterization = self._parameterize(parameterization or Plain())
        if type(self.parameterization) is not Plain:
            check_before_parametrizing(model, self._name_of(self.parameterization))
        globs = {"include": self._include, "exclude": self._exclude}
        self.parameterization.attach(
            model, total_epochs=total_epochs, **{name: given for name, given in globs.items() if given}
        )
        own = [*self._exclude, *getattr(self, "exclude", ())]
        weights = prunable_weights(model, own, self._include)
        if not self.reparametrizes:
            check_takes_masks(weights)
        if type(self) is not Dense:
            warn_of_low_coverage(model, prunable_weights(model, self._exclude, self._include))
        self.masks, self._nonzero = MaskSet(weights, model), NonzeroCounts()
        self._set_layer_sparsities(sparsities or {})
        self._check_layers()
        if optimizer is not None:
            self.check(optimizer)  # before anything is pruned
        initial = [(p, p.detach().clone()) for w in weights.values() for p in w.parameters] if masks else []
        self._on_attach()
        if masks is not None:
            self._set_given_masks(masks, initial)
        if optimizer is not None:
            self.hook(optimizer)

    def _name_of(self, parameterization: Plain | None) -> str:
        """For an error: the method, where it parametrizes weights itself, or the given parameterization."""
        return (
            type(self).__name__
            if self.reparametrizes
            else f"parameterization={type(parameterization).__name__}"
        )

    @torch.no_grad()
    def _set_given_masks(self, masks: Mapping[str, Tensor], initial: list[tuple[Tensor, Tensor]]) -> None:
        if not self.masks.active and type(self) is not Dense:
            raise ValueError(
                f"{type(self).__name__} finds its masks during the training: give them to Dense, "
                "RandomPruning, RigL or another method that starts with masks"
            )
        for parameter, value in initial:  # the method's own masks may have pruned others
            parameter.copy_(value)
        self.set_masks(masks)

    def hook(self, optimizer: Optimizer) -> OptimizerHook:
        """Let `optimizer.step()` call `after_backward`, `add_decay` and `after_step`, see `OptimizerHook`.

        Call it once, after `attach`; of the explicit calls only those for epochs are left. The number of
        steps is part of `state_dict`. Returns the hook, which has `remove()`.

        Raises:
            TypeError: it is not an optimizer.
            ValueError: the optimizer does not fit, or there is a hook already.
        """
        if self._hook is not None:
            raise ValueError("this sparsifier has a hook already: call remove() on the first one")
        if self.prunes_at_end and self.steps_per_epoch is None:
            warn_at_caller(
                f"{type(self).__name__} prunes at the end: attach with steps_per_epoch=..., or call "
                "sparsifier.on_end() after the last step"
            )
        self._hook = OptimizerHook(self, optimizer)
        return self._hook

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Raise unless the sparsifier's weights are the model's and the optimizer trains them.

        It runs by itself at the first `after_backward` and whenever the model's tensors have changed.

        Raises:
            NotAttachedError: `attach` was not called.
            RuntimeError: a weight is no longer a parameter of the model.
            ValueError: the optimizer does not train a weight, or `fully_shard` has split weights that the
                method parametrizes.
        """
        check_model(self.model, self.masks.weights)
        if type(self.parameterization) is not Plain:
            check_not_sharded(self.model, self._name_of(self.parameterization))
        self._check_layers()
        if optimizer is not None:
            check_optimizer(optimizer, self._trained_tensors())

    def _trained_tensors(self) -> list[tuple[str, Tensor]]:
        own = [(name, p) for name, weight in self.masks.weights.items() for p in weight.parameters]
        return [*own, *((f"{type(self).__name__}'s own parameters", p) for p in self.weight_decays())]

    def _begin_step(self, step: int, optimizer: Optimizer) -> None:
        """What every `after_backward` does first: check what may have changed since the last one."""
        self._check_caller()
        tensors = tuple(id(p) for weight in self.masks.weights.values() for p in weight.parameters)
        if self._checked_tensors != (id(optimizer), tensors):
            self.check(optimizer)
            self._checked_tensors = (id(optimizer), tensors)
        self._check_epoch(step)
        self._decay_is_due, self._skips_step, self._was_stepped = self.has_penalty, False, True

    def _check_caller(self) -> None:
        """Raise RuntimeError where the loop makes the calls of the hook a second time."""
        if self._hook is not None and not self._hook.is_active:
            raise RuntimeError(
                "the hook on the optimizer calls after_backward, add_decay and after_step: remove these calls"
            )

    def _check_epoch(self, step: int) -> None:
        """Raise RuntimeError where a method that acts at epochs is not told of them."""
        if not self.acts_on_epochs:
            return
        expected = step // self.steps_per_epoch if self.steps_per_epoch else 0
        if self._announced_epoch < min(expected, self.total_epochs - 1):
            name = type(self).__name__ if self.changes_at_epochs else self._name_of(self.parameterization)
            small = f", or steps_per_epoch={self.steps_per_epoch} is too small" if expected else ""
            raise RuntimeError(
                f"{name} acts on epochs: call sparsifier.on_epoch_start(epoch, optimizer) at the start of "
                f"each; epoch {expected} was not announced{small}"
            )

    def _set_layer_sparsities(self, sparsities: Mapping[str, float]) -> None:
        if sparsities:
            raise ValueError(f"{type(self).__name__} has no target sparsity: leave out sparsities")

    def _check_layers(self) -> None:
        """Raise ValueError where a prunable weight does not fit the method."""

    def _parameterize(self, requested: Plain) -> Plain:
        if self.reparametrizes and type(requested) is not Plain:
            raise ValueError(f"{type(self).__name__} parametrizes weights itself: use parameterization=plain")
        return requested

    def _on_attach(self) -> None:
        """Called at the end of `attach`, when the weights are known."""

    @property
    def total_steps(self) -> int:
        """Calls of `after_backward` over the training. Raises ValueError without `steps_per_epoch`."""
        if self.steps_per_epoch is None:
            raise ValueError(f"{type(self).__name__} plans by steps: attach with steps_per_epoch=len(loader)")
        return self.total_epochs * self.steps_per_epoch

    def param_groups(self, params: Iterable[Any]) -> list[dict[str, Any]]:
        """Optimizer groups in which the method's own parameters have the weight decay that it sets.

        Args:
            params: what an optimizer takes, parameters or groups; every other key of a group is kept.
        """
        return split_by_weight_decay(params, self.weight_decays())

    def weight_decays(self) -> dict[Tensor, float]:
        """Parameter -> weight decay, for those whose decay the method sets."""
        return self.parameterization.weight_decays()

    def initialize(self, batches: Iterable[Any] = (), loss_fn: Callable[..., Tensor] | None = None) -> None:
        """Prune at initialization, from batches of (inputs, targets). After DDP, before step 0."""

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Change phases at epoch `epoch`, counted from 0.

        Raises:
            RuntimeError: a weight is no longer a parameter of the model.
        """
        check_model(self.model, self.masks.weights)
        self._announced_epoch = epoch
        self.parameterization.on_epoch_start(epoch, optimizer)
        self._nonzero.refresh(self.masks.weights.values())

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Use the dense gradients, then mask them. False: no optimizer step follows in this iteration.

        A method that overrides this calls it, or `_begin_step` where it needs the dense gradients first.

        Args:
            step: optimizer steps before this one.
            optimizer: of the training.

        Raises:
            ValueError: the optimizer does not train a weight.
            RuntimeError: a weight left the model, or an epoch that the method acts on was not announced.
        """
        self._begin_step(step, optimizer)
        self.mask_gradients()
        return True

    def uses_gradients(self, step: int) -> bool:
        """Does `after_backward` choose masks by the gradients at this step?"""
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
            RuntimeError: `add_decay` was left out, or a step was taken where `after_backward` returned False.
        """
        if self._skips_step:
            raise RuntimeError(
                "after_backward returned False: take no optimizer step in this iteration, and no after_step"
            )
        if self._decay_is_due:
            raise RuntimeError(
                f"{self._name_of(self.parameterization)} adds a penalty: call sparsifier.add_decay() between "
                "after_backward and optimizer.step()"
            )
        self.masks.apply_to_weights_()
        self._nonzero.refresh(self.masks.weights.values())

    def on_epoch_end(self, *, train_accuracy: float) -> None:
        """Called after each epoch.

        Args:
            train_accuracy: fraction of the training images classified correctly, in [0, 1].
        """

    def on_end(self) -> None:
        """Called after the last step."""

    def kept(self) -> dict[str, Tensor]:
        """Name -> mask of each prunable weight, True where it is on."""
        return self.masks.kept()

    def margins(self) -> dict[str, Tensor]:
        """Name -> how far each weight is above its threshold; empty for methods without thresholds."""
        return {}

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, entries that are not zero, total) of each prunable weight of the model, as it is now.

        Of entire weights where `fully_shard` splits them. Then every rank calls it, or one alone after a
        step: a rank waits for the others where a weight has changed since `after_step` or `set_masks`.

        Raises:
            RuntimeError: a weight is no longer a parameter of the model, or has no values.
        """
        weights = self.masks.weights
        check_model(self.model, weights)
        for name, weight in weights.items():
            if any(p.is_meta for p in weight.parameters):
                raise RuntimeError(
                    f"{name} is on the meta device and has no values: call model.to_empty first"
                )
        for (name, weight), kept in zip(weights.items(), self._nonzero.read(weights.values()), strict=True):
            yield name, kept, weight.numel()

    def achieved_sparsity(self) -> float:
        """Fraction of zeros in all prunable weights of the model; biases and norm layers are not counted."""
        kept, total = self._kept_and_total()
        return 1 - kept / total

    def _kept_and_total(self) -> tuple[int, int]:
        counts = list(self.counts())
        return sum(kept for _, kept, _ in counts), sum(total for _, _, total in counts)

    def stats(self) -> dict[str, Any]:
        """Numbers for the epoch's record: here the overall sparsity and the kept count."""
        kept, total = self._kept_and_total()
        return {"sparsity": 1 - kept / total, "kept": kept}

    def set_masks(self, masks: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> None:
        """Replace the masks and apply them to the weights and to the optimizer's state.

        Args:
            masks: name -> bool, True where a weight is kept, one for each prunable weight.
            optimizer: its state is zeroed where weights are pruned, so that momentum moves none of them.

        Raises:
            ValueError: names or shapes differ from the weights'.
            RuntimeError: the ranks of torch.distributed have different masks, or a weight left the model.
        """
        check_model(self.model, self.masks.weights)
        self.masks.set(masks)
        self.masks.apply_to_weights_()
        if optimizer is not None:
            self.masks.apply_to_optimizer_(optimizer)
        self._nonzero.refresh(self.masks.weights.values())
        warn_of_empty_layers(self.masks.empty())

    def report(self, input_shape: Sequence[int] | None = None) -> str:
        """A table of the layers, see `pruning.report.report`; `print(sparsifier)` shows it too.

        Args:
            input_shape: with a batch dimension of 1, such as (1, 3, 224, 224): adds FLOPs and bytes.
        """
        return report(self, input_shape)

    def __str__(self) -> str:
        return report(self, bold=is_terminal()) if "model" in self.__dict__ else repr(self)

    def project_(self, other_model: nn.Module) -> None:
        """Prune the same weights of another model of the same structure, see `pruning.project.project_`.

        Args:
            other_model: such as an average of the weights or a deployed copy; it is changed in place.

        Raises:
            ValueError: names or shapes of weights differ, or a weight takes no mask.
        """
        project_(self, other_model)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain values; DTensors where weights are DTensors.

        `checkpoint.load_distributed` reads it from a checkpoint of torch.distributed.checkpoint.
        """
        state: dict[str, Any] = {
            "masks": self.masks.state_dict(),
            "active": self.masks.active,
            "epoch": self._announced_epoch,
        }
        counts_steps = self._hook is not None or self.step > 0
        return {**state, "step": self.step} if counts_steps else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, after `attach`.

        Raises:
            ValueError: it lacks the masks that were on, as `torch.distributed.checkpoint.load` leaves it.
        """
        if "masks" not in state:
            raise ValueError("the state is not that of a sparsifier: it comes from sparsifier.state_dict()")
        if state.get("active", False) and not any(state["masks"].values()):
            raise ValueError(
                "the state has no masks, but they were on: read a checkpoint of torch.distributed.checkpoint "
                "by pruning.checkpoint.load_distributed(sparsifier, folder)"
            )
        self.masks.load_state_dict(state["masks"])
        self._announced_epoch = state.get(
            "epoch", self.total_epochs
        )  # not in states of version 0.5 and earlier
        self.step = state.get("step", -1)  # -1: unknown, saved by a loop with explicit calls

    def __getattr__(self, name: str) -> Any:
        """Tell what is missing where a method is used before `attach`, which sets all attributes."""
        if name.startswith("__") or "model" in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        raise NotAttachedError(f"{type(self).__name__} is not attached: call attach(model, ...) first")

    def __getstate__(self) -> dict[str, Any]:
        """What a copy and a pickle hold: all but the hook, which stays on the original's optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "_hook"} | (
            {"_hook": None, "_checked_tensors": ()} if "_hook" in self.__dict__ else {}
        )


@register("dense")
@dataclass
class Dense(Sparsifier):
    """No sparsity: every weight stays on."""
