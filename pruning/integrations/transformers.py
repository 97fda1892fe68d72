"""Sparse training in the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..base import Sparsifier
from .schedule import Schedule

FILE = "sparsifier.pt"
"""Holds the sparsifier's state in each checkpoint's folder."""


class SparsifierCallback(TrainerCallback):
    """Trains sparse: `Trainer(..., callbacks=[SparsifierCallback(sparsifier)])`.

    It hooks the sparsifier on the Trainer's optimizer, calls `on_epoch_start` at each epoch, and saves the
    sparsifier's state in the folder of each checkpoint. `train(resume_from_checkpoint=...)` restores it. The
    Trainer clips gradients before the step: their norm includes the entries of pruned weights.

    Args:
        sparsifier: a sparsifier attached to the model before the Trainer is created.
        train_accuracy: a function that returns the training accuracy of the epoch that ends, in [0, 1];
            required by PILoT, which can be resumed only from checkpoints at the end of an epoch.
        checkpoint: the folder that training resumes from, if it is neither `args.resume_from_checkpoint` nor
            in `args.output_dir`.

    Raises:
        ValueError: the sparsifier needs `train_accuracy`.
    """

    def __init__(
        self,
        sparsifier: Sparsifier,
        *,
        train_accuracy: Callable[[], float] | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.sparsifier, self.checkpoint = sparsifier, checkpoint
        self._schedule = Schedule(sparsifier, train_accuracy)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook the optimizer, and restore the state where the training resumes.

        Raises:
            ValueError: the Trainer trains other epochs or steps, or the sparsifier was already trained.
            FileNotFoundError: the checkpoint has no state of a sparsifier.
        """
        self._schedule.start(
            kwargs["optimizer"],
            total_epochs=state.num_train_epochs,
            total_steps=state.max_steps,
            steps_before=state.global_step,
        )
        if state.global_step:
            given = self.checkpoint or args.resume_from_checkpoint
            self._restore(Path(given) if isinstance(given, str | Path) else _folder(args, state), state)

    def _restore(self, folder: Path, state: TrainerState) -> None:
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: pass the folder that training resumes from, "
                "SparsifierCallback(sparsifier, checkpoint=folder)"
            )
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["global_step"] != state.global_step:
            raise ValueError(
                f"{path} was saved at step {saved['global_step']}, but the Trainer resumes at step "
                f"{state.global_step}: pass the folder that it resumes from, "
                "SparsifierCallback(sparsifier, checkpoint=folder)"
            )
        self._schedule.load_state_dict(saved)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call `on_epoch_start`."""
        epoch = int((state.epoch or 0) + 1e-6)  # a sum of fractions, such as 0.9999999
        self._schedule.start_epoch(epoch, kwargs["optimizer"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the training accuracy."""
        self._schedule.end_epoch()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the sparsifier's state beside the model's, on the first rank."""
        if state.is_world_process_zero:
            saved = {**self._schedule.state_dict(), "global_step": state.global_step}
            torch.save(saved, _folder(args, state) / FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish, with the masks of the best model if the Trainer has loaded it."""
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            saved = torch.load(
                Path(state.best_model_checkpoint) / FILE, map_location="cpu", weights_only=True
            )
            self._schedule.load_state_dict(saved)
        self._schedule.end()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Folder of the checkpoint of this step."""
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
