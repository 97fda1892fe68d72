"""Sparse training in Lightning's Trainer, of `pytorch_lightning` or of `lightning.pytorch`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..base import Sparsifier
from .schedule import Schedule

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:
    _NAMES = ("lightning.pytorch", "pytorch_lightning")
    _LOADED = [name for name in _NAMES if name in sys.modules]
    try:
        Callback = import_module(next(iter(_LOADED), _NAMES[0])).Callback
    except ModuleNotFoundError:
        Callback = import_module(_NAMES[1]).Callback


class SparsifierCallback(Callback):
    """Trains sparse: `Trainer(..., callbacks=[SparsifierCallback(sparsifier)])`.

    It hooks the sparsifier on the optimizer of the LightningModule and calls `on_epoch_start` at each epoch;
    checkpoints contain the sparsifier's state. Attach the sparsifier before `fit`, which calls
    `configure_optimizers`. Lightning clips gradients before the step: their norm includes the entries of
    pruned weights.

    Args:
        sparsifier: a sparsifier attached to the LightningModule, or to a part of it.
        train_accuracy: a function that returns the training accuracy of the epoch that ends, in [0, 1];
            required by PILoT, which can be resumed only from checkpoints at the end of an epoch.

    Raises:
        ValueError: the sparsifier needs `train_accuracy`.
    """

    def __init__(self, sparsifier: Sparsifier, *, train_accuracy: Callable[[], float] | None = None) -> None:
        self.sparsifier = sparsifier
        self._schedule = Schedule(sparsifier, train_accuracy)
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Hook the optimizer, and restore the state where the training resumes.

        Raises:
            ValueError: there are several optimizers, the Trainer trains other epochs or steps, or the
                checkpoint has no state of a sparsifier.
        """
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"the module has {len(trainer.optimizers)} optimizers: call sparsifier.hook(optimizer) and "
                "the calls for epochs in the module itself"
            )
        if self._loaded is None and trainer.global_step and not self.sparsifier.step:
            raise ValueError(
                "the checkpoint has no state of the sparsifier: resume from one that was saved with "
                "SparsifierCallback"
            )
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        self._schedule.start(
            trainer.optimizers[0],
            total_epochs=epochs,
            total_steps=trainer.estimated_stepping_batches,
            steps_before=trainer.global_step,
        )
        if self._loaded is not None:  # only here is the model on its device
            self._schedule.load_state_dict(self._loaded)
            self._loaded = None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Call `on_epoch_start`."""
        self._schedule.start_epoch(trainer.current_epoch, trainer.optimizers[0])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Call `on_epoch_start` where Lightning resumes inside an epoch, without `on_train_epoch_start`."""
        self._schedule.start_epoch(trainer.current_epoch, trainer.optimizers[0])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the training accuracy."""
        self._schedule.end_epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the training."""
        self._schedule.end()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish again: callbacks that average weights replace them at the end of the training."""
        self._schedule.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach the hook."""
        self._schedule.remove()

    def state_dict(self) -> dict[str, Any]:
        """The sparsifier's state, as tensors and plain values."""
        return self._schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts, when the weights are loaded."""
        self._loaded = state_dict
