"""The Trainer of transformers in a run's directory: its arguments, and the callback that connects the two."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from ham import distributed
from ham.data import derived_seed
from ham.data.commonsense import collate, encode_examples
from ham.integrations.transformers import HAMCallback
from ham.models.causal_lm import trained_weights
from ham.optim import param_groups

from . import checkpoint, ranks, trainer_checkpoints
from .build import optimizer_of
from .c_operations import operations_in_c
from .config import Config
from .logger import NullLogger, RunLogger, finite_or_none
from .loop import DivergedError, Interrupted, Request
from .trainer_checkpoints import Checkpoint

_LOG_EVERY = 10  # steps; logging_steps of DoRA's finetune.py


def build_trainer(
    cfg: Config, inputs: Any, device: torch.device, callback: RunCallback, folder: Path
) -> Trainer:
    """The Trainer with our optimizer, schedule and HAM; it is not subclassed.

    HAM is attached to the optimizer. It reads the gradient as the base step saw it, which the Trainer has
    clipped.

    Args:
        cfg: configuration of the run.
        inputs: data and model of the run, `finetune.Inputs`.
        device: device of the model.
        callback: callback of the run.
        folder: folder of the checkpoints.
    """
    transformers_logging.set_verbosity_error()
    encode = partial(encode_examples, tokenizer=inputs.language.tokenizer, cutoff_len=cfg.data.cutoff_len)
    train, valid = encode(inputs.examples.train), encode(inputs.examples.valid)
    arguments = training_arguments(cfg, device, folder, evaluates=bool(valid))
    model = inputs.language.model
    groups = param_groups(
        model,
        weight_decay=cfg.optimizer.weight_decay,
        select=str(cfg.ham.select),
        decay=str(cfg.optimizer.decay),
    )
    optimizer = optimizer_of(cfg.optimizer, groups)
    factor = cfg.optimizer.schedule.factor(cfg.epochs, steps_per_epoch(len(train), cfg))
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=train,
        eval_dataset=valid or None,
        optimizers=(optimizer, LambdaLR(optimizer, factor)),
        callbacks=[*ham_callbacks(cfg), callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def ham_callbacks(cfg: Config) -> list[HAMCallback]:
    """HAM with the values of the configuration; an empty list for the base optimizer without HAM."""
    if not cfg.ham.active:
        return []
    options = dict(
        alpha=cfg.ham.alpha, beta=cfg.ham.beta, clamp=cfg.ham.clamp, mask_zero_grad=cfg.ham.mask_zero_grad
    )
    return [HAMCallback(**options, max_weight_norm=cfg.ham.max_weight_norm or None)]


def steps_per_epoch(examples: int, cfg: Config) -> int:
    """Optimizer steps of an epoch; its last batch may be smaller."""
    world_size, parts = distributed.world().size, cfg.optimizer.accumulate
    batches = math.ceil(math.ceil(examples / _local_batch_size(cfg)) / world_size)
    return math.ceil(batches / parts)


def _local_batch_size(cfg: Config) -> int:
    return cfg.batch_size // distributed.world().size // cfg.optimizer.accumulate


def training_arguments(
    cfg: Config, device: torch.device, folder: Path, *, evaluates: bool
) -> TrainingArguments:
    """The Trainer's arguments, from the configuration. Its own defaults would hide a loss of nan."""
    seed, order = (
        derived_seed(cfg.seed, name) % 2**32 for name in ("training", "data")
    )  # numpy takes 32 bits
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=cfg.epochs,
        per_device_train_batch_size=_local_batch_size(cfg),
        per_device_eval_batch_size=_local_batch_size(cfg),
        gradient_accumulation_steps=cfg.optimizer.accumulate,
        learning_rate=cfg.optimizer.lr,
        max_grad_norm=cfg.optimizer.clip_norm,
        bf16=cfg.compute.amp,
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=order,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=cfg.data.eval_every,
        save_strategy="steps",
        save_steps=cfg.data.eval_every,
        load_best_model_at_end=evaluates and cfg.data.load_best,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        prediction_loss_only=True,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False,
        ddp_timeout=int(cfg.compute.timeout),
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process per GPU; never torch.nn.DataParallel
    return arguments


