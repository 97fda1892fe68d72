"""The common part of the trainers' callbacks: the hook, the calls for epochs and the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from ..base import Sparsifier
from ..hook import OptimizerHook


class Schedule:
    """Hooks a sparsifier on a trainer's optimizer and calls `on_epoch_start` once per epoch.

    Args:
        sparsifier: a sparsifier attached to the trainer's model.
        train_accuracy: a function that returns the fraction of training examples classified correctly in the
            epoch that ends, in [0, 1]; required by PILoT.

    Raises:
        ValueError: the sparsifier needs `train_accuracy`.
    """

    def __init__(self, sparsifier: Sparsifier, train_accuracy: Callable[[], float] | None) -> None:
        self.sparsifier, self.train_accuracy = sparsifier, train_accuracy
        self._follows_accuracy = type(sparsifier).on_epoch_end is not Sparsifier.on_epoch_end
        if self._follows_accuracy and train_accuracy is None:
            raise ValueError(
                f"{type(sparsifier).__name__} requires the training accuracy: pass train_accuracy=, a "
                "function that returns it after each epoch, in [0, 1]"
            )
        self._hook: OptimizerHook | None = None
        self._epochs_ended = 0

    def start(
        self, optimizer: Any, *, total_epochs: int | None, total_steps: float, steps_before: int
    ) -> None:
        """Hook the optimizer, before the first step.

        Args:
            optimizer: the trainer's optimizer.
            total_epochs: number of epochs that the trainer plans; None if it does not count epochs.
            total_steps: number of optimizer steps that the trainer plans; not positive or infinite if
                unknown.
            steps_before: number of optimizer steps before the checkpoint from which training resumes.

        Raises:
            ValueError: the trainer's plan is not the one the sparsifier was attached with, or the sparsifier
                was already trained.
        """
        if self.sparsifier.step > 0 and not steps_before:
            raise ValueError(
                f"the sparsifier has already been trained for {self.sparsifier.step} steps, but the trainer "
                "starts at step 0: attach the sparsifier to the model again, or resume from a checkpoint"
            )
        self._check_plan(total_epochs, total_steps)
        self.remove()
        self._hook = self.sparsifier.hook(optimizer)

    def _check_plan(self, epochs: int | None, steps: float) -> None:
        own, per_epoch = self.sparsifier.total_epochs, self.sparsifier.steps_per_epoch
        equal = epochs is None or epochs == own or not self.sparsifier.acts_on_epochs
        if per_epoch is not None and 0 < steps < float("inf"):
            partial = epochs == own and (own - 1) * per_epoch < steps < own * per_epoch  # of the last epoch
            equal = equal and (steps == own * per_epoch or partial)
        if not equal:
            planned = f"{own} epochs" + (f" of {per_epoch} steps" if per_epoch else "")
            raise ValueError(
                f"the trainer plans {epochs} epochs and {steps} steps in total, the sparsifier {planned}: "
                "attach it with the trainer's total_epochs and steps_per_epoch"
            )

    def start_epoch(self, epoch: int, optimizer: Optimizer) -> None:
        """Call `on_epoch_start` for epoch `epoch`, counted from 0, unless it was called before a checkpoint.

        Raises:
            RuntimeError: the training accuracy of an earlier epoch was not reported, and is needed.
        """
        if self._epochs_ended < epoch and self._follows_accuracy:
            raise RuntimeError(
                f"the training accuracy of epoch {self._epochs_ended} was not saved: resume "
                f"{type(self.sparsifier).__name__} from a checkpoint of an earlier step or of an epoch's end"
            )
        self._epochs_ended = max(self._epochs_ended, epoch)
        if epoch > self.sparsifier._announced_epoch:
            self.sparsifier.on_epoch_start(epoch, optimizer)

    def end_epoch(self) -> None:
        """Report the training accuracy if the sparsifier requires it."""
        self._epochs_ended += 1
        if self._follows_accuracy and self.train_accuracy is not None:
            self.sparsifier.on_epoch_end(train_accuracy=float(self.train_accuracy()))

    def end(self) -> None:
        """Prune what came back since the last step, as by an average; finish and detach the hook."""
        self.sparsifier.masks.apply_to_weights_()
        self.sparsifier.on_end()
        self.remove()

    def remove(self) -> None:
        """Detach the hook, if there is one."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for `torch.load(weights_only=True)`."""
        return {"sparsifier": self.sparsifier.state_dict(), "epochs_ended": self._epochs_ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, with the model's weights already loaded.

        Raises:
            ValueError: weights that are pruned in this state are not zero in the model.
        """
        self.sparsifier.load_state_dict(state["sparsifier"])
        self._epochs_ended = state["epochs_ended"]
        masks = self.sparsifier.masks
        for name, mask in masks.masks.items():
            value = masks.weights[name].value
            if bool(value[~mask.to(value.device)].any()):
                raise ValueError(
                    f"the loaded masks do not fit {name}, which has other zeros: load model and sparsifier "
                    "from the same checkpoint"
                )
