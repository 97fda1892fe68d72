"""Static properties of a method, for the loop that trains it and for the run that is built around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

from .parameterization import Plain


class Traits:
    """Properties of a method; each has a default that a method overrides."""

    parameterization: Plain

    prunes: ClassVar[bool] = True
    """False if only masks that the user gives prune weights."""

    reparametrizes: ClassVar[bool] = False
    """True if the method parametrizes weights itself."""

    trains_factors: ClassVar[bool] = False
    """True if the method trains weights as products m * w."""

    changes_at_epochs: ClassVar[bool] = False
    """True if `on_epoch_start` changes masks or phases, so that a loop must call it."""

    prunes_at_end: ClassVar[bool] = False
    """True if `on_end` prunes, so that a loop must call it."""

    @property
    def acts_on_epochs(self) -> bool:
        """True if a loop must call `on_epoch_start`, for the method or for its parameterization."""
        return self.changes_at_epochs or self.parameterization.changes_at_epochs

    @property
    def has_penalty(self) -> bool:
        """True if a loop must call `add_decay`."""
        return self.parameterization.has_penalty

    @property
    def redraws_weights(self) -> bool:
        """True if the initial weights must come from a random stream other than the usual one."""
        return False

    @property
    def depends_on(self) -> str:
        """The experiment whose finished run of the same seed the method needs; "" where it needs none."""
        return ""

    @property
    def needs_calibration_runs(self) -> bool:
        """True if several runs must be trained to find the method's hyperparameters."""
        return False

    def check_rates(self, *, lr: float, momentum: float | None) -> None:
        """Raise ValueError where the method cannot work with the optimizer's hyperparameters.

        Args:
            lr: peak learning rate.
            momentum: momentum of SGD; None for other optimizers.
        """

    def resolve(self, folder_of: Callable[[str], str], *, resumed: bool) -> Self:
        """The sparsifier with every reference to another run replaced by that run's folder.

        Args:
            folder_of: experiment -> folder of its run of the same seed.
            resumed: True if the state is restored by `load_state_dict`; nothing else is then read.
        """
        return self
