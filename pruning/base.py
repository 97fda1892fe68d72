"""The life of a sparsifier: what a training loop calls, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from .masks import MaskSet
from .parameterization import Plain
from .registry import register_in
from .scores import check_sparsity
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
    """Decides which weights are on; this base leaves all on. Fields are hyperparameters, nothing else.

    A loop calls `attach` before it makes the optimizer, `initialize` before the first step, `on_epoch_start`
    at each epoch (not again after a resume inside one), `after_backward`, `add_decay` and `after_step` around
    each optimizer step, `on_epoch_end` after each epoch and `on_end` after the last.
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
        """Parametrize the model and choose the layers, before the optimizer is made.

        Args:
            model: on its device, and trained in place; random masks are set here already.
            total_epochs: of the whole training.
            steps_per_epoch: calls of `after_backward` in an epoch; RigL and STR's ramp need it.
            seed: of the masks drawn at random; the same on every rank.
            parameterization: `Product` for m * w and Sign-In; None for plain weights.

        Raises:
            ValueError: an unfit model, or a parameterization beside a method that has its own.
        """
        self.model, self.seed = model, seed
        self.total_epochs, self.steps_per_epoch = total_epochs, steps_per_epoch
        self.parameterization = self._parameterize(parameterization or Plain())
        self.parameterization.attach(model, total_epochs=total_epochs)
        self.masks = MaskSet(prunable_weights(model, getattr(self, "exclude", ())))
        self._prepare()

    def _parameterize(self, wanted: Plain) -> Plain:
        if self.reparametrizes and type(wanted) is not Plain:
            raise ValueError(f"{type(self).__name__} parametrizes weights itself: use parameterization=plain")
        return wanted

    def _prepare(self) -> None:
        """Get ready once the weights are known."""

    @property
    def total_steps(self) -> int:
        """Calls of `after_backward` over the whole training. Raises ValueError where nobody said."""
        if self.steps_per_epoch is None:
            raise ValueError(f"{type(self).__name__} plans by steps: attach with steps_per_epoch=len(loader)")
        return self.total_epochs * self.steps_per_epoch

    def param_groups(self, params: Iterable) -> list[dict[str, Any]]:
        """Optimizer groups in which the method's own parameters have the weight decay that it wants.

        Args:
            params: what an optimizer takes, parameters or groups; every other key of a group is kept.
        """
        params = list(params)
        groups = params if params and isinstance(params[0], dict) else [{"params": params}]
        wanted = {id(p): decay for p, decay in self.weight_decays().items()}
        found = []
        for group in groups:
            parts: dict[float | None, list] = {None: []}
            members = group["params"]
            for p in [members] if isinstance(members, Tensor) else members:
                tensor = p[1] if isinstance(p, tuple) else p  # torch takes (name, parameter) too
                parts.setdefault(wanted.get(id(tensor)), []).append(p)
            for decay, own in parts.items():
                if own or len(parts) == 1:
                    found.append(
                        {**group, "params": own, **({} if decay is None else {"weight_decay": decay})}
                    )
        return found

    def weight_decays(self) -> dict[Tensor, float]:
        """Parameters whose weight decay the optimizer must not choose -> what it is."""
        return self.parameterization.weight_decays()

    def initialize(self, batches: Iterable = (), loss_fn: Callable | None = None) -> None:
        """Prune at initialisation, from batches of (inputs, targets). After DDP, before step 0."""

    def on_epoch_start(self, epoch: int, optimizer: Optimizer) -> None:
        """Change phases at epoch `epoch`, counted from 0."""
        self.parameterization.on_epoch_start(epoch, optimizer)

    def after_backward(self, step: int, optimizer: Optimizer) -> bool:
        """Use the dense gradients, then mask them. False: no optimizer step follows in this iteration."""
        self.mask_gradients()
        return True

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights; SAM's second pass calls it too."""
        self.masks.apply_to_gradients_()

    def add_decay(self) -> None:
        """Add the gradient of the method's own penalty, after any score is taken and outside SAM's ascent."""
        if type(self.parameterization) is not Plain:  # which has none: the gradients are masked already
            self.parameterization.add_decay()
            self.mask_gradients()

    def after_step(self) -> None:
        """Project the weights onto the mask."""
        self.masks.apply_to_weights_()

    def on_epoch_end(self, *, train_accuracy: float) -> None:
        """Hear how the epoch went: the share of training images classified right, in [0, 1]."""

    def on_end(self) -> None:
        """Finish after the last step."""

    def kept(self) -> dict[str, Tensor]:
        """Name -> bool, True where a weight is on."""
        return self.masks.kept()

    def margins(self) -> dict[str, Tensor]:
        """Name -> how far each weight is above its threshold, of methods that prune by one; else nothing."""
        return {}

    def counts(self) -> Iterator[tuple[str, int, int]]:
        """(name, kept, total) of each prunable weight."""
        return self.masks.counts()

    def achieved_sparsity(self) -> float:
        """Pruned share of all prunable weights; biases and norm layers are not counted."""
        kept, total = (sum(column) for column in list(zip(*self.counts(), strict=True))[1:])
        return 1 - kept / total

    def stats(self) -> dict[str, Any]:
        """Numbers for the epoch's record: here the overall sparsity and the kept count."""
        counts = list(self.counts())
        kept, total = (sum(column) for column in list(zip(*counts, strict=True))[1:])
        return {"sparsity": 1 - kept / total, "kept": kept}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain values."""
        return {"masks": self.masks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, after `attach`."""
        self.masks.load_state_dict(state["masks"])


@register("dense")
@dataclass
class Dense(Sparsifier):
    """No sparsity: every weight stays on."""


@dataclass
class Masked(Sparsifier):
    """Base of the methods that prune to a target.

    Args:
        sparsity: target share of pruned weights among the prunable ones, in [0, 1).
        exclude: globs of weights to keep dense, such as "conv1.weight"; they do not count towards the target
            either.
    """

    sparsity: float
    exclude: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError on a target outside [0, 1)."""
        check_sparsity(self.sparsity)

    def _prune(self, kept: Mapping[str, Tensor], optimizer: Optimizer | None = None) -> None:
        """Take new masks and put weights and their optimizer state to rest accordingly."""
        self.masks.set(kept)
        self.masks.apply_to_weights_()
        if optimizer is not None:
            self.masks.apply_to_optimizer_(optimizer)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self.masks.weights.items()}
