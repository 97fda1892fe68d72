"""The life cycle of a sparsifier: what a training loop calls, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from .groups import split_by_weight_decay
from .masks import MaskSet
from .parameterization import Plain
from .registry import register_in
from .scores import check_sparsity, kept_count
from .weights import prunable_weights

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
class Sparsifier:
    """Decides which weights are on; this base class keeps all of them. Fields are hyperparameters only.

    A loop calls `attach` before it creates the optimizer, `initialize` before the first step,
    `on_epoch_start` at each epoch (not again after a resume inside one), `after_backward`, `add_decay` and
    `after_step` around each optimizer step, `on_epoch_end` after each epoch and `on_end` after the last.
    """

    reparametrizes: ClassVar[bool] = False
    """Does the method itself decide how weights are parameterized?"""

    trains_factors: ClassVar[bool] = False
    """Does the method train weights as products m * w?"""

    adds_decay: ClassVar[bool] = False
    """Does the method add decay to gradients that HAM reads where it acts on the method's parameters?"""

    @property
    def redraws_weights(self) -> bool:
        """Must the initial weights come from a random stream other than the usual one?"""
        return False

    @property
    def depends_on(self) -> str:
        """The experiment whose finished run of the same seed the method needs; "" where it needs none."""
        return ""

    @property
    def needs_calibration_runs(self) -> bool:
        """Must several runs be trained to find the method's hyperparameters?"""
        return False

    def check(self, *, lr: float, momentum: float | None) -> None:
        """Raise ValueError where the method cannot work with the optimizer.

        Args:
            lr: peak learning rate.
            momentum: of SGD; None for other optimizers.
        """

    def resolve(self, folder_of: Callable[[str], str], *, resumed: bool) -> Sparsifier:
        """The sparsifier with every reference to another run replaced by that run's folder.

        Args:
            folder_of: experiment -> folder of its run of the same seed.
            resumed: the state comes by `load_state_dict`; nothing else is read.
        """
        return self

    def attach(
        self,
        model: nn.Module,
        *,
        total_epochs: int,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        parameterization: Plain | None = None,
    ) -> None:
        """Parametrize the model and find its prunable weights, before the optimizer is created.

        Args:
            model: on its device; it is trained in place. Random masks are set by this call.
            total_epochs: of the entire training.
            steps_per_epoch: calls of `after_backward` in an epoch; RigL and STR's ramp need it.
            seed: of the masks drawn at random; the same on every rank.
            parameterization: `Product` for m * w and Sign-In; None for plain weights.

        Raises:
            ValueError: the model does not fit, or a parameterization is given to a method with its own.
        """
        self.model, self.seed = model, seed
        self.total_epochs, self.steps_per_epoch = total_epochs, steps_per_epoch
        self.parameterization = self._parameterize(parameterization or Plain())
        self.parameterization.attach(model, total_epochs=total_epochs)
        self.masks = MaskSet(prunable_weights(model, getattr(self, "exclude", ())))
        self._on_attach()

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
        """Change phases at epoch `epoch`, counted from 0."""
        self.parameterization.on_epoch_start(epoch, optimizer)

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Use the dense gradients, then mask them. False: no optimizer step follows in this iteration."""
        self.mask_gradients()
        return True

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights; the loop also calls it after SAM's second backward pass."""
        self.masks.apply_to_gradients_()

    def add_decay(self) -> None:
        """Add the gradient of the method's own penalty, after any score is taken and outside SAM's ascent."""
        if type(self.parameterization) is not Plain:  # plain weights have no penalty and masked gradients
            self.parameterization.add_decay()
            self.mask_gradients()

    def after_step(self) -> None:
        """Project the weights onto the mask."""
        self.masks.apply_to_weights_()

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
        """(name, kept, total) of each prunable weight."""
        return self.masks.counts()

    def achieved_sparsity(self) -> float:
        """Pruned fraction of all prunable weights; biases and norm layers are not counted."""
        kept, total = self._kept_and_total()
        return 1 - kept / total

    def _kept_and_total(self) -> tuple[int, int]:
        counts = list(self.counts())
        return sum(kept for _, kept, _ in counts), sum(total for _, _, total in counts)

    def stats(self) -> dict[str, Any]:
        """Numbers for the epoch's record: here the overall sparsity and the kept count."""
        kept, total = self._kept_and_total()
        return {"sparsity": 1 - kept / total, "kept": kept}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain values."""
        return {"masks": self.masks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, after `attach`."""
        self.masks.load_state_dict(state["masks"])


@register("dense")
@dataclass
class Dense(Sparsifier):
    """No sparsity: every weight stays on."""


@dataclass
class TargetSparsity(Sparsifier):
    """Base class of the methods that prune to a target.

    Args:
        sparsity: fraction of the prunable weights to prune, in [0, 1).
        exclude: globs of weights to keep dense, such as "conv1.weight"; they do not count towards the target
            either.
    """

    sparsity: float
    exclude: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError on a target outside [0, 1)."""
        check_sparsity(self.sparsity)

    def _set_masks(self, masks: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> None:
        """Replace the masks and apply them to the weights and to the optimizer's state."""
        self.masks.set(masks)
        self.masks.apply_to_weights_()
        if optimizer is not None:
            self.masks.apply_to_optimizer_(optimizer)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self.masks.weights.items()}

    def _kept_target(self) -> int:
        """How many weights to keep, over all layers together."""
        return kept_count(sum(w.numel() for w in self.masks.weights.values()), self.sparsity)