class RunCallback(TrainerCallback):
    """Logs and marks checkpoints as all runs do, stops at signals, and ends a diverged training.

    Args:
        cfg: configuration of the run.
        config_hash: hash of the configuration.
        logger: logger of the run.
        received: names of the stop signals received so far.
        resumed: the checkpoint that the Trainer resumes.
    """

    def __init__(
        self,
        cfg: Config,
        config_hash: str,
        logger: RunLogger | NullLogger,
        received: list[str],
        resumed: Checkpoint | None,
    ) -> None:
        self.cfg, self.config_hash, self.logger, self.received = cfg, config_hash, logger, received
        state = resumed.state if resumed else {}
        self.losses: list[float] = state.get("losses", [])
        self.train_loss: float | None = state.get("train_loss")
        self.valid_loss: float | None = state.get("valid_loss")
        self.saved_at = time.monotonic()
        self.is_stopping = False
        self.epochs = 0

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Start the progress bar; find the best checkpoint, whose path the Trainer stores, in this folder."""
        self._check_ranks(model, optimizer, state.global_step)
        if state.best_global_step:
            state.best_model_checkpoint = str(Path(args.output_dir, f"checkpoint-{state.best_global_step}"))
        self.logger.start_progress(state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Handle the requests of all ranks, a checkpoint or a stop, after the same step."""
        self.logger.update_progress()
        due = time.monotonic() - self.saved_at >= 60 * self.cfg.checkpoint.minutes
        requests = distributed.all_reduce_or(
            int(Request.CHECKPOINT * due | Request.STOP * bool(self.received))
        )
        self.epochs = int(state.epoch)
        if state.global_step < state.max_steps:
            self.is_stopping = bool(requests & Request.STOP)
        control.should_save = control.should_save or bool(requests)
        if control.should_save:
            self._check_finite(model, state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Collect the loss of each step; log its mean over some steps."""
        state.log_history.clear()  # the Trainer would write all logs into each checkpoint
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            self._diverge("the loss is not finite", state.global_step)
        self.losses.append(logs["loss"])
        if self.logger.should_log():
            self.logger.set_postfix(loss=f"{logs['loss']:.4f}")
        if state.global_step % _LOG_EVERY == 0 or state.global_step == state.max_steps:
            self.train_loss = sum(self.losses) / len(self.losses)
            self.losses = []
            values = {"grad_norm": logs.get("grad_norm"), "lr": logs["learning_rate"]}
            self._log(state, {"train_loss": self.train_loss, **values})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Log the loss on the held-out examples."""
        self.valid_loss = (metrics or {})["eval_loss"]
        if not math.isfinite(self.valid_loss):
            self._diverge("the loss on the held-out examples is not finite", state.global_step)
        self._log(state, {"valid_loss": self.valid_loss})

    def on_save(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Mark the checkpoint as complete; then stop if a signal arrived. Raises Interrupted."""
        self.logger.flush()
        self._check_ranks(model, optimizer, state.global_step)
        distributed.raise_on_all_ranks(lambda: None)  # all ranks have written their files
        device = next(model.parameters()).device
        distributed.on_rank_zero(lambda: self._mark(Path(args.output_dir), state, device))
        self.saved_at = time.monotonic()
        if self.is_stopping:
            name = self.received[0] if self.received else "a signal to another rank"
            raise Interrupted(f"stopped by {name} in epoch {int(state.epoch) + 1}, step {state.global_step}")

    def _check_ranks(self, model: torch.nn.Module, optimizer: Any, step: int) -> None:
        """Raise RanksDisagreeError unless all ranks hold the same weights and optimizer state."""
        if distributed.world().size > 1:
            optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
            weights = {name.removeprefix("module."): p for name, p in trained_weights(model).items()}
            state = {"step": step, "model": weights, "optimizer": optimizer.state_dict()["state"]}
            ranks.check_states(state, f"in step {step}")

    def _mark(self, folder: Path, state: Any, device: torch.device) -> None:
        content = {
            "config_hash": self.config_hash,
            "threads": torch.get_num_threads(),
            "c_operations": operations_in_c(self.cfg, device),
            "best_step": state.best_global_step,
            "losses": self.losses,
            "train_loss": self.train_loss,
            "valid_loss": self.valid_loss,
            "logger": self.logger.state_dict(),
        }
        checkpoint.check_owner(self.logger.folder)
        trainer_checkpoints.mark(folder / f"checkpoint-{state.global_step}", content)
        checkpoint.mark_saved(self.logger.folder)
        trainer_checkpoints.rotate(folder)

    def _log(self, state: Any, values: dict[str, Any]) -> None:
        steps = state.max_steps // self.cfg.epochs
        line = {"epoch": (state.global_step - 1) // steps, "step": state.global_step, **values}
        self.logger.log_steps(finite_or_none(line), state.max_steps)

    def _check_finite(self, model: torch.nn.Module, step: int) -> None:
        """Raise DivergedError if a weight is nan or inf."""
        trained = {name: p.detach() for name, p in trained_weights(model).items()}
        finite = torch.isfinite(torch.stack(torch._foreach_norm(list(trained.values()), float("inf"))))
        if not bool(finite.all()):
            self._diverge(f"{list(trained)[int(finite.logical_not().nonzero()[0])]} is not finite", step)

    def _diverge(self, problem: str, step: int) -> NoReturn:
        cure = "optimizer.lr or ham.alpha" if self.cfg.ham.active else "optimizer.lr"
        folder = self.logger.folder / trainer_checkpoints.FOLDER
        raise DivergedError(f"{problem} at step {step}", f"good checkpoints are in {folder}; lower {cure}")
