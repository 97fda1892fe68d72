"""The state that a sparsifier saves: in a checkpoint, in a copy and in a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .checks import NotAttachedError, warn_at_caller
from .hook import OptimizerHook
from .masks import MaskSet
from .unpruned import Unpruned


class SavedState:
    """The part of a sparsifier that writes and reads its state.

    Attributes:
        masks: masks of the prunable weights.
        total_epochs: number of epochs of the entire training.
        step: optimizer steps so far, counted by the hook; -1 if a loaded state does not contain them.
    """

    masks: MaskSet
    total_epochs: int
    step: int
    _hook: OptimizerHook | None
    _announced_epoch: int
    _last_step: int
    _epoch_before: int
    _unpruned: Unpruned | None

    _own_state: ClassVar[tuple[str, ...]] = ()
    """Keys that the method adds to the state."""

    _state_options: ClassVar[tuple[str, ...]] = ()
    """Fields on which the meaning of the state depends; loading a state with other values is an error."""

    def state_dict(self) -> dict[str, Any]:
        """The state of a resumed run, as tensors and plain values; DTensors where weights are DTensors.

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
            ValueError: the state lacks the masks that were active (`torch.distributed.checkpoint.load` does
                not read them), or belongs to another method, target or option.
        """
        if "masks" not in state:
            raise ValueError("the state was not saved by a sparsifier: pass one from sparsifier.state_dict()")
        if state.get("active", False) and not any(state["masks"].values()):
            raise ValueError(
                "the state lacks the masks that it was saved with: read a checkpoint of "
                "torch.distributed.checkpoint by pruning.checkpoint.load_distributed(sparsifier, folder)"
            )
        self._check_owner(state)
        self._load_masks(state["masks"])
        self._announced_epoch = state.get("epoch", self.total_epochs)  # states of 0.5 lack it
        self._last_step, self._epoch_before = -1, self._announced_epoch
        self.step = state.get("step", -1)  # -1: unknown, saved by a loop with explicit calls

    def _load_masks(self, masks: Mapping[str, Any]) -> None:
        """Replace the masks; what `attach` has pruned since the model's state was loaded comes back."""
        self.masks.load_state_dict(masks)
        unpruned, self._unpruned = self._unpruned, None
        if unpruned is None or not self.masks.active:
            return
        if unpruned.restore_():
            self.masks.apply_to_weights_()
        elif unpruned.lacks_values(self.masks):
            warn_at_caller(
                "attach has pruned weights that the loaded masks keep: load the state of the model again, "
                "after attach"
            )

    def _check_owner(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError where a state belongs to another method, target or option."""
        other, own = state.get("target", self._target()), self._target()  # states of 0.5 lack it
        if other != own:
            raise ValueError(
                f"the state was saved by {other}, but this sparsifier is {own}: create it with the same "
                "arguments"
            )
        given = state.get("options", {})
        for name, value in self._options().items():
            if given.get(name, value) != value:  # earlier states lack it
                raise ValueError(
                    f"the state was saved by {type(self).__name__} with {name}={given[name]}, but this "
                    f"sparsifier has {name}={value}: create it with the same arguments"
                )
        if missing := [key for key in self._own_state if key not in state]:
            raise ValueError(
                f"missing key {missing[0]!r} in the state: it was not saved by {type(self).__name__}; load a "
                "state that this method saved"
            )

    def _target(self) -> str:
        """The method and its target, to which the state belongs."""
        return type(self).__name__

    def _options(self) -> dict[str, str]:
        """Name -> value of the options on which the meaning of the state depends."""
        return {name: str(getattr(self, name)) for name in self._state_options}

    def __getattr__(self, name: str) -> Any:
        """Raise NotAttachedError if a method is used before `attach`, which sets all attributes."""
        if name.startswith("__") or "model" in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        raise NotAttachedError(f"{type(self).__name__} is not attached: call attach(model, ...) first")

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy and a pickle: all but the hook, which stays on the original's optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "_hook"} | (
            {"_hook": None, "_checked_tensors": (), "_announced_to": None, "_unpruned": None}
            if "_hook" in self.__dict__
            else {}
        )
