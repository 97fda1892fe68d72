"""What a sparsifier saves: in a checkpoint, in a copy and in a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .checks import NotAttachedError
from .hook import OptimizerHook
from .masks import MaskSet


class SavedState:
    """The part of a sparsifier that writes and reads its state.

    Attributes:
        masks: of the prunable weights.
        total_epochs: of the entire training.
        step: optimizer steps so far, which the hook counts; -1 where a loaded state does not contain them.
    """

    masks: MaskSet
    total_epochs: int
    step: int
    _hook: OptimizerHook | None
    _announced_epoch: int

    _own_state: ClassVar[tuple[str, ...]] = ()
    """Keys that the method adds to the state."""

    _state_options: ClassVar[tuple[str, ...]] = ()
    """Fields without which the state means something else; a state of other values is refused."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as tensors and plain values; DTensors where weights are DTensors.

        `checkpoint.load_distributed` reads it from a checkpoint of torch.distributed.checkpoint.
        """
        state: dict[str, Any] = {
            "masks": self.masks.state_dict(),
            "active": self.masks.active,
            "epoch": self._announced_epoch,
            "target": self._target(),
            "options": self._options(),
        }
        counts_steps = self._hook is not None or self.step > 0
        return {**state, "step": self.step} if counts_steps else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, after `attach`.

        Raises:
            ValueError: it lacks the masks that were on, as `torch.distributed.checkpoint.load` leaves it, or
                belongs to another method, target or option.
        """
        if "masks" not in state:
            raise ValueError("the state is not that of a sparsifier: it comes from sparsifier.state_dict()")
        if state.get("active", False) and not any(state["masks"].values()):
            raise ValueError(
                "the state lacks the masks that it was saved with: read a checkpoint of "
                "torch.distributed.checkpoint by pruning.checkpoint.load_distributed(sparsifier, folder)"
            )
        self._check_owner(state)
        self.masks.load_state_dict(state["masks"])
        self._announced_epoch = state.get("epoch", self.total_epochs)  # states of 0.5 lack it
        self.step = state.get("step", -1)  # -1: unknown, saved by a loop with explicit calls

    def _check_owner(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError where a state belongs to another method, target or option."""
        other, own = state.get("target", self._target()), self._target()  # states of 0.5 lack it
        if other != own:
            raise ValueError(f"the state is of {other}, this is {own}: create this with the same values")
        given = state.get("options", {})
        for name, value in self._options().items():
            if given.get(name, value) != value:  # earlier states lack it
                raise ValueError(
                    f"the state is of {type(self).__name__} with {name}={given[name]}, this has {value}: "
                    "create this with the same values"
                )
        if lacking := [key for key in self._own_state if key not in state]:
            raise ValueError(
                f"the state has no {lacking[0]!r}, which that of {type(self).__name__} has: it is of another "
                "method, load one that this method saved"
            )

    def _target(self) -> str:
        """What the state belongs to: the method, and its target."""
        return type(self).__name__

    def _options(self) -> dict[str, str]:
        """Name -> value of the options without which the state means something else."""
        return {name: str(getattr(self, name)) for name in self._state_options}

    def __getattr__(self, name: str) -> Any:
        """Tell what is missing where a method is used before `attach`, which sets all attributes."""
        if name.startswith("__") or "model" in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        raise NotAttachedError(f"{type(self).__name__} is not attached: call attach(model, ...) first")

    def __getstate__(self) -> dict[str, Any]:
        """What a copy and a pickle hold: all but the hook, which stays on the original's optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "_hook"} | (
            {"_hook": None, "_checked_tensors": (), "_announced_to": None} if "_hook" in self.__dict__ else {}
        )
