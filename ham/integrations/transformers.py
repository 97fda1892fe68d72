"""HAM in the Trainer of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..optim import HAM


class HAMCallback(TrainerCallback):
    """Attaches HAM to the Trainer's optimizer for the training: `callbacks=[HAMCallback(alpha=200)]`.

    Args:
        options: arguments of `HAM`; `model` is the Trainer's. A resumed training takes alpha and beta from
            the optimizer's saved state.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.ham: HAM | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach HAM, after the optimizer's state is loaded. Raises what `HAM` raises."""
        if self.ham is not None:  # of a training that failed
            self.ham.remove()
        self.ham = HAM(kwargs["optimizer"], model=kwargs["model"], **self.options)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach HAM, so that the Trainer can train again."""
        if self.ham is not None:
            self.ham.remove()
            self.ham = None
